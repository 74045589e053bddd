from .prediction_writer_hook import PredictionWriterHook
from .score_smoothing_hook import ScoreSmoothingHook
from .training_curves_hook import TrainingCurvesHook
from .validation_overlay_hook import ValidationOverlayHook

__all__ = ['PredictionWriterHook', 'ScoreSmoothingHook', 'TrainingCurvesHook', 'ValidationOverlayHook']
