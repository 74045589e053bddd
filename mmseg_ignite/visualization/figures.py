"""Matplotlib figures. Matplotlib is imported by the first one: it takes a second, and most tools draw nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure with constrained layout, without pyplot, which would change a notebook's backend.

    Args:
        width: in inches.
        height: in inches.

    Example:
        >>> axis = new_figure(9, 3.6).subplots()
    """
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout='constrained')
