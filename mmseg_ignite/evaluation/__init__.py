"""Scores from per-ROI counts: pooled, grouped, with intervals, by stratum."""

from .comparison import compare
from .confusion import confusion_matrix, scores
from .evaluation import Evaluation, write_run
from .metrics import TissueMetric

__all__ = ['Evaluation', 'TissueMetric', 'compare', 'confusion_matrix', 'scores', 'write_run']
