"""Read the header of an .npy file strictly: no pickled object, no allocation, and the size of the file must match.

NumPy's reader accepts arrays of objects, which run code, and memory-maps arrays of other orders and sizes.
Source of the layout: numpy.lib.format, versions 1.0 to 3.0.
"""

import math
import os
import re
from typing import NamedTuple

import numpy as np

_MAGIC = b'\x93NUMPY'
_MOST = 1024  # bytes; NumPy writes 128 for a few axes
_HEADER = re.compile(
    r"\{'descr': '([|<>=]?[a-zA-Z]\d{0,4})', 'fortran_order': (True|False), "
    r"'shape': \((\d{1,19}(?:, \d{1,19}){0,7},?|)\), \} *\n"
)
_DTYPES = {'|u1': np.dtype(np.uint8), '<u2': np.dtype('<u2')}


class NpyHeader(NamedTuple):
    """What the header of an .npy file states."""

    shape: tuple[int, ...]
    dtype: np.dtype
    offset: int  # of the data, bytes


def read_header(path: str | os.PathLike) -> NpyHeader:
    """Read the header of an .npy file of uint8 or uint16 in C order.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not such a file, or its size differs from what its header states; the message is the reason.
    """
    with open(path, 'rb') as stream:
        content, size = stream.read(_MOST), os.fstat(stream.fileno()).st_size
    if not content.startswith(_MAGIC):
        raise ValueError('it does not start like an .npy file' if content else 'it is empty')
    digits = 2 if content[6:7] == b'\1' else 4
    start = 8 + digits
    offset = start + int.from_bytes(content[8:start], 'little')
    if len(content) < start or offset > len(content):
        raise ValueError(f'its header claims {offset} bytes, of which {min(len(content), _MOST)} were read')
    match = _HEADER.fullmatch(content[start:offset].decode('latin-1'))
    if not match:
        raise ValueError('its header is damaged, or of another kind of array')
    kind, fortran, shape = match[1], match[2] == 'True', tuple(int(n) for n in re.findall(r'\d+', match[3]))
    if kind not in _DTYPES:
        raise ValueError(f'it has values of the type {kind}; uint8 or uint16 was expected')
    if fortran and len(shape) > 1:
        raise ValueError('it is in Fortran order; C order was expected')
    expected = offset + math.prod(shape) * _DTYPES[kind].itemsize
    if size != expected:
        raise ValueError(f'it has {size:,} bytes; its header states {expected:,}')
    return NpyHeader(shape, _DTYPES[kind], offset)
