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

import mmap
import os
import warnings
from collections import defaultdict
from functools import lru_cache, partial
from pathlib import Path

import numpy as np

from ..errors import IgniteError
from ..files import link_or_copy, printable
from ..labels import IGNORE, NUM_CLASSES
from ..untrusted import read_json
from .index_schema import CONTEXT, FOLDERS, METADATA, array_shapes, check_index
from .npy import NpyHeader, read_header

INDEX = 'index.json'
AUDIT = 'audit.json'
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
            open_array(path)
    except IgniteError:
        return False
    for path in paths:
        link_or_copy(path, new / path.relative_to(old))
    return True


def read_index(root: str | Path) -> dict:
    """Read the index of a prepared data set and check every entry, see :func:`.index_schema.check_index`.

    Raises:
        IgniteError: there is none, or it is damaged or of another format or class table.

    Example:
        >>> read_index('data/ignite')['rois'][0]['name']
        'patient1_he_roi1'
    """
    path = Path(root) / INDEX
    if not os.path.lexists(path):
        raise IgniteError(
            f'{printable(root)} is not a prepared data set (no {INDEX}): run "python tools/prepare_ignite.py '
            f'--release RELEASE --out {printable(root)}", or set data_root to the prepared folder.'
        )
    index = read_json(path, 'prepare the data again')
    check_index(index, path)
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
    """Memory-map an array of a prepared data set, read-only, after checking it against the index.

    Its shape, type (uint8; uint16 of points), order (C) and the size of the file must be right. The map is closed with the
    array, so that the pages of one crop do not stay in a worker's memory. The checked header is cached.

    Raises:
        IgniteError: it is missing, damaged, or not the array that the index describes.
    """
    try:
        with open(path, 'rb') as stream:
            status = os.fstat(stream.fileno())
            header = _header(str(path), status.st_ino, status.st_mtime_ns, status.st_size)
            pages = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        return np.ndarray(header.shape, header.dtype, pages, header.offset)
    except (OSError, ValueError) as error:
        reason = getattr(error, 'strerror', None) or error
        raise IgniteError(f'{printable(path)} cannot be read ({reason}): prepare the data again.') from error


@lru_cache(maxsize=1 << 15)
def _header(path: str, inode: int, modified: int, size: int) -> NpyHeader:
    """Return the checked header of an array; the other arguments distinguish a file from one that it replaced."""
    header, folder = read_header(path), Path(path).parent
    expected = _stated_shape(folder.parent, f'{folder.name}/{Path(path).name}')
    kind = np.dtype(np.uint16 if folder.name == 'points' else np.uint8)
    if not _fits(header.shape, expected) or header.dtype != kind:
        stated = '(H, W) or (H, W, 3)' if expected is None else f'{expected}'.replace('None', 'N')
        raise ValueError(f'it is {header.shape} {header.dtype}; {stated} {kind} was expected')
    return header


def _fits(shape: tuple[int, ...], expected: tuple[int | None, ...] | None) -> bool:
    if expected is None:  # an array outside a prepared data set
        return len(shape) == 2 or (len(shape) == 3 and shape[2] == 3)
    return len(shape) == len(expected) and all(b is None or a == b for a, b in zip(shape, expected))


def _stated_shape(root: Path, name: str) -> tuple[int | None, ...] | None:
    """Return the shape that the index at ``root`` states for the array ``name``; None if there is no index."""
    try:
        status = os.stat(root / INDEX)
    except FileNotFoundError:
        return None
    shapes = _stated_shapes(str(root), status.st_ino, status.st_mtime_ns, status.st_size)
    if name not in shapes:
        raise ValueError(f'{INDEX} lists no such array')
    return shapes[name]


@lru_cache(maxsize=4)
def _stated_shapes(root: str, inode: int, modified: int, size: int) -> dict[str, tuple[int | None, ...]]:
    return {name: shape for entry in read_index(root)['rois'] for name, shape in array_shapes(entry).items()}


def read_labels(path: str | Path) -> np.ndarray:
    """Read a whole label array, (H, W) uint8; raise IgniteError as :func:`open_array` and :func:`check_labels` do."""
    labels = np.array(open_array(path))
    check_labels(labels, path)
    return labels


def check_labels(labels: np.ndarray, path: str | Path) -> None:
    """Raise IgniteError if an array of labels, uint8, has a value that is neither a train id 0..15 nor 255.

    ``path`` is the file that they were read from.
    """
    # One addition turns 255 into 0, so that a maximum finds all other values; both take 20 us for 512 x 512 px.
    if labels.size and (labels + np.uint8(1)).max() > NUM_CLASSES:
        wrong = labels[(labels >= NUM_CLASSES) & (labels != IGNORE)]
        raise IgniteError(
            f'{printable(path)} has the label {wrong[0]} in {wrong.size} px; 0..{NUM_CLASSES - 1}, or {IGNORE} where '
            'unannotated, was expected: prepare the data again.'
        )


def read_points(root: str | Path, entry: dict) -> np.ndarray:
    """Read the stored points of an ROI of the index, (N, 3) uint16 rows of class, y, x, sorted by class.

    Raises:
        IgniteError: the array is missing or damaged, has a point outside the ROI, or other classes than the ROI.
    """
    points = np.array(open_array(path := points_path(root, entry['name'])))
    pixels, classes = np.array(entry['pixels']), points[:, 0]
    fault = ''
    if (points >= (NUM_CLASSES, entry['height'], entry['width'])).any():
        fault = 'a point outside the ROI'
    elif (classes[1:] < classes[:-1]).any():
        fault = 'points that are not sorted by class'
    elif ((counts := np.bincount(classes, minlength=NUM_CLASSES)) > pixels).any() or (
        (counts == 0) & (pixels > 0)
    ).any():
        fault = 'points of other classes than the index'
    if fault:
        raise IgniteError(
            f'{printable(path)} has {fault}; pixels of each class in {entry["height"]} x {entry["width"]} px were expected: '
            'prepare the data again.'
        )
    return points
