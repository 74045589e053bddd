"""What the tools call: looking at the data, training, testing, predicting."""

from .browsing import browse
from .configuration import load_config
from .predictor import Predictor, predict_files
from .testing import test
from .training import train

__all__ = ['Predictor', 'browse', 'load_config', 'predict_files', 'test', 'train']
