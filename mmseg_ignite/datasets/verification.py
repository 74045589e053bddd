"""Compare the arrays of a prepared data set with its index: shapes, values and SHA-256 checksums."""

import os
import random
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from ..errors import IgniteError
from ..files import printable, sha256
from ..labels import count_classes
from .index_schema import CONTEXT, array_shapes
from .prepared import label_path, open_array, read_labels, read_points

SAMPLE_SECONDS = 1.0
_MAX_SAMPLED = 1 << 28  # bytes; hashing a larger array would take longer than a sample may


def check_sample(
    root: str | Path, entries: Iterable[dict], use_context: bool = False, seconds: float = SAMPLE_SECONDS
) -> int:
    """Check the arrays of some ROIs, chosen at random, as far as the time allows; return how many checksums were compared.

    The first half of the time is for the headers of all arrays, which reveal missing, cut and exchanged files, the second for
    checksums, which reveal every changed bit. A random generator of its own chooses other arrays in each run.

    Args:
        root: prepared folder.
        entries: ROIs of its index; those without checksums (older indexes) are not compared.
        use_context: also check the arrays with the tissue around the ROI.
        seconds: limit of the time; an array that is being read is finished.

    Raises:
        IgniteError: an array is missing, damaged or changed.
    """
    start, rng = time.monotonic(), random.Random()
    entries = list(entries)
    rng.shuffle(entries)
    arrays = [(entry, name) for entry in entries for name in _names(entry, use_context)]
    for _, name in _until(arrays, start + seconds / 2):
        open_array(Path(root) / name)
    rng.shuffle(arrays)
    compared = 0
    for entry, name in _until(arrays, start + seconds):
        if _digest(entry, name) and os.path.getsize(Path(root) / name) <= _MAX_SAMPLED:
            check_digest(root, entry, name)
            compared += 1
    return compared


def _names(entry: dict, use_context: bool) -> list[str]:
    return [name for name in array_shapes(entry) if use_context or not name.endswith(f'{CONTEXT}.npy')]


def _until(items: Iterable[tuple[dict, str]], end: float) -> Iterator[tuple[dict, str]]:
    """Yield items until the time ``end`` of the monotonic clock."""
    for item in items:
        if time.monotonic() >= end:
            return
        yield item


def _digest(entry: dict, name: str) -> str | None:
    """Return the SHA-256 of an array in the index; older indexes have none, or another checksum, of 32 digits."""
    digest = entry.get('arrays', {}).get(name)
    return digest if digest is not None and len(digest) == 64 else None


def has_digests(entry: dict) -> bool:
    """Return whether the index has the SHA-256 of an array of an ROI; older indexes have none."""
    return any(_digest(entry, name) for name in entry.get('arrays', {}))


def check_digest(root: str | Path, entry: dict, name: str) -> None:
    """Raise IgniteError if an array file, e.g. 'images/NAME.npy', cannot be read or differs from its SHA-256 in the index."""
    path, expected = Path(root) / name, _digest(entry, name)
    if expected is None:
        raise IgniteError(
            f'{printable(path)} cannot be verified (the index has no SHA-256 of it): prepare the data again.'
        )
    try:
        found = sha256(path)
    except OSError as error:
        raise IgniteError(
            f'{printable(path)} cannot be read ({error.strerror or error}): prepare the data again.'
        ) from error
    if found != expected:
        raise IgniteError(
            f'{printable(path)} was changed since it was prepared (its SHA-256 is {found[:12]}..., {expected[:12]}... was '
            f'expected): check the disk with "python tools/prepare_ignite.py --verify --out {printable(root)}", then prepare '
            'the data again.'
        )


def roi_faults(root: str | Path, entry: dict) -> list[str]:
    """Check all arrays of an ROI completely; return one sentence for each fault."""
    faults: list[str] = []
    good = []
    for name in array_shapes(entry):
        with _collected(faults):
            open_array(Path(root) / name)
            good.append(name)
    for name in good:
        with _collected(faults):
            if name.startswith('labels/'):
                _check_labels(root, entry, name)
            elif name.startswith('points/'):
                read_points(root, entry)
        with _collected(faults):
            check_digest(root, entry, name)
    return faults


@contextmanager
def _collected(faults: list[str]) -> Iterator[None]:
    try:
        yield
    except IgniteError as error:
        faults.append(str(error))


def _check_labels(root: str | Path, entry: dict, name: str) -> None:
    labels = read_labels(Path(root) / name)
    found = count_classes(labels)
    if Path(root) / name == label_path(root, entry['name']) and (found != np.array(entry['pixels'])).any():
        raise IgniteError(
            f'{printable(Path(root) / name)} has other pixels of the classes than the index states (pixels): prepare the '
            'data again.'
        )
