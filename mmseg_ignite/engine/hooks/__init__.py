from .compile_hook import CompileHook
from .crop_growth_hook import CropGrowthHook
from .finite_loss_hook import FiniteLossHook
from .prediction_hooks import PredictionWriterHook, ValidationOverlayHook
from .score_smoothing_hook import ScoreSmoothingHook
from .time_budget_hook import TimeBudgetHook
from .tissue_checkpoint_hook import TissueCheckpointHook
from .training_curves_hook import TrainingCurvesHook

__all__ = [
    'CompileHook',
    'CropGrowthHook',
    'FiniteLossHook',
    'PredictionWriterHook',
    'ScoreSmoothingHook',
    'TimeBudgetHook',
    'TissueCheckpointHook',
    'TrainingCurvesHook',
    'ValidationOverlayHook',
]
