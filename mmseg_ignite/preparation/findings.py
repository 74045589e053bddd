"""The kinds of faults that an audit finds in a release, each with its severity and remedy."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

from rich.table import Column, Table
from rich.text import Text

from ..files import printable, write_result
from ..labels import MAX_STRAY_SHARE

SEVERITIES = ('error', 'warning', 'info')


class Kind(NamedTuple):
    """A kind of fault: an 'error' makes results wrong, a 'warning' should be checked, 'info' is handled."""

    severity: str
    remedy: str


_AGAIN = 'download it again'
_TABLE = 'correct the table'
_CHECK_SIZE = 'check the image: its own size is used'
_READ = 'nothing: it is read as it is'
KINDS = {
    # The overview table
    'overview-unreadable': Kind('error', _AGAIN),
    'overview-columns': Kind('error', f'{_AGAIN}; a spreadsheet program may have changed it'),
    'overview-optional': Kind('warning', 'nothing, unless these columns are needed'),
    'overview-empty': Kind('error', 'use data_overview.csv of the H&E release'),
    **dict.fromkeys(('overview-compressed', 'overview-bom', 'label-map-compressed'), Kind('info', _READ)),
    'row-fields': Kind('error', f'{_TABLE}: its values may be in wrong columns'),
    'name-unsafe': Kind('error', f'{_TABLE}: a name must be a plain file name'),
    'name-duplicate': Kind('error', 'remove the surplus rows'),
    'name-case': Kind('error', 'rename one: many file systems ignore case'),
    'name-patient': Kind('warning', 'check the patient of the ROI: a wrong one makes splits leak'),
    'patient-missing': Kind('error', f'{_TABLE}: without patients splits leak'),
    'patient-spelling': Kind('error', f'{_TABLE}: use one spelling per patient, otherwise splits leak'),
    'area-malformed': Kind('error', f'{_TABLE}: um/px follows from the area'),
    'shape-malformed': Kind('warning', _CHECK_SIZE),
    'shape-differs': Kind('warning', _CHECK_SIZE),
    'resolution-differs': Kind('warning', 'check area_mm2: um/px follows from it'),
    'resolution-impossible': Kind('error', f'{_TABLE}: um/px follows from area_mm2'),
    'split-unknown': Kind('warning', 'nothing, unless "official" is used: the row counts as training'),
    'official-leak': Kind('warning', 'nothing: the split "official" is omitted'),
    'folds-leak': Kind('info', "nothing: the release's own folds are never used"),
    'label-map-missing': Kind('error', f'{_AGAIN}: it is beside data_overview.csv'),
    'label-map-unreadable': Kind('error', _AGAIN),
    'label-map-changed': Kind('error', f'{_AGAIN}, or map its ids with --label-map FILE'),
    'label-map-names': Kind('warning', 'check whether they mean the same class: ids decide, names do not'),
    'label-map-stated': Kind('info', 'nothing: it was requested'),
    'layout-nested': Kind('info', 'nothing: they are found there'),
    # Files
    'image-missing': Kind('error', 'download the images again'),
    'mask-missing': Kind('error', 'download the annotations again'),
    'file-surplus': Kind('warning', 'nothing, unless it is needed: no row lists it, so it is not used'),
    'image-unreadable': Kind('error', _AGAIN),
    'mask-unreadable': Kind('error', _AGAIN),
    'image-format': Kind('error', 'export it again as 8-bit RGB'),
    'image-opaque-alpha': Kind('warning', 'nothing: the alpha channel is opaque and dropped'),
    'image-palette': Kind('warning', 'compare its colours with other images: a palette has only 256'),
    'image-lossy': Kind('warning', 'use the PNG of the release: this one is compressed lossily'),
    'picture-turned': Kind('warning', 'check that image and mask match: both are used as stored, not rotated'),
    'image-blank': Kind('warning', 'check it: every pixel has the same colour'),
    'mask-format': Kind('error', 'export it again as an 8-bit grayscale or palette PNG'),
    'mask-palette': Kind('info', 'nothing: its indices are read, not its colours'),
    'mask-encodings': Kind('info', 'nothing: each mask is decoded by its own encoding'),
    'mask-values': Kind('error', 'replace it: its values are not classes of this release'),
    'mask-interpolated': Kind('error', 'export it from its source, with nearest-neighbour scaling and without JPEG'),
    'mask-fringes': Kind('warning', 'check it: saving as JPEG or scaling with interpolation leaves such fringes'),
    'mask-stray': Kind('info', 'nothing: these pixels become unannotated'),
    'mask-stray-many': Kind('error', f'replace it: at most {MAX_STRAY_SHARE:.2%} may be stray'),
    'size-mismatch': Kind('error', 'download image and mask again'),
    'roi-unannotated': Kind('warning', 'nothing: it is never sampled for training and does not affect scores'),
    'roi-small': Kind('info', 'nothing: its crops are padded'),
    'context-missing': Kind('info', 'download the images again if tissue around the ROI is needed'),
    'context-faulty': Kind('warning', f'{_AGAIN}; until then the ROI has no context'),
    'context-contradicts': Kind('warning', 'check which mask is right; the ROI has no context'),
    # Comparison of images
    'picture-patients': Kind('error', 'keep only one: the same image of two patients leaks'),
    'picture-twice': Kind('warning', 'skip one with --exclude: it counts twice'),
    'excluded': Kind('info', 'nothing: it was requested'),
}


@dataclass(frozen=True)
class Finding:
    """One fault."""

    kind: str  # key of KINDS
    subject: str  # the file, row or ROI concerned
    detail: str  # what was found and expected
    roi: str = ''  # name of the ROI whose exclusion resolves the fault

    @property
    def severity(self) -> str:
        return KINDS[self.kind].severity

    @property
    def remedy(self) -> str:
        return KINDS[self.kind].remedy

    def __str__(self) -> str:
        return f'{self.subject}: {self.detail}: {self.remedy}'


def errors(findings: Iterable[Finding]) -> list[Finding]:
    """Return the findings that stop a preparation."""
    return [f for f in findings if f.severity == 'error']


def findings_table(findings: list[Finding], show: int = 3) -> Table:
    """Tabulate the findings, a line per kind, errors first; at most ``show`` subjects of each kind are named."""
    counts = Counter(f.severity for f in findings)
    title = 'audit: ' + ', '.join(f'{counts[s]} {s}{"s" * (counts[s] != 1 and s != "info")}' for s in SEVERITIES)
    folded = (Column(name, overflow='fold') for name in ('where', 'what to do'))
    table = Table('severity', 'kind', 'count', *folded, title=title)
    colours = dict(error='red', warning='yellow', info='dim')
    for kind in sorted({f.kind for f in findings}, key=lambda k: (SEVERITIES.index(KINDS[k].severity), k)):
        severity, remedy = KINDS[kind]
        lines = [f'{f.subject}: {f.detail}' for f in findings if f.kind == kind]
        count = len(lines)
        lines[show:] = [f'... and {count - show} more'] if count > show else []
        # Text, because rich would interpret names in a release as markup.
        table.add_row(Text(severity, colours[severity]), kind, str(count), Text('\n'.join(lines)), Text(remedy))
    return table


def write_audit(path: str | Path, release: str | Path, rois: int, findings: list[Finding]) -> None:
    """Write ``audit.json``: format, release, number of audited ROIs, counts by severity, and all findings."""
    counts = Counter(f.severity for f in findings)
    facts = dict(format=2, release=printable(Path(release).resolve().name), rois=rois)
    facts['counts'] = {s: counts[s] for s in SEVERITIES}
    facts['findings'] = [dict(severity=f.severity, **asdict(f), remedy=f.remedy) for f in findings]
    write_result(path, facts)
