"""The two file formats of ``torch.save``, read without pickle and with every size checked against the file."""

import io
import os
import struct
import zipfile
import zlib
from pathlib import Path
from typing import BinaryIO

import torch

from .mmengine_objects import ForeignContent
from .torch_objects import Storage, StorageType
from .unpickling import Interpreter, Stream

_ZIP = b'PK\x03\x04'
_MAGIC, _VERSION = 0x1950A86A20F9469CFC6C, 1001


def read_checkpoint(path: str | Path) -> object:
    """Read a file in torch's zip format, or in the format before torch 1.6, into the CPU's memory.

    Ordered dictionaries and counters become dictionaries, parameters become tensors, and all tensors are without gradient.
    Tensors that shared their memory still do.

    Raises:
        ForeignContent: the file has something other than tensors, plain containers and numbers.
        Exception: of any other type if the file is damaged: ValueError, EOFError, struct.error, zipfile.BadZipFile, ...
    """
    with open(path, 'rb') as file:
        size = os.fstat(file.fileno()).st_size
        start = file.read(4)
        file.seek(0)
        return (_Archive if start == _ZIP else _Legacy)(file, size).load()


class _Archive:
    """The zip format: a folder with ``data.pkl`` and an uncompressed entry per storage; their CRC is checked."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        with zipfile.ZipFile(file) as archive:
            found = archive.infolist()
        self.file, self.entries, self.storages = file, {entry.filename: entry for entry in found}, {}
        stored = all(e.compress_type == zipfile.ZIP_STORED and e.compress_size == e.file_size for e in found)
        if not stored or len(self.entries) != len(found) or sum(e.file_size for e in found) > size:
            raise ValueError('it has compressed or overlapping parts, which torch.save never writes')
        folders = {name.partition('/')[0] for name in self.entries}
        self.folder = folders.pop() if len(folders) == 1 else ''
        if f'{self.folder}/constants.pkl' in self.entries:
            raise ForeignContent('a TorchScript program')

    def load(self) -> object:
        order = f'{self.folder}/byteorder'
        if order in self.entries and bytes(self._read(order).numpy()) != b'little':
            raise ValueError('its numbers are not in little-endian order')
        content = self._read(f'{self.folder}/data.pkl').numpy().tobytes()
        return Interpreter(Stream(io.BytesIO(content), len(content)), self._storage).load()

    def _read(self, name: str) -> torch.Tensor:
        """Return the content of an entry, uint8 (bytes,)."""
        if (entry := self.entries.get(name)) is None:
            raise ValueError(f'it has no {name[-60:]!r}')
        self.file.seek(entry.header_offset)
        signature, name_length, extra_length = struct.unpack('<4s22xHH', self.file.read(30))
        if signature != _ZIP or entry.flag_bits & 1:
            raise ValueError('an entry of the archive is not where it should be')
        self.file.seek(name_length + extra_length, os.SEEK_CUR)
        content = torch.empty(entry.file_size, dtype=torch.uint8)
        if self.file.readinto(content.numpy()) != entry.file_size:
            raise EOFError('it ends within an entry')
        if zlib.crc32(content.numpy()) != entry.CRC:
            raise ValueError('an entry does not have its checksum')
        return content

    def _storage(self, kind: StorageType, key: str, numel: int) -> Storage:
        if key not in self.storages:
            self.storages[key] = Storage(self._read(f'{self.folder}/data/{key}'), kind.dtype).check()
        return _same(self.storages[key], kind, numel)


def _same(storage: Storage, kind: StorageType, numel: int) -> Storage:
    if storage.dtype != kind.dtype or numel * kind.dtype.itemsize != storage.content.numel():
        raise ValueError('a storage has another length or type than its tensor states')
    return storage


class _Legacy:
    """The format before torch 1.6: pickles of the format, the content and the storages' keys, then each length and bytes."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.file, self.stream, self.storages, self.left = file, Stream(file, size), {}, size

    def load(self) -> object:
        magic = Interpreter(self.stream).load()
        if type(magic) is not int or magic != _MAGIC:
            raise ForeignContent('a pickle that torch.save has not written')
        version, system = (Interpreter(self.stream).load() for _ in range(2))
        if version != _VERSION or type(system) is not dict or system.get('little_endian') is not True:
            raise ValueError('its format or byte order is not known')
        content = Interpreter(self.stream, self._storage).load()
        keys = Interpreter(self.stream).load()
        if type(keys) is not list or not all(type(key) is str for key in keys) or sorted(keys) != sorted(self.storages):
            raise ValueError('its list of storages does not fit its content')
        for storage in map(self.storages.get, keys):
            if struct.unpack('<q', self.stream.take(8))[0] * storage.dtype.itemsize != storage.content.numel():
                raise ValueError('a storage has another length than its tensor states')
            if self.file.readinto(storage.content.numpy()) != storage.content.numel():
                raise EOFError('it ends within a storage')
            storage.check()
        return content

    def _storage(self, kind: StorageType, key: str, numel: int) -> Storage:
        """Return a storage whose bytes are read later."""
        if key not in self.storages:
            self.left -= numel * kind.dtype.itemsize
            if self.left < 0:
                raise EOFError('its storages are longer than the file')
            self.storages[key] = Storage(torch.empty(numel * kind.dtype.itemsize, dtype=torch.uint8), kind.dtype)
        return _same(self.storages[key], kind, numel)
