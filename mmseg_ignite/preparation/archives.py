"""Unpack the H&E images or masks of a release's zip archives, and nothing else."""

import re
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Literal

from rich.progress import Progress

from ..errors import IgniteError
from ..files import atomic_file, printable, write_json
from ..untrusted import MAX_GB_VARIABLE, max_decoded_bytes, read_json
from .client import RemoteFile
from .release import SAFE_NAME

STATE = 'download.json'
CHUNK = 1 << 20
MAX_NAME = 200  # characters of a member's name: file systems allow 255 bytes, and the temporary name needs some of them
DAMAGE = (
    zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError, ValueError, RuntimeError, OverflowError, MemoryError,
)  # fmt: skip
"""Errors of zipfile for an archive that is truncated, altered or not a zip."""


class Unpacker:
    """Unpack archives into a release and remember it in download.json, so that the archives may be deleted.

    The file holds {'archives': {name: {'size', 'md5', 'members': {PNG name: bytes}}}}.
    """

    def __init__(self, release: Path):
        self.release, self.path = release, release / STATE
        self.state = {'archives': {}}
        if not self.path.exists():
            return
        remedy = 'move it away and run the command again'
        self.state = read_json(self.path, remedy)
        archives = self.state.get('archives') if isinstance(self.state, dict) else None
        if not isinstance(archives, dict) or not all(map(_is_entry, archives.values())):
            raise IgniteError(
                f'{printable(self.path)} is not a list of unpacked archives as the download writes it; the size, md5 and '
                f'members of each were expected: {remedy}.'
            )

    def is_done(self, file: RemoteFile, task: str) -> bool:
        """Return whether this version of an archive was unpacked and its PNGs still have their sizes."""
        entry = self.state['archives'].get(file.name)
        if entry is None or (entry['size'], entry['md5']) != (file.size, file.md5):
            return False
        paths = {self.release / task / 'he' / name: size for name, size in entry['members'].items()}
        return all(path.is_file() and path.stat().st_size == size for path, size in paths.items())

    def unpack(self, file: RemoteFile, task: Literal['images', 'annotations'], progress: Progress) -> None:
        """Unpack an archive of the release folder, see :func:`extract_he_members`."""
        archive = self.release / file.name
        limit = max(4 * file.size, 1 << 30)  # masks may compress well; more than this is not an archive of PNGs
        members = {name: info.file_size for name, info in he_members(archive, limit).items()}
        bar = progress.add_task(f'unpacking {file.name}', total=sum(members.values()))
        extract_he_members(archive, self.release, task, limit, lambda n: progress.advance(bar, n))
        self.state['archives'][file.name] = {'size': file.size, 'md5': file.md5, 'members': members}
        write_json(self.path, self.state)


def _is_entry(entry: object) -> bool:
    """Return whether a value describes an unpacked archive."""
    if not isinstance(entry, dict) or not isinstance(entry.get('members'), dict):
        return False
    sizes, names = (entry.get('size'), *entry['members'].values()), entry['members']
    valid = all(type(size) is int and 0 <= size < 2**63 for size in sizes) and all(map(SAFE_NAME.fullmatch, names))
    return valid and isinstance(entry.get('md5'), str)


def he_members(archive: Path, max_bytes: int) -> dict[str, zipfile.ZipInfo]:
    """Return the H&E PNGs of an archive by file name, after checking all of them; see :func:`extract_he_members`."""
    try:
        with zipfile.ZipFile(archive) as content:
            infos = [info for info in content.infolist() if _is_he(info.orig_filename) or _is_he(info.filename)]
    except DAMAGE as error:
        raise IgniteError(
            f'{archive} cannot be read as a complete zip archive ({str(error)[:200]}): delete it and download it again.'
        ) from error
    members, seen = {}, set()
    for info in infos:
        fault, name = _fault(info), PurePosixPath(info.filename).name
        if name.lower() in seen:  # one file on file systems that ignore case
            fault = fault or 'has the same file name as another member'
        if fault:
            raise IgniteError(
                f'{archive}: the member {info.orig_filename!r} {fault}; PNGs under he/ with plain, distinct names were '
                'expected: it is not the archive of the release, download it again.'
            )
        seen.add(name.lower())
        members[name] = info
    total = sum(info.file_size for info in infos)
    if not members or total > max_bytes:
        found = f'would unpack to {total:,} bytes of H&E images' if members else 'has no member he/NAME.png'
        raise IgniteError(
            f'{archive} {found}; 1 to {max_bytes:,} bytes were expected: it is not the archive of the release, download it '
            'again.'
        )
    return members


def extract_he_members(
    archive: Path,
    folder: Path,
    task: Literal['images', 'annotations'],
    max_bytes: int,
    on_progress: Callable[[int], None],
) -> int:
    """Unpack the H&E PNGs of an archive into ``folder/task/he``; return their number.

    All members are checked before the first is written. Each PNG is written atomically. An existing file of the same
    size and CRC-32 is kept, one of other content is replaced. Members other than '.../he/NAME.png' are ignored.

    Args:
        archive: zip file.
        folder: the release.
        task: name of the folder in the release.
        max_bytes: limit of the total unpacked size that the members declare.
        on_progress: called with the number of bytes unpacked or found since the last call.

    Raises:
        IgniteError: the archive is damaged, has no H&E member or an unsafe one, or the destination is a symlink.
        OSError: ``folder`` cannot be written.
    """
    target = folder / task / 'he'
    for path in (target.parent, target):
        if path.is_symlink() or (path.exists() and not path.is_dir()):
            raise IgniteError(f'{path} is a symlink or a file; a real folder was expected: move it away and run again.')
    members = he_members(archive, max_bytes)
    with zipfile.ZipFile(archive) as content:
        for name, info in members.items():
            if _is_unpacked(target / name, info):
                on_progress(info.file_size)
                continue
            with atomic_file(target / name) as partial, partial.open('wb') as out:
                for chunk in _inflate(archive, content, info):
                    out.write(chunk)
                    on_progress(len(chunk))
    return len(members)


def _is_he(path: str) -> bool:
    # Backslashes count as separators here, so that a hostile path is refused instead of ignored.
    parts = re.split(r'[/\\]', path)
    return parts[-2:-1] == ['he'] and parts[-1].endswith('.png') and parts[0] != '__MACOSX' and parts[-1][0] != '.'


def _fault(info: zipfile.ZipInfo) -> str | None:
    """Return why a member must not be unpacked. The original name counts; zipfile cuts the other at a NUL."""
    path, mode = info.orig_filename, info.external_attr >> 16
    pure = PurePosixPath(path)
    if '\0' in path or '\\' in path or pure.is_absolute() or '..' in pure.parts or re.match('[A-Za-z]:', path):
        return 'has an unsafe path'
    if not SAFE_NAME.fullmatch(pure.name) or len(pure.name) > MAX_NAME:
        return 'does not have a plain file name'
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG) or info.external_attr & 0x10:  # 0x10: a folder in MS-DOS terms
        return 'is a link or not a regular file'
    if info.flag_bits & 0x1:
        return 'is encrypted'
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return f'is compressed by method {info.compress_type}, not stored or deflated'
    if info.file_size > (most := max_decoded_bytes()):
        return f'would unpack to {info.file_size:,} bytes, above the limit of {most / 1e9:g} GB that {MAX_GB_VARIABLE} sets'
    return None


def _is_unpacked(path: Path, info: zipfile.ZipInfo) -> bool:
    if not path.is_file() or path.is_symlink() or path.stat().st_size != info.file_size:
        return False
    crc = 0
    with path.open('rb') as stream:
        while block := stream.read(CHUNK):
            crc = zlib.crc32(block, crc)
    return crc == info.CRC


def _inflate(archive: Path, content: zipfile.ZipFile, info: zipfile.ZipInfo) -> Iterator[bytes]:
    """Yield the bytes of a member, never more than it declares; zipfile checks their CRC-32 at the end."""
    left = info.file_size
    try:
        with content.open(info) as stream:
            while chunk := stream.read(CHUNK):
                left -= len(chunk)
                if left < 0:
                    break
                yield chunk
        if left:
            raise zipfile.BadZipFile(f'it declares {info.file_size:,} bytes and has another number')
    except DAMAGE as error:
        raise IgniteError(
            f'{archive}: the member {info.filename} is damaged ({str(error)[:200]}): delete the archive '
            'and download it again.'
        ) from error
