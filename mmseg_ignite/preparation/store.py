"""The prepared data set: one folder of memory-mapped arrays and one readable index.

    index.json          format, classes, splits, and for each ROI: patient, size, um/px, pixels per class,
                        encoding, stray pixels, checksums of its sources, metadata of the release
    images/NAME.npy     (H, W, 3) uint8 RGB
    labels/NAME.npy     (H, W) uint8, train ids 0..15, 255 unannotated

Plain .npy keeps rows in order on disk, so a crop touches only its own rows; one file an ROI lets workers and
processes share the page cache. The folder is published whole or not at all.
"""

import json
from pathlib import Path

import numpy as np

from ..errors import IgniteError
from ..labels import CLASSES
from .splits import assert_no_leak

INDEX = 'index.json'
FORMAT = 1


def image_path(root: 'str | Path', name: str) -> Path:
    """Where the image array of an ROI lies."""
    return Path(root) / 'images' / f'{name}.npy'


def label_path(root: 'str | Path', name: str) -> Path:
    """Where the label array of an ROI lies."""
    return Path(root) / 'labels' / f'{name}.npy'


def read_index(root: 'str | Path') -> dict:
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
    if not isinstance(index, dict) or index.get('format') != FORMAT or tuple(index.get('classes', ())) != CLASSES:
        raise IgniteError(f'{path} is no index of format {FORMAT} with the classes of IGNITE: prepare the data again.')
    return index


def select(index: dict, protocol: str, part: str, where: str) -> 'list[dict]':
    """The ROI entries of one part of a split protocol, checked for leaking patients.

    Raises:
        IgniteError: the protocol or the part is not in the index, or a patient stands in two parts.
    """
    splits = index['splits']
    if protocol not in splits:
        raise IgniteError(
            f'{where} has no split protocol {protocol!r}; it has {", ".join(splits)}: choose one of them.'
        )
    if part not in splits[protocol]:
        raise IgniteError(f'the split protocol {protocol} has no part {part!r}; it has {", ".join(splits[protocol])}.')
    assert_no_leak(index['rois'], splits[protocol], where)
    by_name = {r['name']: r for r in index['rois']}
    return [by_name[name] for name in splits[protocol][part]]


def open_array(path: 'str | Path') -> np.ndarray:
    """Memory-map a prepared array, read-only."""
    try:
        return np.load(path, mmap_mode='r')
    except (OSError, ValueError, EOFError) as error:
        raise IgniteError(f'{path} cannot be read ({error}): prepare the data again.') from error
