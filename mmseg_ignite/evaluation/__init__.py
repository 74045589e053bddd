"""Scores from per-ROI counts: pooled, grouped, with intervals, by stratum."""

from .comparison import compare
from .confusion import confusion_matrix, scores
from .metrics import TissueMetric
from .run import Evaluation, write_run

__all__ = ['Evaluation', 'TissueMetric', 'compare', 'confusion_matrix', 'scores', 'write_run']
