"""The content of checkpoints: tensors, plain containers, and a checksum of all of it."""

import hashlib
import math
import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from ...errors import IgniteError
from ...files import printable
from .mmengine_objects import Array, History

CHECKSUM = 'checksum'
"""Key of a checkpoint that has the checksum of all other keys."""
_MAX_DEPTH, _MAX_VALUES = 40, 5_000_000
_MAX_AXES, _MAX_SIZE = 32, 1 << 62
_SCALARS = (str, int, float, bool, bytes, type(None), complex, torch.device, torch.dtype, torch.Size)
_BYTES_OF_VALUE = 4096


def plain(value: object) -> object:
    """Return a value with plain containers and tensors on the CPU instead of other mappings, arrays and NumPy numbers.

    The tensors are contiguous, so a file does not depend on the memory format of the weights.

    Raises:
        TypeError: the value, or one in it, is an object of another kind.
    """
    if isinstance(value, torch.Tensor):
        return value.detach().cpu().contiguous()
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray) and value.dtype.kind in 'biuf':
        return torch.from_numpy(np.ascontiguousarray(value))
    if isinstance(value, Mapping):
        return {key if type(key) is int else str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(map(plain, value)) if type(value) in (list, tuple) else list(map(plain, value))
    if isinstance(value, (bool, type(None))):
        return value
    for kind in (str, int, float):
        if isinstance(value, kind):
            return kind(value)
    raise TypeError(f'{type(value).__name__} cannot be stored in a checkpoint')


def checked(checkpoint: object, path: str | Path) -> dict:
    """Return what :func:`.file_formats.read_checkpoint` read as a dictionary whose whole content is known to be harmless.

    Arrays of NumPy become tensors; the weights become a plain dictionary.

    Raises:
        IgniteError: it is not a dictionary, has objects of other kinds, is nested too deeply, or its weights are not tensors
            by name.
    """
    if type(checkpoint) is not dict:
        raise IgniteError(
            f'{printable(path)} contains a {type(checkpoint).__name__}; a dictionary with a state_dict was expected: use a '
            'checkpoint.'
        )
    fault, found = '', {}
    try:
        found = _harmless(checkpoint, 0, [0])
    except ValueError as error:
        fault = str(error)
    if wrong := [key for key in found if not isinstance(key, str)]:
        fault = fault or f'a part with the name {str(wrong[0])[:60]}'
    weights = found.get('state_dict', {})
    if not isinstance(weights, dict):
        fault = fault or f'a state_dict that is a {type(weights).__name__}'
    elif not fault:
        wrong = [k for k, v in weights.items() if not isinstance(k, str) or not isinstance(v, torch.Tensor)]
        fault = f'{str(wrong[0])[:60]!r} in its state_dict, which is not a tensor with a name' if wrong else ''
    if not fault and not isinstance(found.get('meta', {}), (dict, type(None))):
        fault = f'a meta that is a {type(found["meta"]).__name__}'
    if fault:
        raise IgniteError(
            f'{printable(path)} has {fault}; tensors and plain containers were expected: use a checkpoint of tools/train.py '
            'or mmseg.'
        )
    if found.get('meta', {}) is None:
        del found['meta']
    return found


def _harmless(value: object, depth: int, count: list[int]) -> object:
    """Return the value with arrays as tensors; raise ValueError with what else it has.

    A file can refer to one value many times, so the values are counted as often as they occur, large ones more than once.
    """
    if isinstance(value, Array):
        if value.tensor is None:
            raise ValueError('an array without content')
        value = value.tensor
    size = value.nbytes if isinstance(value, torch.Tensor) else len(value) if isinstance(value, (str, bytes)) else 0
    if isinstance(value, torch.Tensor) and not _is_computable(value.shape):
        raise ValueError(f'a tensor of {value.ndim} axes, or with an axis that no memory can hold')
    count[0] += 1 + size // _BYTES_OF_VALUE
    if depth > _MAX_DEPTH or count[0] > _MAX_VALUES:
        raise ValueError('containers that are nested too deeply')
    if type(value) is History and value.values is None:
        raise ValueError('a log history without content')
    if type(value) in (torch.Tensor, History, *_SCALARS):
        return value
    if type(value) is dict:
        return {key: _harmless(inner, depth + 1, count) for key, inner in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_harmless(inner, depth + 1, count) for inner in value)
    if type(value) is set:  # of text and numbers
        return value
    raise ValueError(f'an object of the kind {type(value).__name__}')


def _is_computable(shape: torch.Size) -> bool:
    """Return whether torch can compute with a shape: an empty tensor may have any other axes, which overflow its strides."""
    return len(shape) <= _MAX_AXES and math.prod(max(size, 1) for size in shape) < _MAX_SIZE


def checksum(checkpoint: Mapping) -> str:
    """Return the SHA-256 of the content of a checkpoint: of every name, number and tensor, whatever the file's layout."""
    digest = hashlib.sha256()
    _feed(digest, {key: value for key, value in checkpoint.items() if key != CHECKSUM})
    return f'sha256:{digest.hexdigest()}'


def _feed(digest: object, value: object) -> None:
    if isinstance(value, torch.Tensor):
        digest.update(f'tensor {value.dtype} {tuple(value.shape)};'.encode())
        flat = value.detach().contiguous().as_strided((value.numel(),), (1,))  # one value may have any stride
        digest.update(flat.view(torch.uint8).numpy() if flat.numel() else b'')
    elif isinstance(value, Mapping):
        digest.update(f'dict {len(value)};'.encode())
        for key, inner in value.items():
            _feed(digest, key)
            _feed(digest, inner)
    elif isinstance(value, (list, tuple)):
        digest.update(f'{"list" if isinstance(value, list) else "tuple"} {len(value)};'.encode())
        for inner in value:
            _feed(digest, inner)
    elif isinstance(value, float):
        digest.update(b'float' + struct.pack('<d', value))
    else:
        text = str(value).encode('utf-8', 'surrogatepass')
        digest.update(f'{type(value).__name__} {len(text)};'.encode() + text)
