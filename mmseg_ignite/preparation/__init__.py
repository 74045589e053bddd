"""Raw release to prepared data set: fetching, auditing, splitting, storing; and a synthetic release."""

from ..datasets.prepared import read_index
from .download import download_release
from .prepare import audit, prepare
from .synthetic import write_synthetic_release

__all__ = ['audit', 'download_release', 'prepare', 'read_index', 'write_synthetic_release']
