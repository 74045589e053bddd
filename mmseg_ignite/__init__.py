"""IGNITE tissue segmentation of H&E lung-cancer slides as an MMSegmentation plugin.

Importing this package registers its data sets, transforms, model parts, metric and hooks in mmseg's registries, so another
config needs only ``custom_imports = dict(imports=['mmseg_ignite'])``.
"""

from importlib.util import find_spec as _find_spec

from .environment import hide_broken_torchvision, paused_collection, stack_fault
from .version import __version__

if _fault := stack_fault():
    raise ImportError(f'mmseg_ignite cannot start: {_fault}')

with paused_collection():
    if _find_spec('timm') or _find_spec('transformers'):  # which mmseg and mmengine import, with torchvision
        hide_broken_torchvision()
    from .messages import quiet_imports as _quiet_imports

    with _quiet_imports():
        from . import datasets, engine, evaluation, models
        from .engine import compatibility as _compatibility
        from .errors import IgniteError
        from .packaged import config_path

_compatibility.apply()

__all__ = ['IgniteError', '__version__', 'config_path', 'datasets', 'engine', 'evaluation', 'models']
