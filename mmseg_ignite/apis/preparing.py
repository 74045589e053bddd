"""Prepare a release and plot its splits."""

from pathlib import Path

from .. import preparation
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
