"""From a raw release to a prepared data set: download, audit, split and store; and write a synthetic release."""

from ..datasets.prepared import read_index
from .download import download_release
from .prepare import audit, prepare
from .synthetic import write_synthetic_release
from .verify import verify

__all__ = ['audit', 'download_release', 'prepare', 'read_index', 'verify', 'write_synthetic_release']
