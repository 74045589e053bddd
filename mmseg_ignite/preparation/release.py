"""The tables of an IGNITE release: which ROIs there are, whose, and where their files lie."""

import csv
import gzip
import io
import json
import re
import zlib
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import IgniteError
from ..labels import RAW_LABEL_MAP
from .findings import Finding
from .store import CONTEXT

TASK = 'he_tissue_segmentation'
OVERVIEW = 'data_overview.csv'
LABEL_MAP = 'he_label_map.json'
COLUMNS = (
    'name',
    'task',
    'stain',
    'split',
    'validation_fold',
    'patient_id',
    'roi_id',
    'source',
    'specimen_type',
    'organ',
    'histological_subtype',
    'scanner',
    'shape',
    'area_mm2',
    'original_tcga_id',
    'image_path',
    'annotation_path',
)
METADATA = ('roi_id', 'source', 'specimen_type', 'organ', 'histological_subtype', 'scanner')
"""Columns that the prepared index keeps as they are, for strata of the evaluation."""
SAFE_NAME = re.compile(r'[A-Za-z0-9][A-Za-z0-9_.-]*')


@dataclass(frozen=True)
class RoiRecord:
    """One H&E row of the overview.

    Attributes:
        name: e.g. 'patient1_he_roi1', also the stem of its files.
        patient: patient id as text.
        split: the release's own 'train' or 'test'.
        fold: the release's own 'fold0'..'fold4', or ''.
        area_mm2: area of the ROI.
        shape: (H, W) as the overview claims, None where it claims nothing usable.
        metadata: the columns of METADATA.
        release: folder of the release.
    """

    name: str
    patient: str
    split: str
    fold: str
    area_mm2: float
    shape: 'tuple[int, int] | None'
    metadata: dict
    release: Path

    def sources(self, context: bool = True) -> 'dict[str, Path]':
        """Its files: image, mask and, if wanted, context_image and context_mask, which may not exist."""
        images, masks = self.release / 'images' / 'he', self.release / 'annotations' / 'he'
        files = dict(image=images / f'{self.name}.png', mask=masks / f'{self.name}.png')
        if context:
            files['context_image'] = images / f'{self.name}{CONTEXT}.png'
            files['context_mask'] = masks / f'{self.name}{CONTEXT}.png'
        return files


@dataclass
class Overview:
    """What the tables of a release say: the usable rows, every listed name, and the faults."""

    records: 'list[RoiRecord]' = field(default_factory=list)
    names: 'list[str]' = field(default_factory=list)
    findings: 'list[Finding]' = field(default_factory=list)


def read_overview(release: 'str | Path') -> Overview:
    """The H&E segmentation ROIs of a release in the order of its overview, and all faults of its tables.

    Raises:
        IgniteError: there is no release at that path.
    """
    release = Path(release)
    path = release / OVERVIEW
    if not release.is_dir():
        raise IgniteError(f'{release} is no folder; an unpacked IGNITE release was expected: check the path.')
    if not path.is_file():
        raise IgniteError(
            f'{release} holds no {OVERVIEW}; the folder with images/, annotations/ and {OVERVIEW} was '
            'expected: check the path, or fetch the release with --download.'
        )
    overview = Overview(findings=_check_label_map(release))
    rows = _read_rows(path, overview.findings)
    for line, row in rows or ():
        _add_row(overview, release, line, row)
    if rows is not None and not overview.names:
        overview.findings.append(Finding('overview-empty', OVERVIEW, f'it lists no row of the task {TASK}'))
    _check_rows(overview)
    return overview


def _read_rows(path: Path, findings: 'list[Finding]') -> 'list[tuple[int, dict]] | None':
    """(line number, row) of each data row; None if the table cannot be used."""
    try:
        content = path.read_bytes()
        if content[:2] == b'\x1f\x8b':  # one downloader keeps it gzip-compressed under its plain name
            content = gzip.decompress(content)
            findings.append(Finding('overview-compressed', path.name, 'it is gzip-compressed under a plain name'))
        if content.startswith(b'\xef\xbb\xbf'):
            findings.append(Finding('overview-bom', path.name, 'it begins with a byte order mark'))
        reader = csv.DictReader(io.StringIO(content.decode('utf-8-sig'), newline=''), strict=True)
        rows = [(reader.line_num, row) for row in reader]
    except (OSError, EOFError, zlib.error, UnicodeDecodeError, csv.Error) as error:
        findings.append(Finding('overview-unreadable', path.name, f'it is no UTF-8 table ({error})'))
        return None
    columns = Counter(reader.fieldnames or ())
    missing, twice = [c for c in COLUMNS if not columns[c]], [c for c in COLUMNS if columns[c] > 1]
    if missing or twice:
        detail = f'it lacks the column(s) {", ".join(missing)}' if missing else f'it has {", ".join(twice)} twice'
        findings.append(Finding('overview-columns', path.name, detail))
        return None
    return rows


def _add_row(overview: Overview, release: Path, line: int, row: dict) -> None:
    """Judge a row; take it as a record if it says whose ROI it is, under which name and how large."""
    task, name = (row['task'] or '').strip(), (row['name'] or '').strip()
    if task != TASK:
        return
    roi = name or f'line {line}'
    subject = f'{OVERVIEW}, line {line} ({roi})'
    overview.names.append(roi)
    found: list[Finding] = []

    def report(kind: str, detail: str) -> None:
        found.append(Finding(kind, subject, detail, roi))

    if None in row or None in row.values():
        report('row-fields', f'it has not the {len(row) - (None in row)} fields of the header')
    row = {k: (v or '').strip() for k, v in row.items() if k}
    if not SAFE_NAME.fullmatch(name):
        report('name-unsafe', f'the name {name!r} leads elsewhere or is no file name')
    if not row['patient_id']:
        report('patient-missing', 'it has no patient_id')
    number = re.fullmatch(r'patient(\d+)_he_roi\d+', name)
    digits = re.search(r'\d+', row['patient_id'])
    if number and digits and int(number[1]) != int(digits[0]):
        report('name-patient', f'patient_id is {row["patient_id"]!r}')
    if row['split'] not in ('train', 'test'):
        report('split-unknown', f'split is {row["split"]!r}; train or test was expected')
    area, shape = _number(row['area_mm2']), _shape(row['shape'])
    if area is None:
        report('area-malformed', f'area_mm2 is {row["area_mm2"]!r}; a positive number was expected')
    if shape is None:
        report('shape-malformed', f'shape is {row["shape"]!r}; "(H, W)" in pixels was expected')
    overview.findings += found
    if not any(f.severity == 'error' for f in found):
        metadata = {c: row[c] for c in METADATA}
        record = RoiRecord(
            name, row['patient_id'], row['split'], row['validation_fold'], area, shape, metadata, release
        )
        overview.records.append(record)


def _number(text: str) -> 'float | None':
    try:
        value = float(text)
    except ValueError:
        return None
    return value if 0 < value < float('inf') else None


def _shape(text: str) -> 'tuple[int, int] | None':
    match = re.fullmatch(r'[(\[]?\s*(\d{1,6})\s*[,x]\s*(\d{1,6})\s*[)\]]?', text)
    return (int(match[1]), int(match[2])) if match and int(match[1]) and int(match[2]) else None


def _check_rows(overview: Overview) -> None:
    """What only shows when the rows are seen together."""
    findings = overview.findings
    spelled = defaultdict(set)
    for name, count in Counter(overview.names).items():
        spelled[name.casefold()].add(name)
        if count > 1:
            findings.append(Finding('name-duplicate', name, f'{count} rows have this name', name))
    for names in spelled.values():
        for name in sorted(names)[1:]:
            findings.append(Finding('name-case', name, f'{sorted(names)[0]} differs from it in case only', name))
    sides, folds = defaultdict(set), defaultdict(set)
    for record in overview.records:
        sides[record.patient].add(record.split == 'test')
        if record.split != 'test':
            folds[record.patient].add(record.fold)
    for patient in sorted(p for p, s in sides.items() if len(s) > 1):
        findings.append(Finding('official-leak', f'patient {patient}', 'it stands in both training and test rows'))
    leaking = sum(len(f) > 1 for f in folds.values())
    if leaking:
        findings.append(Finding('folds-leak', OVERVIEW, f'{leaking} patient(s) stand in several of its folds'))


def _check_label_map(release: Path) -> 'list[Finding]':
    try:
        found = json.loads((release / LABEL_MAP).read_text(encoding='utf-8-sig'))
    except FileNotFoundError:
        return [Finding('label-map-missing', LABEL_MAP, 'it is not there')]
    except (OSError, ValueError, RecursionError) as error:
        return [Finding('label-map-unreadable', LABEL_MAP, f'it is no JSON ({error})')]
    if found != RAW_LABEL_MAP:
        return [Finding('label-map-changed', LABEL_MAP, 'it does not name the 17 labels of IGNITE with their ids')]
    return []


def surplus_files(release: Path, names: 'set[str]') -> 'list[Finding]':
    """H&E pictures that no row of the overview lists."""
    findings = []
    for folder in ('images', 'annotations'):
        for path in sorted((release / folder / 'he').glob('*')):
            if path.suffix.lower() == '.png' and path.stem.removesuffix(CONTEXT) not in names:
                findings.append(Finding('file-surplus', f'{folder}/he/{path.name}', f'{OVERVIEW} does not list it'))
    return findings
