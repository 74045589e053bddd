"""The prepared data set: plain arrays and one readable index.

    index.json          format, classes, splits, excluded ROIs, and for each ROI: patient, size, um/px, pixels per class,
                        encoding, stray pixels, checksums of its sources, context, metadata of the release
    audit.json          every finding of the audit
    splits.png          the share of each class's pixels in each part of each split
    images/NAME.npy     (H, W, 3) uint8 RGB
    labels/NAME.npy     (H, W) uint8, train ids 0..15, 255 unannotated
    points/NAME.npy     (N, 3) uint16 class, y, x: pixels around which class-aware crops are placed
    images, labels/NAME_with_context.npy    the same with the tissue around the ROI, labels 255 outside it

A plain .npy file keeps rows in order on disk, so a crop touches only its own rows; with one file per ROI, workers and
processes share the page cache. The folder is written atomically.

The split protocols say which ROIs train, validate and test:

    patient-8-1-1    random split by patient, 8:1:1 (the default)
    roi-8-1-1        random split by ROI, 8:1:1; patients overlap, so scores are optimistic
    official         the release's own test ROIs; the other patients are split 8:1
    fold0 .. fold4   cross-validation: fold K validates, the other four train; all share one held-out test part

Except for ``roi-8-1-1``, all ROIs of a patient are in one part: a network recognises the stain and tissue of a patient
that it was trained on.
"""

import json
import mmap
import os
import warnings
from collections import defaultdict
from functools import lru_cache, partial
from pathlib import Path

import numpy as np

from ..errors import IgniteError
from ..files import link_or_copy
from ..labels import CLASSES

INDEX = 'index.json'
AUDIT = 'audit.json'
FORMAT = 2
CONTEXT = '_with_context'
METADATA = ('roi_id', 'source', 'specimen_type', 'organ', 'histological_subtype', 'scanner')
"""Columns of the release that the index keeps unchanged, for strata of the evaluation."""
FOLDERS = ('images', 'labels', 'points')
OWN = (INDEX, AUDIT, 'splits.png', *FOLDERS)
"""Entries of a prepared folder; a folder that has any other entry is never replaced."""
PARTS = ('train', 'val', 'test')
FOLDS = tuple(f'fold{number}' for number in range(5))
PROTOCOLS = ('patient-8-1-1', 'roi-8-1-1', 'official', *FOLDS)

Parts = dict[str, list[str]]
"""Names of ROIs by part."""


def _array_path(folder: str, root: str | Path, name: str) -> Path:
    return Path(root) / folder / f'{name}.npy'


image_path, label_path, points_path = (partial(_array_path, folder) for folder in FOLDERS)
"""(root, name) -> path of the image, label or points array of an ROI."""


def array_paths(root: str | Path, name: str, context: bool) -> list[Path]:
    """Return the paths of an ROI's arrays: image, labels, points and, with ``context``, image and labels around it."""
    paths = [path(root, name) for path in (image_path, label_path, points_path)]
    return paths + [path(root, name + CONTEXT) for path in (image_path, label_path) if context]


def roi_name(name: str) -> str:
    """Return the name of an ROI, given its name or the path of its image array."""
    return Path(name).stem.removesuffix(CONTEXT) if name.endswith('.npy') else name


def link_arrays(old: Path, new: Path, name: str, context: bool) -> bool:
    """Link (or copy) an ROI's arrays from one prepared folder into another; return False if any is missing or damaged."""
    paths = array_paths(old, name, context)
    try:
        for path in paths:
            np.load(path, mmap_mode='r')
    except (OSError, ValueError, EOFError):
        return False
    for path in paths:
        link_or_copy(path, new / path.relative_to(old))
    return True


def read_index(root: str | Path) -> dict:
    """Read the index of a prepared data set; raise IgniteError if there is none, or of another format or class table.

    Example:
        >>> read_index('data/ignite')['rois'][0]['name']
        'patient1_he_roi1'
    """
    path = Path(root) / INDEX
    try:
        index = json.loads(path.read_text(encoding='utf-8'))
        if index.get('format') != FORMAT or index.get('classes') != list(CLASSES):
            raise ValueError(f"not an index of format {FORMAT} with IGNITE's classes")
        names = [roi['name'] for roi in index['rois']]
        listed = {name for parts in index['splits'].values() for part in parts.values() for name in part}
        if wrong := sorted(listed - set(names)) or sorted(n for n in set(names) if names.count(n) > 1):
            raise ValueError(f'{wrong[0]} is listed twice or in a split only')
    except FileNotFoundError:
        raise IgniteError(
            f'{root} is not a prepared data set (no {INDEX}): run "python tools/prepare_ignite.py '
            f'--release RELEASE --out {root}", or set data_root to the prepared folder.'
        ) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise IgniteError(
            f'{path} cannot be read ({type(error).__name__}: {error}): prepare the data again.'
        ) from error
    return index


def by_name(index: dict) -> dict[str, dict]:
    """Return the ROI entries of an index by name."""
    return {entry['name']: entry for entry in index['rois']}


def is_grouped(protocol: str) -> bool:
    """Return whether a protocol splits by patient, so that no patient may be in two parts."""
    return protocol != 'roi-8-1-1'


def leaking_patients(rois: list[dict], parts: Parts) -> dict[str, list[str]]:
    """Return the patients that are in more than one part, sorted, and the parts of each."""
    patients, found = {r['name']: r['patient'] for r in rois}, defaultdict(list)
    for part, names in parts.items():
        for patient in {patients[name] for name in names}:
            found[patient].append(part)
    return {patient: found[patient] for patient in sorted(found) if len(found[patient]) > 1}


def assert_no_leak(rois: list[dict], parts: Parts, where: str) -> None:
    """Raise IgniteError if a patient is in two parts; for protocols that split by patient."""
    for patient, found in leaking_patients(rois, parts).items():
        raise IgniteError(
            f'{where}: patient {patient} is in {" and in ".join(found)}, so the split leaks: prepare the data again.'
        )


def select(index: dict, protocol: str, part: str, where: str) -> list[dict]:
    """Return the ROI entries of one part of a split protocol; raise IgniteError if ``index`` lacks the protocol or the part.

    If patients are in two parts, raise IgniteError, or warn if the protocol splits by ROI.
    """
    splits = index['splits']
    if protocol not in splits:
        raise IgniteError(f'{where} has no split protocol {protocol!r}: choose one of {", ".join(splits)}.')
    if part not in splits[protocol]:
        raise IgniteError(f'the protocol {protocol} has no part {part!r}: choose one of {", ".join(splits[protocol])}.')
    if is_grouped(protocol):
        assert_no_leak(index['rois'], splits[protocol], where)
    elif leaks := leaking_patients(index['rois'], splits[protocol]):
        warnings.warn(
            f'the split {protocol} leaks: {len(leaks)} patients are in more than one part, so its scores are optimistic; '
            'patient-8-1-1 does not leak.'
        )
    entries = by_name(index)
    return [entries[name] for name in splits[protocol][part]]


def check_context(entries: list[dict], where: str) -> None:
    """Raise IgniteError if an ROI was prepared without the tissue around it."""
    if missing := [e['name'] for e in entries if e.get('context') is None]:
        names = ', '.join(missing[:5]) + (f' and {len(missing) - 5} more' if len(missing) > 5 else '')
        raise IgniteError(
            f'{where} has no tissue around {names}, which use_context=True needs: prepare the data again without '
            '--no-context (audit.json lists the problems of their context files), exclude these ROIs, or set it to False.'
        )


def metadata(entry: dict) -> dict:
    """Return the release's metadata of an ROI of the index except its id: organ, scanner, source, ..."""
    return {key: entry[key] for key in METADATA if key != 'roi_id' and key in entry}


def open_array(path: str | Path) -> np.ndarray:
    """Memory-map a prepared array, read-only; raise IgniteError if it is missing or damaged.

    The map is closed with the array, so that the pages of one crop do not stay in a worker's memory. The header, which is
    the slow part of opening an .npy file, is cached.
    """
    try:
        with open(path, 'rb') as stream:
            status = os.fstat(stream.fileno())
            shape, dtype, offset = _header(str(path), status.st_ino, status.st_mtime_ns, status.st_size)
            pages = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        return np.ndarray(shape, dtype, pages, offset)
    except (OSError, ValueError, EOFError, TypeError) as error:
        raise IgniteError(f'{path} cannot be read ({error}): prepare the data again.') from error


@lru_cache(maxsize=4096)
def _header(path: str, inode: int, modified: int, size: int) -> tuple[tuple[int, ...], np.dtype, int]:
    """Return shape, dtype and offset of the data; the other arguments distinguish a file from one that it replaced."""
    array = np.load(path, mmap_mode='r')
    return array.shape, array.dtype, array.offset
