"""Reading the IGNITE release: the overview table and one ROI's image and mask."""

import csv
import gzip
import hashlib
import io
import json
import re
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from ..errors import IgniteError
from ..labels import RAW_LABEL_MAP, DecodedMask, decode_mask

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
        um_per_px: 1000 * sqrt(area_mm2 / (H * W)).
        shape: (H, W) as the overview claims.
        metadata: the columns of METADATA.
    """

    name: str
    patient: str
    split: str
    fold: str
    um_per_px: float
    shape: tuple[int, int]
    metadata: dict
    image_path: Path
    mask_path: Path


def _overview_text(path: Path) -> str:
    content = path.read_bytes()
    if content[:2] == b'\x1f\x8b':  # one downloader keeps it gzip-compressed under its plain name
        content = gzip.decompress(content)
    return content.decode('utf-8-sig')


def _check_label_map(release: Path) -> None:
    path = release / LABEL_MAP
    try:
        found = json.loads(path.read_text(encoding='utf-8'))
    except FileNotFoundError:
        raise IgniteError(f'{path} is missing; the release has it beside {OVERVIEW}: download it too.') from None
    except ValueError as error:
        raise IgniteError(f'{path} is no JSON ({error}): download it again.') from error
    if found != RAW_LABEL_MAP:
        raise IgniteError(
            f'{path} does not name the 17 labels of IGNITE with their ids: it belongs to another data '
            'set or was changed; download it again.'
        )


def _record(release: Path, row: dict, line: int) -> RoiRecord:
    where = f'{release / OVERVIEW}, line {line}'
    name = row['name']
    if not SAFE_NAME.fullmatch(name):
        raise IgniteError(f'{where}: the name {name!r} is no plain file name: mend the table.')
    if not row['patient_id']:
        raise IgniteError(f'{where}: {name} has no patient_id, without which splits leak: mend the table.')
    try:
        height, width = (int(n) for n in row['shape'].strip('() ').split(','))
        area = float(row['area_mm2'])
        if not (height > 0 and width > 0 and 0 < area < float('inf')):
            raise ValueError
    except ValueError:
        raise IgniteError(
            f'{where}: {name} has shape {row["shape"]!r} and area_mm2 {row["area_mm2"]!r}; "(H, W)" in '
            'pixels and a positive number were expected: mend the table.'
        ) from None
    return RoiRecord(
        name,
        row['patient_id'],
        row['split'],
        row['validation_fold'] or '',
        1000 * (area / (height * width)) ** 0.5,
        (height, width),
        {c: row[c] for c in METADATA},
        release / 'images' / 'he' / f'{name}.png',
        release / 'annotations' / 'he' / f'{name}.png',
    )


def read_overview(release: 'str | Path') -> list[RoiRecord]:
    """The H&E segmentation ROIs of a release, in the order of its overview.

    Raises:
        IgniteError: no release at that path, missing columns, duplicate or unusable rows, another label map.
    """
    release = Path(release)
    path = release / OVERVIEW
    if not release.is_dir():
        raise IgniteError(f'{release} is no folder; an unpacked IGNITE release was expected: check the path.')
    if not path.is_file():
        raise IgniteError(
            f'{release} holds no {OVERVIEW}; the folder with images/, annotations/ and {OVERVIEW} was '
            'expected: check the path or download the release.'
        )
    try:
        reader = csv.DictReader(io.StringIO(_overview_text(path)))
        rows = list(reader)
    except (OSError, EOFError, UnicodeDecodeError, csv.Error) as error:
        raise IgniteError(f'{path} cannot be read as a table ({error}): download it again.') from error
    missing = [c for c in COLUMNS if c not in (reader.fieldnames or ())]
    if missing:
        raise IgniteError(f'{path} lacks the column(s) {", ".join(missing)}: download it again.')
    _check_label_map(release)
    records = [
        _record(release, {k: (v or '').strip() for k, v in row.items() if k}, line)
        for line, row in enumerate(rows, 2)
        if row['task'] == TASK
    ]
    if not records:
        raise IgniteError(f'{path} lists no row of the task {TASK}: it is not the overview of the H&E release.')
    names = [r.name for r in records]
    twice = sorted({n for n in names if names.count(n) > 1})
    if twice:
        raise IgniteError(f'{path} lists {", ".join(twice[:3])} more than once: remove the surplus rows.')
    return records


def read_image(path: Path) -> np.ndarray:
    """An ROI image as (H, W, 3) uint8 RGB.

    Raises:
        IgniteError: missing, unreadable, not 8 bit or not RGB.
    """
    if not path.is_file():
        raise IgniteError(f'{path} is missing: download the images again.')
    image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if image is None:
        raise IgniteError(f'{path} cannot be decoded: it is truncated or no image, download it again.')
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise IgniteError(
            f'{path} holds {image.dtype} values of shape {image.shape}; 8-bit RGB was expected: export it again as RGB.'
        )
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def read_mask(path: Path) -> DecodedMask:
    """A mask of the release in train ids (see :func:`mmseg_ignite.labels.decode_mask`).

    Palette PNGs give their indices, never the luminance of their colours.
    """
    if not path.is_file():
        raise IgniteError(f'{path} is missing, although its image is listed: download the annotations again.')
    try:
        with Image.open(path) as image:
            mask = np.array(image)
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise IgniteError(f'{path} cannot be decoded ({error}): download it again.') from error
    return decode_mask(mask, str(path))


def sha256(path: Path) -> str:
    """Hex SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open('rb') as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
