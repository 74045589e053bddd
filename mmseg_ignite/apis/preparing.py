"""Prepare a release and plot its splits; verify the result."""

from pathlib import Path

from .. import preparation
from ..errors import IgniteError
from ..files import printable
from ..visualization.split_shares import plot_split_shares


def prepare(release: str | Path, out: str | Path, **options) -> dict:
    """Run :func:`mmseg_ignite.preparation.prepare`, same arguments, and publish the figure splits.png with the data.

    Example:
        >>> index = prepare('data/release', 'data/ignite')
        >>> len(index['rois'])
        408
    """
    return preparation.prepare(
        release, out, add_files=lambda index, folder: plot_split_shares(index, folder / 'splits.png'), **options
    )


def verify(out: str | Path) -> None:
    """Compare every array of a prepared data set with the index and its SHA-256, and print all faults.

    Raises:
        IgniteError: there is a fault, or ``out`` is not a prepared data set.

    Example:
        >>> verify('data/ignite')
    """
    if faults := preparation.verify(out):
        raise IgniteError(
            f'{printable(out)} has {len(faults)} fault(s), listed above; an unchanged data set was expected: check the disk, '
            'and prepare the data again.'
        )
