"""Prediction for images of any size: sliding windows at linear cost, and averaging over the symmetries of the square.

This package depends on neither mmseg nor a model, only on a function that predicts a batch of windows.

Example:
    >>> labels = slide_labels(predict, image, classes=16, crop_size=(512, 512), stride=(384, 384))  # (H, W) uint8
"""

from .symmetries import average_symmetries
from .tiling import grid, slide_labels, slide_logits, window_weights

__all__ = ['average_symmetries', 'grid', 'slide_labels', 'slide_logits', 'window_weights']
