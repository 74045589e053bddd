"""Around mmengine's runner: checkpoints, process groups, hooks."""

from .checkpoints import load_weights, open_checkpoint
from .hooks import PredictionWriterHook, TrainingCurvesHook

__all__ = ['PredictionWriterHook', 'TrainingCurvesHook', 'load_weights', 'open_checkpoint']
