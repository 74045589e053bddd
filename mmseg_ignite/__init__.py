"""IGNITE tissue segmentation of H&E lung-cancer slides as an MMSegmentation plugin.

Importing this package registers its data sets, transforms, model parts, metric and hooks in mmseg's registries, so another
config needs only ``custom_imports = dict(imports=['mmseg_ignite'])``.
"""

from .environment import stack_fault
from .environment import timm_hidden_if_broken as _timm_hidden_if_broken
from .version import __version__

if _fault := stack_fault():
    raise ImportError(f'mmseg_ignite cannot start: {_fault}')

from .messages import quiet_imports as _quiet_imports  # noqa: E402

with _quiet_imports(), _timm_hidden_if_broken():
    from . import datasets, engine, evaluation, models
    from .engine import compatibility as _compatibility
    from .errors import IgniteError
    from .packaged import config_path

_compatibility.apply()

__all__ = ['IgniteError', '__version__', 'config_path', 'datasets', 'engine', 'evaluation', 'models']
