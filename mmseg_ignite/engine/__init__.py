"""Around mmengine's runner: checkpoints, process groups, hooks."""

from .averages import ForeachEMA
from .checkpoints import DamagedCheckpoint, load_weights, open_checkpoint, safe_checkpoints
from .encoder_weights import set_encoder_weights
from .hooks import PredictionWriterHook, TrainingCurvesHook
from .loops import ResumableTrainLoop
from .optim_wrappers import HalfOptimWrapper, TissueOptimWrapper
from .parameter_groups import MergedOptimWrapperConstructor
from .runner import TissueRunner

__all__ = [
    'DamagedCheckpoint',
    'ForeachEMA',
    'HalfOptimWrapper',
    'MergedOptimWrapperConstructor',
    'PredictionWriterHook',
    'ResumableTrainLoop',
    'TissueOptimWrapper',
    'TissueRunner',
    'TrainingCurvesHook',
    'load_weights',
    'open_checkpoint',
    'safe_checkpoints',
    'set_encoder_weights',
]
