"""Read the tables of an IGNITE release: its ROIs, their patients and the paths of their files."""

import contextlib
import csv
import io
import re
import unicodedata
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ..datasets.prepared import CONTEXT, METADATA
from ..errors import IgniteError
from ..files import printable
from .findings import Finding
from .label_map import read_label_map, unzipped

TASK = 'he_tissue_segmentation'
OVERVIEW = 'data_overview.csv'
COLUMNS = (
    'name', 'task', 'stain', 'split', 'validation_fold', 'patient_id', 'roi_id', 'source', 'specimen_type', 'organ',
    'histological_subtype', 'scanner', 'shape', 'area_mm2', 'original_tcga_id', 'image_path', 'annotation_path',
)  # fmt: skip
REQUIRED = ('name', 'task', 'patient_id', 'area_mm2')
OPTIONAL = ('split', 'validation_fold', 'shape', *METADATA)  # the other columns are not read
TASKS = ('images', 'annotations')
MAX_ROWS, MAX_COLUMNS, MAX_FIELD = 200_000, 200, 1000
"""Largest overview: rows, columns, and characters of a field; the release has some thousand rows and 17 columns."""
SAFE_NAME = re.compile(r'[A-Za-z0-9][A-Za-z0-9_.-]{0,199}')  # with its suffixes it must fit into 255 bytes
_PATIENT_ID = re.compile(r'^(?:patient|pat|pt|p|case|subject|id)?[\s_.:#-]*0*(\d.*?)(?:\.0+)?\Z')


@contextlib.contextmanager
def disk_errors(path: str | Path, remedy: str) -> Iterator[None]:
    """Turn an OSError of the block into an IgniteError that names its file, or else ``path``."""
    try:
        yield
    except OSError as error:
        where, reason = error.filename or path, error.strerror or error
        raise IgniteError(f'{where} cannot be written or read ({reason}): {remedy}.') from error


@dataclass(frozen=True)
class RoiRecord:
    """An H&E row of the overview."""

    name: str  # e.g. 'patient1_he_roi1', also the stem of its files
    patient: str  # patient id
    split: str  # 'train' or 'test' of the release
    fold: str  # 'fold0'..'fold4' of the release, or ''
    area_mm2: float | None  # None if missing or malformed
    shape: tuple[int, int] | None  # (H, W) in the overview; None if missing or malformed
    metadata: dict  # the columns METADATA
    images: Path  # folder of its images
    masks: Path

    def sources(self, context: bool = True) -> dict[str, Path]:
        """Return the paths of image, mask and, with ``context``, context_image and context_mask, which may not exist."""
        stems = {'': self.name} | ({'context_': self.name + CONTEXT} if context else {})
        folders = dict(image=self.images, mask=self.masks)
        return {head + kind: folder / f'{stem}.png' for head, stem in stems.items() for kind, folder in folders.items()}


@dataclass
class Overview:
    """Content of the tables of a release."""

    findings: list[Finding]  # the faults of rows and of the label map
    folders: dict[str, Path]  # folder of the H&E PNGs of each task
    ids: dict[int, int] | None  # {id in the masks: our id}; None if they are equal
    readable: bool = True  # whether the rows could be read at all
    names: list[str] = field(default_factory=list)  # every listed name
    records: list[RoiRecord] = field(default_factory=list)  # rows with a safe name, also if they have other faults


def read_overview(release: str | Path, label_map: str | Path | None = None) -> Overview:
    """Read the H&E segmentation ROIs of a release in the order of its overview, and the faults of each row.

    Raise IgniteError if ``release`` is not the folder of an unpacked release, or ``label_map`` is wrong, see
    :func:`mmseg_ignite.preparation.label_map.read_label_map`.
    """
    release, path = Path(release), Path(release) / OVERVIEW
    if not release.is_dir():
        raise IgniteError(f'{release} is not a folder; an unpacked IGNITE release was expected: check the path.')
    if not path.is_file():
        raise IgniteError(
            f'{release} has no {OVERVIEW}; the folder with images/, annotations/ and {OVERVIEW} was expected: check the '
            'path, or download the release with --download.'
        )
    ids, findings = read_label_map(release, label_map)
    folders = {task: _he_folder(release, task, findings) for task in TASKS}
    rows = _read_rows(path, findings)
    overview = Overview(findings, folders, ids, readable=rows is not None)
    for line, row in rows or ():
        _add_row(overview, line, row)
    if overview.readable and not overview.names:
        findings.append(Finding('overview-empty', OVERVIEW, f'it lists no row of the task {TASK}'))
    return overview


def _read_rows(path: Path, findings: list[Finding]) -> list[tuple[int, dict]] | None:
    """Return (line number, row) of each data row; None if the table is unusable."""
    try:
        content = unzipped(path, findings)
        if content.startswith(b'\xef\xbb\xbf'):
            findings.append(Finding('overview-bom', path.name, 'it begins with a byte order mark'))
        reader = csv.DictReader(io.StringIO(content.decode('utf-8-sig'), newline=''), strict=True)
        rows = _limited_rows(reader)
    except (OSError, EOFError, zlib.error, ValueError, MemoryError, csv.Error) as error:
        findings.append(Finding('overview-unreadable', path.name, f'it is not a UTF-8 table ({str(error)[:200]})'))
        return None
    columns = Counter(reader.fieldnames or ())
    missing, twice = [c for c in REQUIRED if not columns[c]], [c for c in REQUIRED + OPTIONAL if columns[c] > 1]
    if missing or twice:
        detail = f'it lacks the column(s) {", ".join(missing)}' if missing else f'it has {", ".join(twice)} twice'
        findings.append(Finding('overview-columns', path.name, detail))
        return None
    if absent := [c for c in OPTIONAL if not columns[c]]:
        findings.append(Finding('overview-optional', path.name, f'it lacks the column(s) {", ".join(absent)}'))
    return rows


def _limited_rows(reader: csv.DictReader) -> list[tuple[int, dict]]:
    """Return (line number, row) of each data row; raise ValueError if the table is larger than an overview may be."""
    rows: list[tuple[int, dict]] = []
    if len(reader.fieldnames or ()) > MAX_COLUMNS:
        raise ValueError(f'it has {len(reader.fieldnames)} columns; at most {MAX_COLUMNS} were expected')
    for row in reader:
        surplus = row.get(None) or []  # fields beyond the header
        if len(rows) == MAX_ROWS or len(surplus) > MAX_COLUMNS:
            raise ValueError(f'it has more than {MAX_ROWS:,} rows or {MAX_COLUMNS} columns')
        if any(len(field) > MAX_FIELD for field in (*row.values(), *surplus) if isinstance(field, str)):
            raise ValueError(f'line {reader.line_num} has a field of more than {MAX_FIELD:,} characters')
        rows.append((reader.line_num, row))
    return rows


def _add_row(overview: Overview, line: int, row: dict) -> None:
    """Check a row and add it; a row with a safe name becomes a record, so that its files are audited in any case."""
    task, name = (row['task'] or '').strip(), (row['name'] or '').strip()
    if task != TASK:
        return
    roi = name or f'line {line}'
    overview.names.append(roi)

    def report(kind: str, detail: str) -> None:
        overview.findings.append(Finding(kind, f'{OVERVIEW}, line {line} ({roi})', detail, roi))

    if None in row or None in row.values():
        report('row-fields', f'it does not have the {len(row) - (None in row)} fields of the header')
    row = {k: (v or '').strip() for k, v in row.items() if k}
    safe = SAFE_NAME.fullmatch(name) and not name.casefold().endswith(CONTEXT)
    if not safe:
        report('name-unsafe', f'the name {name[:80]!r} is a path, not a file name, too long, or ends in {CONTEXT}')
    if not row['patient_id']:
        report('patient-missing', 'it has no patient_id')
    number = re.fullmatch(r'patient(\d+)_he_roi\d+', name)
    digits = re.search(r'\d+', row['patient_id'])
    if number and digits and number[1].lstrip('0') != digits[0].lstrip('0'):
        report('name-patient', f'patient_id is {row["patient_id"]!r}')
    if row.get('split', 'train') not in ('train', 'test'):
        report('split-unknown', f'split is {row["split"]!r}; train or test was expected')
    area, shape = _number(row['area_mm2']), _shape(row.get('shape', ''))
    if area is None:
        report('area-malformed', f'area_mm2 is {row["area_mm2"]!r}; a positive number was expected')
    if shape is None and 'shape' in row:
        report('shape-malformed', f'shape is {row["shape"]!r}; "(H, W)" in pixels was expected')
    if safe:
        metadata = {c: row[c] for c in METADATA if c in row}
        split, fold = row.get('split', ''), row.get('validation_fold', '')
        folders = (overview.folders[task] for task in TASKS)
        overview.records.append(RoiRecord(name, row['patient_id'], split, fold, area, shape, metadata, *folders))


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if 0 < value < float('inf') else None


def _shape(text: str) -> tuple[int, int] | None:
    match = re.fullmatch(r'[(\[]?\s*(\d{1,6})\s*[,x]\s*(\d{1,6})\s*[)\]]?', text)
    return (int(match[1]), int(match[2])) if match and int(match[1]) and int(match[2]) else None


def compare_rows(names: list[str], records: list[RoiRecord]) -> list[Finding]:
    """Find names and patients that conflict between rows; excluded rows are not passed."""
    findings, spelled = [], defaultdict(set)
    for name, count in Counter(names).items():
        spelled[name.casefold()].add(name)
        if count > 1:
            findings.append(Finding('name-duplicate', name, f'{count} rows have this name', name))
    for group in spelled.values():
        for name in sorted(group) if len(group) > 1 else ():
            others = ', '.join(sorted(group - {name}))
            findings.append(Finding('name-case', name, f'{others} differs from it in case only', name))
    return findings + _check_patients(records)


def _check_patients(records: list[RoiRecord]) -> list[Finding]:
    """Find patients with several ids: splits compare ids as text and would leak."""
    same_id, same_name = defaultdict(list), defaultdict(list)
    for record in records:
        if not record.patient:
            continue
        same_id[_plain_id(record.patient)].append(record)
        if number := re.match(r'patient0*(\d+)_', record.name):
            same_name[number[1]].append(record)
    findings = {}
    for groups, what in ((same_id, 'the same patient_id in several spellings'), (same_name, 'names of one patient')):
        for group in groups.values():
            ids = sorted({r.patient for r in group})
            for name in (r.name for r in group if len(ids) > 1):
                detail = f'{what}: {", ".join(map(repr, ids))}'
                findings.setdefault(name, Finding('patient-spelling', name, detail, name))
    return list(findings.values())


def _plain_id(patient: str) -> str:
    """Normalise a patient_id: '01', '1.0' and 'Patient 1' become '1', but 'A1' and 'B1' may be of two hospitals."""
    return _PATIENT_ID.sub(r'\1', unicodedata.normalize('NFKC', patient).strip().casefold())


def leaks(records: list[RoiRecord]) -> list[Finding]:
    """Find patients that leak between the splits and folds of the release."""
    sides, folds = defaultdict(set), defaultdict(set)
    for record in records:
        sides[record.patient].add(record.split == 'test')
        if record.split != 'test':
            folds[record.patient].add(record.fold)
    findings = [
        Finding('official-leak', f'patient {patient}', 'it is in both training and test rows')
        for patient in sorted(p for p, s in sides.items() if len(s) > 1)
    ]
    if leaking := sum(len(f) > 1 for f in folds.values()):
        findings.append(Finding('folds-leak', OVERVIEW, f'{leaking} patient(s) are in several of its folds'))
    return findings


def _he_folder(release: Path, task: str, findings: list[Finding]) -> Path:
    """Find the folder with the H&E PNGs of a task: TASK/he, or TASK/FOLDER/he, as some loaders unpack it.

    Raise IgniteError if no such folder holds a PNG, or several do.
    """
    direct = release / task / 'he'
    wrapped = sorted(p for p in (release / task).glob('[!.]*/he') if p.parent.name not in ('he', '__MACOSX'))
    if _holds(direct, '.png'):
        return direct
    found = [p for p in wrapped if _holds(p, '.png')]
    if len(found) > 1:
        named = ', '.join(printable(p.parent.name) for p in found)
        raise IgniteError(
            f'{release / task} has several folders with he/*.png ({named}); one was expected: move the others away.'
        )
    for path in found:
        where = printable(path.relative_to(release).as_posix())
        findings.append(Finding('layout-nested', f'{task}/he', f'its PNGs are in {where}'))
        return path
    tiff = any(_holds(p, suffix) for p in (direct, *wrapped) for suffix in ('.tif', '.tiff'))
    also = '; it holds TIFF files, but only PNG files are read' if tiff else ''
    raise IgniteError(
        f'{release} has no PNG files in {task}/he, nor in {task}/FOLDER/he{also}: unpack {task}.zip of the release so that '
        f'they are in {task}/he, or download the release with --download.'
    )


def _holds(folder: Path, suffix: str) -> bool:
    return any(p.suffix == suffix for p in folder.glob('[!.]*'))


def surplus_files(folders: dict[str, Path], names: set[str]) -> list[Finding]:
    """Find H&E PNGs that are not in the overview; hidden files (``._NAME.png`` of macOS) do not count."""
    return [
        Finding('file-surplus', f'{task}/he/{printable(path.name)}', f'{OVERVIEW} does not list it')
        for task, folder in folders.items()
        for path in sorted(folder.glob('[!.]*'))
        if path.suffix.lower() == '.png' and path.stem.removesuffix(CONTEXT) not in names
    ]
