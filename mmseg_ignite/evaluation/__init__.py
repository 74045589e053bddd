"""Scores from per-ROI confusion matrices."""

from .confusion import confusion_matrix, scores
from .metrics import TissueMetric

__all__ = ['TissueMetric', 'confusion_matrix', 'scores']
