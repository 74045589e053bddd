"""What the tools call: training, testing, predicting."""

from .configuration import load_config
from .predictor import Predictor, predict_files
from .testing import test
from .training import train

__all__ = ['Predictor', 'load_config', 'predict_files', 'test', 'train']
