from .prediction_writer_hook import PredictionWriterHook
from .training_curves_hook import TrainingCurvesHook

__all__ = ['PredictionWriterHook', 'TrainingCurvesHook']
