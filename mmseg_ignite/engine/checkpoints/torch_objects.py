"""Tensors, storages and plain objects in checkpoints: what each name that a file refers to stands for.

A tensor is only made if all of it is inside its storage. Names that are not in the table cannot be referred to.
"""

import math
from dataclasses import dataclass

import torch

from .mmengine_objects import STAND_INS, ForeignContent

_MAX_DIMS = 32
_KEYS = (str, int, float, bool, type(None))
_NEW_DTYPES = [
    getattr(torch, name)
    for name in ('uint16', 'uint32', 'uint64', 'float8_e4m3fn', 'float8_e5m2', 'float8_e4m3fnuz', 'float8_e5m2fnuz')
    if hasattr(torch, name)
]
"""Numbers that have no storage class."""
_STORED = dict(
    Double=torch.float64, Float=torch.float32, Half=torch.float16, BFloat16=torch.bfloat16, Long=torch.int64, Int=torch.int32,
    Short=torch.int16, Char=torch.int8, Byte=torch.uint8, Bool=torch.bool, ComplexFloat=torch.complex64,
    ComplexDouble=torch.complex128,
)  # fmt: skip


@dataclass(frozen=True)
class StorageType:
    """Stands for a storage class, e.g. torch.FloatStorage."""

    dtype: torch.dtype


@dataclass(frozen=True, eq=False)
class Storage:
    """The bytes of one or more tensors, uint8 (bytes,)."""

    content: torch.Tensor
    dtype: torch.dtype

    def check(self) -> 'Storage':
        """Raise ForeignContent if truth values are not 0 or 1."""
        if self.dtype == torch.bool and self.content.numel() and self.content.max() > 1:
            raise ForeignContent('truth values other than 0 and 1')
        return self


def _tensor(
    storage: object, offset: object, size: object, stride: object, grad: object = False, hooks: object = None,
    metadata: object = None,
) -> torch.Tensor:  # fmt: skip
    """Stand for ``torch._utils._rebuild_tensor_v2``."""
    if type(storage) is not Storage or metadata:
        raise ForeignContent('a tensor of another kind')
    return _view(storage.content, storage.dtype, offset, size, stride)


def _new_tensor(
    storage: object, offset: object, size: object, stride: object, grad: object, hooks: object, dtype: object,
    metadata: object = None,
) -> torch.Tensor:  # fmt: skip
    """Stand for ``torch._utils._rebuild_tensor_v3``, whose numbers have no storage class."""
    if type(storage) is not Storage or metadata or not any(dtype is known for known in _NEW_DTYPES):
        raise ForeignContent('a tensor of another kind')
    return _view(storage.content, dtype, offset, size, stride)


def _view(content: torch.Tensor, dtype: torch.dtype, offset: object, size: object, stride: object) -> torch.Tensor:
    """Return a tensor of bytes (N,) if all of it is inside them."""
    numbers = [offset]
    for part in (size, stride):
        if type(part) not in (tuple, torch.Size) or len(part) > _MAX_DIMS:
            raise ForeignContent('a tensor without a shape')
        numbers += part
    if len(size) != len(stride) or not all(type(n) is int and 0 <= n < 1 << 62 for n in numbers):
        raise ForeignContent('a tensor whose shape is not valid')
    length = content.numel() // dtype.itemsize
    offset = offset if all(size) else 0  # an empty part of an empty tensor may begin anywhere
    last = offset + sum((n - 1) * step for n, step in zip(size, stride)) + 1 if all(size) else 0
    if last > length or math.prod(size) > length:
        raise ForeignContent(f'a tensor of shape {tuple(size)} that is larger than its data')
    return torch.empty(0, dtype=dtype).set_(content.untyped_storage(), offset, size, stride)


def _parameter(data: object, grad: object = False, hooks: object = None) -> torch.Tensor:
    if not isinstance(data, torch.Tensor):
        raise ForeignContent('a parameter that is not a tensor')
    return data


def _size(sides: object = ()) -> torch.Size:
    if type(sides) is not tuple or not all(type(side) is int for side in sides):
        raise ForeignContent('a size that is not made of numbers')
    return torch.Size(sides)


def _device(name: object, index: object = None) -> torch.device:
    if type(name) is not str or type(index) not in (int, type(None)):
        raise ForeignContent('a device without a name')
    return torch.device(name) if index is None else torch.device(name, index)


def encode(text: object, encoding: object = 'utf-8') -> bytes:
    """Stand for ``_codecs.encode``, by which bytes are pickled."""
    if type(text) is not str or encoding != 'latin1':
        raise ForeignContent('text in another encoding than latin1')
    return text.encode('latin1')


def _dict() -> dict:
    return {}


def _counts(counts: object = None) -> dict:
    """Stand for ``collections.Counter``, as which schedules store their milestones."""
    if type(counts) not in (dict, type(None)):
        raise ForeignContent('a counter of another form')
    return {} if counts is None else counts


def _set(items: object = ()) -> set:
    if type(items) is not list:
        raise ForeignContent('a set that is not made of a list')
    return set(map(checked_key, items))


def _complex(real: object, imaginary: object) -> complex:
    if type(real) is not float or type(imaginary) is not float:
        raise ForeignContent('a complex number of another form')
    return complex(real, imaginary)


def checked_key(key: object) -> object:
    """Return a key that can be hashed without harm: a deep tuple would crash, and large numbers may all have one hash."""
    if type(key) not in _KEYS or type(key) is int and not -1 << 60 < key < 1 << 60:
        raise ForeignContent(f'a key that is a {type(key).__name__}')
    return key


NAMES: dict[str, object] = {
    'collections.OrderedDict': _dict, 'collections.Counter': _counts, '_codecs.encode': encode, 'torch.Size': _size,
    'torch.device': _device, 'torch._utils._rebuild_tensor': _tensor, 'torch._utils._rebuild_tensor_v2': _tensor,
    'torch._utils._rebuild_tensor_v3': _new_tensor, 'torch._utils._rebuild_parameter': _parameter,
    'builtins.set': _set, 'builtins.complex': _complex, 'torch.storage.UntypedStorage': StorageType(torch.uint8),
    **{name: stand_in for stand_in, name in STAND_INS},
    **{f'torch.{name}Storage': StorageType(dtype) for name, dtype in _STORED.items()},
    **{str(dtype): dtype for dtype in (*_STORED.values(), *_NEW_DTYPES)},
}  # fmt: skip
CALLABLE = {id(value) for value in NAMES.values() if not isinstance(value, (StorageType, torch.dtype))}
"""Identities, since a value from a file must not be compared or hashed."""
