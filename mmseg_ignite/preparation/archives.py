"""Unpacking the H&E images or masks of a release's zip archive, and nothing else of it."""

import re
import stat
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Literal

from ..errors import IgniteError
from ..files import atomic_file
from .release import SAFE_NAME

CHUNK = 1 << 20
MAX_NAME = 200
"""Longest member name in characters: file systems take 255 bytes, the temporary name needs some of them."""
DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, NotImplementedError)
"""What zipfile raises for an archive that is truncated, altered or no zip at all."""


def he_members(archive: Path, max_bytes: int) -> dict[str, zipfile.ZipInfo]:
    """The H&E PNGs of an archive by their plain file name, all of them checked.

    Args:
        archive: a zip with members '.../he/NAME.png'; everything else in it is passed over.
        max_bytes: what the members may declare together, unpacked.

    Raises:
        IgniteError: not a whole zip, no H&E member, or one that is unsafe to unpack.
    """
    with _open(archive) as content:
        return _checked(archive, content, max_bytes)


def extract_he_members(
    archive: Path, folder: Path, task: Literal['images', 'annotations'], max_bytes: int, advance: Callable[[int], None]
) -> int:
    """Unpack the H&E PNGs of an archive into ``folder/task/he``.

    Every member is checked before the first is written. A PNG is written under a temporary name and renamed, so
    it is whole or absent; one that is there with the right size and CRC-32 is left alone. One of the same name
    and other content is replaced.

    Args:
        archive: a zip with members '.../he/NAME.png'; everything else in it is passed over.
        folder: the release.
        task: the folder's name in the release.
        max_bytes: what the members may declare together, unpacked.
        advance: called with the number of bytes that were unpacked or found in place since the last call.

    Returns:
        The number of H&E PNGs, those found in place included.

    Raises:
        IgniteError: not a whole zip, no H&E member, one that is unsafe to unpack, or a destination that leads
            elsewhere through a symlink.
        OSError: ``folder`` cannot be written.
    """
    target = folder / task / 'he'
    for place in (target.parent, target):
        if place.is_symlink() or (place.exists() and not place.is_dir()):
            raise IgniteError(
                f'{place} is a symlink or a file; a real folder was expected: move it away and run again.'
            )
    with _open(archive) as content:
        members = _checked(archive, content, max_bytes)
        for name, info in members.items():
            if _is_unpacked(target / name, info):
                advance(info.file_size)
                continue
            with atomic_file(target / name) as partial, partial.open('wb') as out:
                for chunk in _inflate(archive, content, info):
                    out.write(chunk)
                    advance(len(chunk))
    return len(members)


def _open(archive: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(archive)
    except DAMAGE as error:
        raise IgniteError(
            f'{archive} cannot be read as a whole zip ({error}): delete it and fetch it again.'
        ) from error


def _is_he(path: str) -> bool:
    # Backslashes count as separators here, so that a hostile path is seen and refused, not passed over.
    parts = re.split(r'[/\\]', path)
    return parts[-2:-1] == ['he'] and parts[-1].endswith('.png') and parts[0] != '__MACOSX' and parts[-1][0] != '.'


def _fault(info: zipfile.ZipInfo) -> str | None:
    """Why a member must not be unpacked; its original name is judged, zipfile cuts the other at a NUL."""
    path, mode = info.orig_filename, info.external_attr >> 16
    pure = PurePosixPath(path)
    if '\0' in path or '\\' in path or pure.is_absolute() or '..' in pure.parts or re.match('[A-Za-z]:', path):
        return 'has an unsafe path'
    if not SAFE_NAME.fullmatch(pure.name) or len(pure.name) > MAX_NAME:
        return 'has no plain file name'
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG) or info.external_attr & 0x10:  # 0x10: a folder in MS-DOS terms
        return 'is a link or no regular file'
    if info.flag_bits & 0x1:
        return 'is encrypted'
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return f'is packed by method {info.compress_type}, not stored or deflated'
    return None


def _checked(archive: Path, content: zipfile.ZipFile, max_bytes: int) -> dict[str, zipfile.ZipInfo]:
    members, seen = {}, set()
    for info in content.infolist():
        if not _is_he(info.orig_filename) and not _is_he(info.filename):
            continue
        fault = _fault(info)
        name = PurePosixPath(info.filename).name
        if fault is None and name.lower() in seen:  # one file on file systems that ignore case
            fault = 'leads to the same file as another member'
        if fault:
            raise IgniteError(
                f'{archive}: the member {info.orig_filename!r} {fault}; PNGs under he/ with plain, distinct names were '
                'expected: it is not the archive of the release, fetch it again.'
            )
        seen.add(name.lower())
        members[name] = info
    if not members:
        raise IgniteError(f'{archive} holds no he/NAME.png: it is not the archive of the release, fetch it again.')
    total = sum(info.file_size for info in members.values())
    if total > max_bytes:
        raise IgniteError(
            f'{archive} would unpack to {total:,} bytes of H&E images, at most {max_bytes:,} were expected: '
            'it is not the archive of the release, fetch it again.'
        )
    return members


def _is_unpacked(path: Path, info: zipfile.ZipInfo) -> bool:
    if path.is_symlink() or not path.is_file() or path.stat().st_size != info.file_size:
        return False
    crc = 0
    with path.open('rb') as stream:
        while chunk := stream.read(CHUNK):
            crc = zlib.crc32(chunk, crc)
    return crc == info.CRC


def _inflate(archive: Path, content: zipfile.ZipFile, info: zipfile.ZipInfo) -> Iterator[bytes]:
    """The bytes of a member, never more than it declares; zipfile checks their CRC-32 at the end."""
    left = info.file_size
    try:
        with content.open(info) as stream:
            while chunk := stream.read(CHUNK):
                left -= len(chunk)
                if left < 0:
                    break
                yield chunk
        if left:
            raise zipfile.BadZipFile(f'{info.file_size:,} bytes were declared, another number is there')
    except DAMAGE as error:
        raise IgniteError(
            f'{archive}: the member {info.filename} is damaged ({error}): delete the archive and fetch it again.'
        ) from error
