"""Raw release to prepared data set: reading, splitting, storing; and a synthetic release."""

from .prepare import prepare
from .store import read_index
from .synthetic import write_synthetic_release

__all__ = ['prepare', 'read_index', 'write_synthetic_release']
