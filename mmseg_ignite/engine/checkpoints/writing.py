"""Writing files so that a crash at any moment leaves the old file or the new one, whole and on the disk."""

import contextlib
import io
import os
import re
from pathlib import Path

import torch

from ...files import atomic_file, writing
from .contents import CHECKSUM, checksum

_PARTIAL = re.compile(r'\.(?:(?:best_.*|(?:iter|epoch)_\d+)\.\w+\.pth|last_checkpoint\.\w+)')
REMEDY = 'free some space or correct the permissions, then continue from the last checkpoint with --resume'


def write_checkpoint(checkpoint: dict, path: str | Path, remedy: str = REMEDY) -> None:
    """Write a checkpoint of plain content with its checksum: temporary file, flush, fsync, rename, fsync of the folder.

    Raises:
        IgniteError: the disk is full or cannot be written; no partial file is left and older files are unchanged.
    """
    checkpoint = {**checkpoint, CHECKSUM: checksum(checkpoint)}
    with writing(path, remedy):
        with atomic_file(path) as partial:
            save_tensors(checkpoint, partial)
        sync_folder(Path(path).parent)


def write_text(path: str | Path, text: str) -> None:
    """Write a text file as safely as a checkpoint, see :func:`write_checkpoint`."""
    with writing(path, REMEDY):
        with atomic_file(path) as partial, open(partial, 'w', encoding='utf-8') as stream:
            stream.write(text)
            sync(stream)
        sync_folder(Path(path).parent)


def remove_partial_files(folder: str | Path) -> None:
    """Remove temporary files of checkpoints that a killed run left in a folder."""
    for path in Path(folder).iterdir() if Path(folder).is_dir() else ():
        if _PARTIAL.fullmatch(path.name) and path.is_file() and not path.is_symlink():
            with contextlib.suppress(OSError):
                path.unlink()


class _Recorder(io.RawIOBase):
    """A file that keeps the OSError of a failed write, which torch replaces by a RuntimeError without a reason."""

    def __init__(self, stream: io.BufferedWriter) -> None:
        self.stream, self.error = stream, None

    def writable(self) -> bool:
        return True

    def write(self, data: bytes) -> int:
        try:
            return self.stream.write(data)
        except OSError as error:
            self.error = error
            raise


def save_tensors(content: dict, path: Path) -> None:
    """Write a dictionary with ``torch.save``; raise the OSError of a full disk, which torch hides, with its reason."""
    with open(path, 'wb') as stream:
        recorder = _Recorder(stream)
        try:
            torch.save(content, recorder)
        except RuntimeError as error:
            raise recorder.error or error from None
        sync(stream)


def sync(stream: io.IOBase) -> None:
    """Put what was written to a file on the disk."""
    stream.flush()
    os.fsync(stream.fileno())


def sync_folder(folder: Path) -> None:
    """Make the renaming last; not every system can open a folder."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
