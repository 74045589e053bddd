from .class_weight_hook import ClassWeightHook
from .compile_hook import CompileHook
from .prediction_writer_hook import PredictionWriterHook
from .score_smoothing_hook import ScoreSmoothingHook
from .time_budget_hook import TimeBudgetHook
from .training_curves_hook import TrainingCurvesHook
from .validation_overlay_hook import ValidationOverlayHook

__all__ = [
    'ClassWeightHook',
    'CompileHook',
    'PredictionWriterHook',
    'ScoreSmoothingHook',
    'TimeBudgetHook',
    'TrainingCurvesHook',
    'ValidationOverlayHook',
]
