"""Verify a prepared data set: every array against the index and its checksum."""

from functools import partial
from pathlib import Path

from rich.console import Console

from ..datasets.index_schema import array_shapes
from ..datasets.prepared import read_index
from ..datasets.verification import roi_faults
from .audit import run_in_threads


def verify(out: str | Path, console: Console | None = None) -> list[str]:
    """Read all arrays of a prepared data set, with a progress bar, and print every fault.

    Args:
        out: prepared folder.
        console: for progress and faults.

    Returns:
        One sentence for each fault, in the order of the index.

    Raises:
        IgniteError: ``out`` is not a prepared data set, or its index is damaged.

    Example:
        >>> verify('data/ignite')
        []
    """
    console, entries = console or Console(), read_index(out)['rois']
    tasks = {entry['name']: partial(roi_faults, out, entry) for entry in entries}
    sizes = {entry['name']: sum(_size(Path(out) / name) for name in array_shapes(entry)) for entry in entries}
    found = run_in_threads(tasks, sizes, console, 'verified')
    faults = [fault for entry in entries for fault in found[entry['name']]]
    for fault in faults:
        console.print(fault, soft_wrap=True, markup=False, highlight=False)
    return faults


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0
