"""timm and transformers import torchvision, and one built for CUDA does not import beside a torch for the CPU."""

import contextlib
import importlib
import sys

import pytest
import torch

_OPERATORS = ('nms', 'qnms')
_SCHEMA = '(Tensor dets, Tensor scores, float iou_threshold) -> Tensor'
_libraries = []


def import_or_skip(package, extra):
    """Import timm or transformers; skip the test if it is not installed.

    Such a torchvision refers to operators of its compiled part, which cannot be loaded: "operator torchvision::nms does not
    exist". The tests use none of them, so they are declared here without an implementation, for tests alone and only where
    the import fails. Users install a torchvision that fits their torch.
    """
    if sys.modules.get('torchvision', '') is None:  # hidden by the package
        del sys.modules['torchvision']
    with contextlib.suppress(ImportError):
        try:
            importlib.import_module('torchvision')
        except RuntimeError:
            _declare_operators()
    return pytest.importorskip(package, reason=f'{package} is not installed (extra [{extra}])', exc_type=ImportError)


def _declare_operators():
    for name in [name for name in sys.modules if name.partition('.')[0] == 'torchvision']:
        del sys.modules[name]
    library = torch.library.Library('torchvision', 'FRAGMENT')
    for operator in _OPERATORS:
        library.define(operator + _SCHEMA)
    _libraries.append(library)  # declarations end with their library
    importlib.import_module('torchvision')
