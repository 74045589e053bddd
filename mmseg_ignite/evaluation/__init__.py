"""Scores computed from pixel counts per ROI: pooled, by group and stratum, with intervals."""

from .comparison import compare
from .confusion import confusion_matrix, scores
from .metrics import TissueMetric
from .run import Evaluation, write_run

__all__ = ['Evaluation', 'TissueMetric', 'compare', 'confusion_matrix', 'scores', 'write_run']
