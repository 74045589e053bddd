"""What the tools call: looking at the data, training, cross-validating, testing, predicting, scoring."""

from .browsing import browse
from .configuration import load_config
from .converting import convert_weights
from .cross_validation import cross_validate
from .exporting import export
from .predicting import predict, predict_files
from .predictor import Predictor
from .preparing import prepare, verify
from .publishing import regions
from .replaying import replay
from .scoring import compare_runs, read_groupings, rescore, score_folder
from .testing import test
from .training import train

__all__ = [
    'Predictor',
    'browse',
    'compare_runs',
    'convert_weights',
    'cross_validate',
    'export',
    'load_config',
    'predict',
    'predict_files',
    'prepare',
    'read_groupings',
    'regions',
    'replay',
    'rescore',
    'score_folder',
    'test',
    'train',
    'verify',
]
