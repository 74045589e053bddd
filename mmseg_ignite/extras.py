"""Packages that only some tasks need, installed as extras of this package."""

from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

from .environment import torchvision_fault
from .errors import IgniteError


def import_extra(package: str, purpose: str, extra: str = 'slides') -> ModuleType:
    """Import a package of an extra.

    Args:
        package: Name to import, e.g. 'shapely' or 'rasterio.features'.
        purpose: What needs it, e.g. 'the outlines of regions'; the subject of the error message.
        extra: Name of the extra in setup.py. Defaults to 'slides'.

    Raises:
        IgniteError: It is not installed, or cannot be imported.

    Example:
        >>> shapely = import_extra('shapely', 'the outlines of regions')
    """
    try:
        return import_module(package)
    except (ImportError, OSError, RuntimeError) as error:  # the last two: a library that does not fit another
        if 'torchvision' in str(error) and (fault := torchvision_fault()):
            raise IgniteError(fault) from error
        name = package.partition('.')[0]
        found = 'is not installed' if find_spec(name) is None else f'cannot be imported ({error})'
        raise IgniteError(
            f'{name} {found}; {purpose} needs it: run "pip install \'mmseg_ignite[{extra}]\'".'
        ) from error
