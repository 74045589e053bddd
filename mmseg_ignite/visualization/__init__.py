"""Overlays, contact sheets and plots, all in the same colours."""

from .overlay import draw_overlay
from .painter import colour_labels

__all__ = ['colour_labels', 'draw_overlay']
