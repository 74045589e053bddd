"""The prepared data set: plain arrays and one readable index.

    index.json          format, classes, splits, ROIs left out, and for each ROI: patient, size, um/px, pixels per class,
                        encoding, stray pixels, checksums of its sources, context, metadata of the release
    audit.json          every finding of the audit
    splits.png          the share of each class's pixels in each part of each split
    images/NAME.npy     (H, W, 3) uint8 RGB
    labels/NAME.npy     (H, W) uint8, train ids 0..15, 255 unannotated
    points/NAME.npy     (N, 3) uint16 class, y, x: pixels around which class-aware crops are placed
    images, labels/NAME_with_context.npy    the same with the tissue around the ROI, labels 255 outside it

Plain .npy keeps rows in order on disk, so a crop touches only its own rows; one file an ROI lets workers and
processes share the page cache. The folder is published whole or not at all.
"""

import json
import mmap
import os
import shutil
import warnings
from functools import lru_cache
from pathlib import Path

import numpy as np

from ..errors import IgniteError
from ..labels import CLASSES
from .protocols import assert_no_leak, is_grouped, leaking_patients

INDEX = 'index.json'
AUDIT = 'audit.json'
FORMAT = 2
CONTEXT = '_with_context'
METADATA = ('roi_id', 'source', 'specimen_type', 'organ', 'histological_subtype', 'scanner')
"""Columns that the index keeps as they are in the release, for strata of the evaluation."""
FOLDERS = ('images', 'labels', 'points')
OWN = (INDEX, AUDIT, 'splits.png', *FOLDERS)
"""All that a prepared folder holds; one that holds anything else is never replaced."""


def image_path(root: str | Path, name: str) -> Path:
    """Where the image array of an ROI lies."""
    return Path(root) / 'images' / f'{name}.npy'


def label_path(root: str | Path, name: str) -> Path:
    """Where the label array of an ROI lies."""
    return Path(root) / 'labels' / f'{name}.npy'


def roi_name(name: str) -> str:
    """The name of an ROI from that or from the path of its image array."""
    return Path(name).name.removesuffix('.npy').removesuffix(CONTEXT) if name.endswith('.npy') else name


def points_path(root: str | Path, name: str) -> Path:
    """Where the points of an ROI lie."""
    return Path(root) / 'points' / f'{name}.npy'


def array_paths(root: str | Path, name: str, context: bool) -> list[Path]:
    """Return the paths of an ROI's arrays: image, labels, points and, with ``context``, image and labels around it."""
    around = name + CONTEXT
    paths = [image_path(root, name), label_path(root, name), points_path(root, name)]
    return [*paths, image_path(root, around), label_path(root, around)] if context else paths


def link_arrays(old: Path, new: Path, name: str, context: bool) -> bool:
    """Take over an ROI's arrays from one prepared folder into another; False if they are not all there and whole.

    Hard links cost nothing and survive the removal of ``old``; where the disk knows none, the files are copied.
    """
    paths = array_paths(old, name, context)
    if not all(_is_whole(p) for p in paths):
        return False
    for path in paths:
        target = new / path.relative_to(old)
        try:
            os.link(path, target)
        except OSError:
            shutil.copyfile(path, target)
    return True


def _is_whole(path: Path) -> bool:
    try:
        np.load(path, mmap_mode='r')
    except (OSError, ValueError, EOFError):
        return False
    return True


def read_index(root: str | Path) -> dict:
    """The index of a prepared data set.

    Raises:
        IgniteError: no prepared data set there, or of another format or class table.
    """
    path = Path(root) / INDEX
    try:
        index = json.loads(path.read_text(encoding='utf-8'))
    except FileNotFoundError:
        raise IgniteError(
            f'{root} holds no prepared data set (no {INDEX}): run "python tools/prepare_ignite.py '
            f'--release RELEASE --out {root}", or set data_root to where it is.'
        ) from None
    except (OSError, ValueError) as error:
        raise IgniteError(f'{path} cannot be read ({error}): prepare the data again.') from error
    if not isinstance(index, dict) or index.get('format') != FORMAT or index.get('classes') != list(CLASSES):
        raise IgniteError(f'{path} is no index of format {FORMAT} with the classes of IGNITE: prepare the data again.')
    try:
        names = [roi['name'] for roi in index['rois']]
        listed = {name for parts in index['splits'].values() for part in parts.values() for name in part}
    except (KeyError, TypeError, AttributeError) as error:
        raise IgniteError(f'{path} was changed ({type(error).__name__}: {error}): prepare the data again.') from error
    if len(set(names)) != len(names) or listed - set(names):
        wrong = sorted(listed - set(names)) or sorted({n for n in names if names.count(n) > 1})
        raise IgniteError(f'{path} was changed: {wrong[0]} is listed twice or in a split only: prepare the data again.')
    return index


def select(index: dict, protocol: str, part: str, where: str) -> list[dict]:
    """The ROI entries of one part of a split protocol, checked for leaking patients.

    Raises:
        IgniteError: the protocol or the part is not in the index, or a patient stands in two parts of a protocol that
            divides by patient. The one that divides by ROI warns with the number of patients.
    """
    splits = index['splits']
    if protocol not in splits:
        raise IgniteError(
            f'{where} has no split protocol {protocol!r}; it has {", ".join(splits)}: choose one of them.'
        )
    if part not in splits[protocol]:
        raise IgniteError(f'the split protocol {protocol} has no part {part!r}; it has {", ".join(splits[protocol])}.')
    if is_grouped(protocol):
        assert_no_leak(index['rois'], splits[protocol], where)
    elif leaks := leaking_patients(index['rois'], splits[protocol]):
        warnings.warn(
            f'the split {protocol} leaks: {len(leaks)} patients stand in more than one part, so its scores are too '
            'good; patient-8-1-1 does not leak.'
        )
    by_name = {r['name']: r for r in index['rois']}
    return [by_name[name] for name in splits[protocol][part]]


def check_context(entries: list[dict], where: str) -> None:
    """Raise IgniteError if an ROI was prepared without the tissue around it."""
    lacking = [e['name'] for e in entries if e.get('context') is None]
    if lacking:
        named = ', '.join(lacking[:5]) + (f' and {len(lacking) - 5} more' if len(lacking) > 5 else '')
        raise IgniteError(
            f'{where} has no tissue around {named}, which use_context=True needs: prepare the data again without '
            '--no-context (audit.json says what is wrong with their context files), leave these ROIs out, or set '
            'use_context=False.'
        )


def metadata(entry: dict) -> dict:
    """What the release says of an ROI of the index beside patient and resolution: organ, scanner, source, ..."""
    return {key: entry[key] for key in METADATA if key != 'roi_id' and key in entry}


def open_array(path: str | Path) -> np.ndarray:
    """Memory-map a prepared array, read-only.

    The map is closed with the array, so that the pages of one crop do not stay in a worker's memory; what costs time in
    opening an .npy file, its header, is remembered.

    Raises:
        IgniteError: missing or damaged.
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
    """Shape, dtype and offset of the data; the other arguments tell a file from the one it replaced."""
    array = np.load(path, mmap_mode='r')
    return array.shape, array.dtype, array.offset
