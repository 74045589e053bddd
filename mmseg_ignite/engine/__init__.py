"""Around mmengine's runner: checkpoints, process groups, hooks."""

from .checkpoints import load_weights, open_checkpoint, safe_checkpoints
from .encoder_weights import set_encoder_weights
from .hooks import PredictionWriterHook, TrainingCurvesHook
from .optim_wrappers import HalfOptimWrapper

__all__ = [
    'HalfOptimWrapper',
    'PredictionWriterHook',
    'TrainingCurvesHook',
    'load_weights',
    'open_checkpoint',
    'safe_checkpoints',
    'set_encoder_weights',
]
