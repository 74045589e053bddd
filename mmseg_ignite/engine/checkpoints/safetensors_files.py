"""Checkpoints in the format safetensors: weights, and the ``meta`` of a training as JSON in the header.

The format has tensors and texts only, so a file can contain no code. transformers and other tools open the files, too. The
checksum is that of the content, as in other checkpoints of this package.
"""

import contextlib
import json
import os
import struct
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import safetensors.torch
import torch
from safetensors import safe_open
from torch import Tensor

from ...errors import IgniteError
from ...files import atomic_file, printable, writing
from .contents import CHECKSUM, checksum, plain
from .writing import sync, sync_folder

SUFFIX = '.safetensors'
META_KEY, CHECKSUM_KEY = 'mmseg_ignite.meta', 'mmseg_ignite.checksum'
"""Texts in the header: the ``meta`` of a checkpoint as JSON, and the checksum of weights and meta."""
_ZIP = b'PK\x03\x04'
"""First bytes of a file of torch."""
_MAX_HEADER = 1 << 24
"""Largest header that is read, 16 MiB: MiT-B5 has 0.1 MiB, and the library needs a multiple of it in memory."""
_DTYPES = (
    torch.float64, torch.float32, torch.float16, torch.bfloat16,
    torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool,
)  # fmt: skip


def is_safetensors(path: str | Path) -> bool:
    """Return whether a file is one of safetensors by its content: a length, and JSON; by its suffix if it is damaged."""
    with open(path, 'rb') as stream:
        start = stream.read(9)
    if Path(path).suffix.lower() == SUFFIX:
        return start[:4] != _ZIP
    return len(start) == 9 and struct.unpack('<Q', start[:8])[0] < 1 << 32 and start[8:] == b'{'


def read_safetensors(path: str | Path) -> dict:
    """Read a file into the CPU's memory: ``state_dict``, and ``meta`` and the checksum if this package wrote it.

    Raises:
        ValueError, SafetensorError: the file is damaged, its header is larger than 16 MiB, or it has numbers of another kind
            than float, bfloat16, int, uint8 and bool.
    """
    with open(path, 'rb') as stream:
        start = stream.read(8)
    length = struct.unpack('<Q', start)[0] if len(start) == 8 else 0
    if not 0 < length <= min(_MAX_HEADER, os.path.getsize(path) - 8):
        raise ValueError(f'its header of {length:,} bytes is larger than the file or than {_MAX_HEADER >> 20} MiB')
    with (
        _valid_name(path) as name,
        safe_open(name, framework='pt') as file,
    ):  # checks that the tensors fill the file, without gaps
        texts = file.metadata() or {}
        weights = {name: _owned(file.get_tensor(name), name) for name in sorted(file.keys())}
    result: dict = dict(state_dict=weights)
    if META_KEY in texts:
        try:
            result['meta'] = json.loads(texts[META_KEY])
        except (ValueError, RecursionError) as error:
            raise ValueError(f'its text {META_KEY} is not JSON') from error
    if CHECKSUM_KEY in texts:
        result[CHECKSUM] = texts[CHECKSUM_KEY]
    return result


@contextlib.contextmanager
def _valid_name(path: str | Path) -> Iterator[str]:
    """Yield a name of a file that the library can open: it refuses names that are not UTF-8."""
    if printable(path) == os.fspath(path):
        yield os.fspath(path)
        return
    with tempfile.TemporaryDirectory() as folder:
        link = os.path.join(folder, 'link')
        os.symlink(os.path.abspath(path), link)
        yield link


def _owned(value: Tensor, name: str) -> Tensor:
    """Return a copy that does not lie in the file, which may change later."""
    if value.dtype not in _DTYPES:
        raise ValueError(f'{name[:60]!r} has numbers of the type {str(value.dtype).removeprefix("torch.")}')
    if value.dtype == torch.bool and value.numel() and value.view(torch.uint8).max() > 1:
        raise ValueError(f'{name[:60]!r} has truth values other than 0 and 1')
    return value.clone()


def write_safetensors(path: str | Path, state_dict: Mapping[str, Tensor], meta: Mapping | None = None) -> None:
    """Write weights and the ``meta`` of their training, whole or not at all; tensors that share memory are written each.

    Equal content gives equal bytes.

    Args:
        path: name of the file; the folder is created.
        state_dict: tensors of any device and memory format.
        meta: of a checkpoint, with the :class:`TrainingRecord <mmseg_ignite.engine.training_record.TrainingRecord>`: texts,
            numbers, None, lists and dictionaries; arrays become lists, and keys texts. Defaults to None: bare weights.

    Raises:
        IgniteError: the file cannot be written, or something cannot be stored in it.

    Example:
        >>> checkpoint = open_checkpoint('work_dirs/b0/iter_20000.pth')
        >>> write_safetensors('b0.safetensors', checkpoint['state_dict'], checkpoint['meta'])
    """
    weights = {str(name): plain(state_dict[name]) for name in sorted(state_dict)}
    content: dict = dict(state_dict=weights)
    texts = {'format': 'pt'}  # asked for by transformers
    wrong = next((name for name, value in weights.items() if value.dtype not in _DTYPES), None)
    try:
        if meta is not None:
            texts[META_KEY] = json.dumps(plain(meta), default=_as_list)
            content['meta'] = json.loads(texts[META_KEY])
    except (TypeError, ValueError) as error:
        wrong = f'its meta ({error})'
    if wrong:
        raise IgniteError(f'{printable(path)} cannot hold {wrong}; numbers and text were expected: write a .pth file.')
    texts[CHECKSUM_KEY] = checksum(content)
    with writing(path):
        with atomic_file(path) as partial, open(partial, 'wb') as stream:
            _write(stream, safetensors.torch.save(_unshared(weights), texts))
            sync(stream)
        sync_folder(Path(path).parent)


def _write(stream: BinaryIO, content: bytes) -> None:
    """Write the content of a file with sorted texts: the library's order differs from process to process."""
    end = 8 + struct.unpack('<Q', content[:8])[0]
    header = json.loads(content[8:end])
    header['__metadata__'] = dict(sorted(header['__metadata__'].items()))
    text = json.dumps(header, ensure_ascii=False, separators=(',', ':')).encode()
    text += b' ' * (-len(text) % 8)
    stream.write(struct.pack('<Q', len(text)) + text)
    stream.write(memoryview(content)[end:])


def _as_list(value: object) -> object:
    if isinstance(value, Tensor):
        return value.tolist()
    raise TypeError(f'{type(value).__name__} is neither a number nor text')


def _unshared(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights with a copy of each tensor whose memory another one has, too."""
    known: set[int] = set()
    result = {}
    for name, value in weights.items():
        place = value.untyped_storage().data_ptr()
        result[name] = value.clone() if place in known else value
        known.add(place)
    return result
