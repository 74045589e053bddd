"""Checks of the installed stack. Standard library only: this module must run where the stack is broken.

Two stacks are supported. The maintained one is the onedl-* trio; the original one is mmengine, mmcv and
mmsegmentation. Both install the same import packages, so side by side one overwrites the other. A source tree on the
Python path, which has no distribution metadata, is accepted too.
"""

import os
from importlib import metadata
from importlib.util import find_spec

STACK = {  # import package -> (maintained distribution, original distribution)
    'mmengine': ('onedl-mmengine', 'mmengine'),
    'mmcv': ('onedl-mmcv', 'mmcv'),
    'mmseg': ('onedl-mmsegmentation', 'mmsegmentation'),
}
EXTRA_CLASHES = {'mmcv': ('mmcv-lite', 'mmcv-full')}


def installed(distribution: str) -> str | None:
    """The installed version of a distribution, or None."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def importable(package: str) -> bool:
    """Whether an import package is on the Python path, whoever put it there. The package is not imported."""
    return find_spec(package) is not None


def stack_fault() -> str | None:
    """One sentence on what is wrong with the installed mmengine, mmcv and mmseg, or None."""
    for package, candidates in STACK.items():
        found = [d for d in (*candidates, *EXTRA_CLASHES.get(package, ())) if installed(d)]
        if len(found) > 1:
            return (
                f"{' and '.join(found)} are installed side by side and overwrite each other's "
                f'files: run "pip uninstall -y {" ".join(found)}" and then '
                f'"pip install {candidates[0]}".'
            )
        if not found:
            if importable(package):
                continue
            return (
                f'the package {package} is not installed: run "pip install {candidates[0]}" '
                f'(or install {candidates[1]}, see docs/installation.md).'
            )
        if found[0] == 'mmcv-lite':
            return (
                'mmcv-lite has no compiled operators, which mmseg needs: run '
                '"pip uninstall -y mmcv-lite" and then "pip install onedl-mmcv".'
            )
    return None


def stack_distribution(package: str) -> str | None:
    """The distribution that provides an import package of the stack, e.g. 'onedl-mmcv'."""
    return next((d for d in STACK[package] if installed(d)), None)


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
