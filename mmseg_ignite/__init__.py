"""IGNITE tissue segmentation of H&E lung-cancer slides as an MMSegmentation plugin.

Importing this package registers its data set, transforms, model parts, metric and hooks in mmseg's registries, so
``custom_imports = dict(imports=['mmseg_ignite'])`` is all that another config needs.
"""

from .environment import stack_fault
from .version import __version__

_fault = stack_fault()
if _fault:
    raise ImportError(f'mmseg_ignite cannot start: {_fault}')

from .engine import compatibility as _compatibility  # noqa: E402

_compatibility.apply()

from . import datasets, engine, evaluation, models  # noqa: E402
from .errors import IgniteError  # noqa: E402

__all__ = ['IgniteError', '__version__', 'datasets', 'engine', 'evaluation', 'models']
