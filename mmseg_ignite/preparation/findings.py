"""What an audit can find in a release: one table of kinds, each with its severity and its remedy."""

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
    """A kind of fault: 'error' makes a result wrong, 'warning' should be looked at, 'info' is handled."""

    severity: str
    remedy: str


_AGAIN = 'download it again'
_TABLE = 'correct the table'
KINDS = {
    # The overview table
    'overview-unreadable': Kind('error', _AGAIN),
    'overview-columns': Kind('error', f'{_AGAIN}; a spreadsheet program may have changed it'),
    'overview-optional': Kind('warning', 'nothing, if it is not wanted: what these columns say is not used then'),
    'overview-empty': Kind('error', 'take the data_overview.csv of the H&E release'),
    'overview-compressed': Kind('info', 'nothing: it is read as it is'),
    'overview-bom': Kind('info', 'nothing: it is read as it is'),
    'row-fields': Kind('error', f'{_TABLE}: its values may stand in wrong columns'),
    'name-unsafe': Kind('error', f'{_TABLE}: a name must be a plain file name'),
    'name-duplicate': Kind('error', 'remove the surplus rows'),
    'name-case': Kind('error', 'rename one: they are one file on many disks'),
    'name-patient': Kind('warning', 'look whose ROI it is: a wrong patient lets splits leak'),
    'patient-missing': Kind('error', f'{_TABLE}: without a patient splits leak'),
    'patient-spelling': Kind('error', f'{_TABLE}: one patient, one spelling, else splits leak'),
    'area-malformed': Kind('error', f'{_TABLE}: um/px follows from the area'),
    'shape-malformed': Kind('warning', 'nothing, if the image is whole: its own size is used'),
    'shape-differs': Kind('warning', 'look at the image: its own size is used'),
    'resolution-differs': Kind('warning', 'look at area_mm2: um/px follows from it'),
    'resolution-impossible': Kind('error', f'{_TABLE}: um/px follows from area_mm2'),
    'split-unknown': Kind('warning', 'nothing, if "official" is not used: the row counts as training'),
    'official-leak': Kind('warning', 'nothing: the split "official" is left out'),
    'folds-leak': Kind('info', "nothing: the release's own folds are never used"),
    'label-map-missing': Kind('error', f'{_AGAIN}: it lies beside data_overview.csv'),
    'label-map-unreadable': Kind('error', _AGAIN),
    'label-map-changed': Kind('error', f'{_AGAIN}, or state what its ids mean with --label-map FILE'),
    'label-map-names': Kind('warning', 'look whether they mean the same class: ids decide, names do not'),
    'label-map-compressed': Kind('info', 'nothing: it is read as it is'),
    'label-map-stated': Kind('info', 'nothing: it was asked for'),
    'layout-nested': Kind('info', 'nothing: they are read there'),
    # Files
    'image-missing': Kind('error', 'download the images again'),
    'mask-missing': Kind('error', 'download the annotations again'),
    'file-surplus': Kind('warning', 'nothing, if it is not wanted: no row lists it, so it is not used'),
    'image-unreadable': Kind('error', _AGAIN),
    'mask-unreadable': Kind('error', _AGAIN),
    'image-format': Kind('error', 'export it again as 8-bit RGB'),
    'image-opaque-alpha': Kind('warning', 'nothing: the alpha channel is opaque and left out'),
    'image-palette': Kind('warning', 'look whether its colours are those of the others: a palette holds 256'),
    'image-lossy': Kind('warning', 'take the PNG of the release: this one is compressed with loss'),
    'picture-turned': Kind('warning', 'look whether image and mask fit: pixels of both are used as stored, not turned'),
    'image-blank': Kind('warning', 'look at it: every pixel has the same colour'),
    'mask-format': Kind('error', 'export it again as an 8-bit grayscale or palette PNG'),
    'mask-palette': Kind('info', 'nothing: its indices are read, not its colours'),
    'mask-encodings': Kind('info', 'nothing: each mask is decoded by its own encoding'),
    'mask-values': Kind('error', 'replace it: its values are no classes of this release'),
    'mask-interpolated': Kind('error', 'export it again from its source, scaled by nearest neighbour and without JPEG'),
    'mask-fringes': Kind(
        'warning', 'look at it: a mask that was saved as JPEG or scaled with interpolation has such fringes'
    ),
    'mask-stray': Kind('info', 'nothing: these pixels are unannotated now'),
    'mask-stray-many': Kind('error', f'replace it: at most {MAX_STRAY_SHARE:.2%} is taken for stray'),
    'size-mismatch': Kind('error', 'download image and mask again'),
    'roi-unannotated': Kind('warning', 'nothing: it is never drawn for training and adds nothing to a score'),
    'roi-small': Kind('info', 'nothing: crops are padded there'),
    'context-missing': Kind('info', 'download the images again if tissue around the ROI is wanted'),
    'context-faulty': Kind('warning', f'{_AGAIN}; till then the ROI has no context'),
    'context-contradicts': Kind('warning', 'look which mask is right; the ROI has no context'),
    # Pictures compared
    'picture-patients': Kind('error', 'leave all but one out: the same picture under two patients leaks'),
    'picture-twice': Kind('warning', 'leave one out with --exclude: it counts twice'),
    'excluded': Kind('info', 'nothing: it was asked for'),
}


@dataclass(frozen=True)
class Finding:
    """One fault.

    Attributes:
        kind: a key of KINDS.
        subject: the file, row or ROI it is about.
        detail: what was found, and what was expected.
        roi: the ROI's name if leaving that ROI out would cure it, else ''.
    """

    kind: str
    subject: str
    detail: str
    roi: str = ''

    @property
    def severity(self) -> str:
        return KINDS[self.kind].severity

    @property
    def remedy(self) -> str:
        return KINDS[self.kind].remedy

    def __str__(self) -> str:
        return f'{self.subject}: {self.detail}: {self.remedy}'


def errors(findings: Iterable[Finding]) -> list[Finding]:
    """Those that stop a preparation."""
    return [f for f in findings if f.severity == 'error']


def findings_table(findings: list[Finding], show: int = 3) -> Table:
    """A line a kind, errors first; at most ``show`` subjects of each are named."""
    counts = Counter(f.severity for f in findings)
    title = 'audit: ' + ', '.join(f'{counts[s]} {s}{"s" * (counts[s] != 1 and s != "info")}' for s in SEVERITIES)
    where, remedy = (Column(name, overflow='fold') for name in ('where', 'what to do'))
    table = Table('severity', 'kind', 'count', where, remedy, title=title, show_lines=False)
    colours = dict(error='red', warning='yellow', info='dim')
    for kind in sorted({f.kind for f in findings}, key=lambda k: (SEVERITIES.index(KINDS[k].severity), k)):
        of_kind = [f for f in findings if f.kind == kind]
        where = [f'{f.subject}: {f.detail}' for f in of_kind[:show]]
        where += [f'... and {len(of_kind) - show} more'] if len(of_kind) > show else []
        severity = KINDS[kind].severity
        # Text, so that a name in a release is not read as markup.
        cells = Text('\n'.join(where)), Text(KINDS[kind].remedy)
        table.add_row(Text(severity, colours[severity]), kind, str(len(of_kind)), *cells)
    return table


def write_audit(path: str | Path, release: str | Path, rois: int, findings: list[Finding]) -> None:
    """Write ``audit.json``: format, release, number of ROIs audited, counts by severity, and all findings."""
    counts = Counter(f.severity for f in findings)
    write_result(
        path,
        dict(
            format=2,
            release=printable(Path(release).resolve().name),
            rois=rois,
            counts={s: counts[s] for s in SEVERITIES},
            findings=[dict(severity=f.severity, **asdict(f), remedy=f.remedy) for f in findings],
        ),
    )
