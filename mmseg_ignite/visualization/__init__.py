"""Overlays, legends and plots: one palette, one look."""

from .overlay import colour_labels, draw_overlay

__all__ = ['colour_labels', 'draw_overlay']
