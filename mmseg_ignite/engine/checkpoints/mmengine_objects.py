"""Log histories and NumPy values in checkpoints of mmengine's own runner, read without building NumPy objects from a file.

A NumPy array that is rebuilt from a pickle trusts the file: a data type with an object field turns raw bytes into pointers
and crashes the process. Here each name that such a pickle refers to stands for a class of this module, which keeps only
numbers whose type and size were checked.
"""

import math
from dataclasses import dataclass
from typing import NoReturn

import torch

_DTYPES = {
    '?1': torch.bool, 'b1': torch.bool, 'i1': torch.int8, 'u1': torch.uint8, 'i2': torch.int16, 'i4': torch.int32,
    'i8': torch.int64, 'f2': torch.float16, 'f4': torch.float32, 'f8': torch.float64,
}  # fmt: skip
_MAX_DIMS = 32
STATISTICS = ('min', 'max', 'current', 'mean')
"""Methods of the log history that its pickles refer to."""


class ForeignContent(Exception):
    """A file has something that no checkpoint consists of; the text says what, e.g. 'a key that is a tuple'."""


def _refuse(what: str) -> NoReturn:
    raise ForeignContent(what)


class ArrayType:
    """Stands for ``numpy.ndarray`` itself, which a pickled array names as its class."""

    def __init__(self, *args: object) -> None:
        _refuse('a call of numpy.ndarray')


class DType:
    """Stands for ``numpy.dtype``: a number type in little-endian order, never an object or a structure."""

    def __init__(self, name: object = None, *flags: object) -> None:
        if type(name) is not str or name not in _DTYPES:  # others must not be hashed: a deep tuple would crash
            _refuse('a numpy dtype that is not a number')
        self.torch = _DTYPES[name]

    def __setstate__(self, state: object) -> None:
        """Check what pickle adds: (version, byte order, no structure, no fields, no shape, size, alignment, flags)."""
        valid = isinstance(state, tuple) and len(state) == 8 and state[1] in ('<', '|', '=')
        if not valid or state[2:] != (None, None, None, -1, -1, 0):
            _refuse('a numpy dtype with fields or another byte order')

    def tensor(self, data: object, shape: tuple[int, ...]) -> torch.Tensor:
        """Return a tensor of a copy of the bytes."""
        size = math.prod(shape) * self.torch.itemsize
        if not isinstance(data, bytes) or len(data) != size:
            _refuse(f'an array whose data are not {size} bytes')
        if not size:
            return torch.zeros(shape, dtype=self.torch)
        if self.torch == torch.bool and set(data) - {0, 1}:
            _refuse('truth values other than 0 and 1')
        return torch.frombuffer(bytearray(data), dtype=self.torch).reshape(shape)


class Array:
    """Stands for ``_reconstruct``, to which pickle then gives the content of an array."""

    tensor: torch.Tensor | None = None

    def __init__(self, *args: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        """Read (version, shape, dtype, is_fortran, data)."""
        valid = (
            isinstance(state, tuple) and len(state) == 5 and isinstance(state[1], tuple) and len(state[1]) <= _MAX_DIMS
        )
        if not valid or not all(type(side) is int and 0 <= side < 1 << 40 for side in state[1]):
            _refuse('an array')
        _, shape, dtype, is_fortran, data = state
        if not isinstance(dtype, DType):
            _refuse('an array without a number type')
        self.tensor = dtype.tensor(data, shape[::-1] if is_fortran else shape)
        if is_fortran:
            self.tensor = self.tensor.permute(*range(len(shape))[::-1])


def scalar(dtype: object = None, data: object = None, *rest: object) -> bool | int | float:
    """Stand for NumPy's scalar: return a Python number."""
    if not isinstance(dtype, DType):
        _refuse('a scalar without a number type')
    return dtype.tensor(data, ()).item()


def empty_bytes(*content: object) -> bytes:
    """Stand for ``bytes``, which the pickle of an array without elements calls without arguments."""
    return _refuse('bytes') if content else b''


def statistic(owner: object, name: object) -> str:
    """Stand for ``getattr``, with which the log history refers to its own four methods, and allow nothing else."""
    if owner is not History or type(name) is not str or name not in STATISTICS:
        _refuse('an attribute of an object')
    return name


@dataclass
class History:
    """Stands for mmengine's HistoryBuffer: the values of one logged number and their weights, tensors (N,)."""

    values: torch.Tensor | None = None  # until pickle gives the state
    counts: torch.Tensor | None = None
    max_length: int = 1_000_000

    def __setstate__(self, state: object) -> None:
        """Read the attributes of a HistoryBuffer; its methods are not taken from a file."""
        if not isinstance(state, dict):
            _refuse('a log history of another form')
        arrays = [state.get(key) for key in ('_log_history', '_count_history')]
        length = state.get('max_length')
        tensors = [array.tensor for array in arrays if isinstance(array, Array) and array.tensor is not None]
        valid = len(tensors) == 2 and all(t.ndim == 1 and len(t) == len(tensors[0]) for t in tensors)
        if not valid or type(length) is not int or length < 1:
            _refuse('a log history of another form')
        self.values, self.counts = tensors
        self.max_length = length


STAND_INS: list[tuple[object, str]] = [
    (History, 'mmengine.logging.history_buffer.HistoryBuffer'),
    (statistic, 'builtins.getattr'),
    (empty_bytes, 'builtins.bytes'),
    (ArrayType, 'numpy.ndarray'),
    (DType, 'numpy.dtype'),
]
for _module in ('numpy._core.multiarray', 'numpy.core.multiarray'):  # names in NumPy 2 and 1
    STAND_INS += [(Array, f'{_module}._reconstruct'), (scalar, f'{_module}.scalar')]
"""What a file gets for these names."""
