"""Checks of the installed packages. Standard library only: this module must run in a broken installation.

The maintained onedl-* trio and the original mmengine, mmcv and mmsegmentation are supported. Both install the same import
packages, so they overwrite each other. A source tree on the Python path, which has no distribution metadata, is accepted too.
"""

from __future__ import annotations  # the doctor runs this module on older Python versions too

import contextlib
import gc
import importlib
import os
import sys
from collections.abc import Iterator
from importlib import metadata
from importlib.util import find_spec

STACK = {  # import package -> (maintained distribution, original distribution, others that install the same package)
    'mmengine': ('onedl-mmengine', 'mmengine'),
    'mmcv': ('onedl-mmcv', 'mmcv', 'mmcv-lite', 'mmcv-full'),
    'mmseg': ('onedl-mmsegmentation', 'mmsegmentation'),
}


def installed(distribution: str) -> str | None:
    """Return the installed version of a distribution, or None."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def stack_fault() -> str | None:
    """Return one sentence on what is wrong with the installed mmengine, mmcv and mmseg, or None."""
    for package, (maintained, original, *others) in STACK.items():
        found = [d for d in (maintained, original, *others) if installed(d)]
        names = ' '.join(found)
        if len(found) > 1:
            return (
                f"{names.replace(' ', ' and ')} are installed side by side and overwrite each other's files: run "
                f'"pip uninstall -y {names}" and then "pip install {maintained}".'
            )
        if not found and find_spec(package) is None:
            return (
                f'{package} is not installed: run "pip install {maintained}" (or {original}, see docs/installation.md).'
            )
        if names == 'mmcv-lite':
            remedy = 'run "pip uninstall -y mmcv-lite" and then "pip install onedl-mmcv".'
            return f'mmcv-lite has no compiled operators, which mmseg needs: {remedy}'
    return None


@contextlib.contextmanager
def paused_collection() -> Iterator[None]:
    """Pause Python's garbage collector. Imports make a million objects and no garbage: a tenth of their time is saved."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def stack_distribution(package: str) -> str | None:
    """Return the distribution that provides an import package of the stack, e.g. 'onedl-mmcv'; None if not installed."""
    return next((d for d in STACK[package] if installed(d)), None)


_HIDDEN: dict[str, str] = {}
"""What is wrong with a torchvision that :func:`hide_broken_torchvision` has hidden."""


def torchvision_fault() -> str | None:
    """Return one sentence if torchvision is installed but was built for another torch, else None."""
    if _HIDDEN or find_spec('torchvision') is None:
        return _HIDDEN.get('torchvision')
    try:
        importlib.import_module('torchvision')
    except Exception as error:  # a missing operator is a RuntimeError
        return (
            f'torchvision {installed("torchvision")} does not fit torch {installed("torch")} ({error}), so timm cannot be '
            'used: install the build of torchvision for this torch, from where torch came from.'
        )
    return None


def hide_broken_torchvision() -> None:
    """Let a torchvision that was built for another torch count as absent in this process.

    mmengine, mmseg, timm and transformers are prepared for an absent torchvision, but not for the RuntimeError of such a one.
    """
    if 'torchvision' not in sys.modules and (fault := torchvision_fault()):
        _HIDDEN['torchvision'], sys.modules['torchvision'] = fault, None


def cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
