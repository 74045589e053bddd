"""Atomic writing that never destroys foreign files; all files and folders are written through this module.

Results are signed: PNG, JPEG, HTML, SVG, PDF, TeX and Python files by a line or chunk with the checksum of the rest of the
file, JSON files by the key ``written_by`` (``schema_version`` in metrics.json). TIFF files may be large: the line after
their last byte, which TIFF readers ignore, has their size and the checksum of their first and last MiB (the first
directory, and the end of the data); a change of a tile in between that keeps the size is not seen. A file without a valid
signature is foreign, even if it has the name of one of our results, and is not replaced.
"""

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from .errors import IgniteError
from .version import __version__

WRITTEN_BY = f'mmseg_ignite {__version__}'
_FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)
_LINES = {'.html': b'<!-- %b -->\n', '.svg': b'<!-- %b -->\n', '.pdf': b'%% %b\n', '.tex': b'%% %b\n', '.py': b'# %b\n'}
_LINES['.jpg'] = b'\n%b\n'
"""Last line of a signed file by type, after the end of the picture for JPEG; PNG files have a chunk."""
_TIFF, _TIFF_LINE, _TIFF_SAMPLE = ('.tif', '.tiff'), b'\nWritten by mmseg_ignite, %016d bytes, CRC-32 %08x\n', 1 << 20
_SIGNATURE_TAIL = 128
"""Bytes at the end of a file that hold its signature."""
_RELEASE_PARTS = ((), ('images',), ('annotations',))
_MAX_JSON_BYTES = 1 << 28
_UNPRINTABLE = re.compile('[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]')
_RUNS = ('confusion.npz', 'run.json')
"""Signed files of which each folder of a run has one."""
_RUN_ARRAYS = {'names.npy', 'matrices.npy', 'classes.npy', 'metadata.npy'}


@contextlib.contextmanager
def writing(path: str | os.PathLike, remedy: str = 'choose another folder') -> Iterator[None]:
    """Turn an OSError of the block into an IgniteError, "PATH cannot be written (REASON): REMEDY."; put it outermost."""
    try:
        yield
    except OSError as error:
        raise IgniteError(f'{printable(path)} cannot be written ({error.strerror or error}): {remedy}.') from error


@contextlib.contextmanager
def full_disk_errors(folder: str | os.PathLike) -> Iterator[None]:
    """Turn the OSError of a full or read-only disk or a quota into an IgniteError; logs of mmengine raise it anywhere."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL_DISK:
            raise
        raise IgniteError(
            f'{printable(error.filename or folder)} cannot be written ({error.strerror}): free some space or correct the '
            'permissions; a training continues from its last checkpoint with --resume.'
        ) from error


def _permitted(mode: int) -> int:
    """Return ``mode`` without the bits of the umask; temporary files and folders are created private."""
    umask = os.umask(0)
    os.umask(umask)
    return mode & ~umask


@contextlib.contextmanager
def atomic_file(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary path next to ``path`` (same suffix); rename it to ``path`` on success, else remove it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f'.{path.stem[:40]}.', suffix=path.suffix, dir=path.parent)
    os.close(handle)
    partial = Path(name)
    try:
        yield partial
        partial.chmod(_permitted(0o666))
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def result_file(path: str | os.PathLike, replace: bool = False) -> Iterator[Path]:
    """Write a result with :func:`atomic_file` and sign it.

    Raise IgniteError if ``path`` exists and is foreign (see :func:`is_ours`), unless ``replace`` is set.
    """
    if not replace:
        _check_ours(Path(path))
    with atomic_file(path) as partial:
        yield partial
        if partial.suffix in ('.png', *_LINES):
            partial.write_bytes(_signed(partial.read_bytes(), partial.suffix))
        elif partial.suffix in _TIFF:
            line = _tiff_signature(partial, partial.stat().st_size)
            with open(partial, 'ab') as stream:
                stream.write(line)


def _signed(content: bytes, suffix: str) -> bytes:
    """Return ``content`` with its signature, whose length depends only on the suffix."""
    text = b'Written by mmseg_ignite, CRC-32 %08x' % zlib.crc32(content)
    if suffix != '.png':
        return content + _LINES[suffix] % text
    chunk = b'tEXtSoftware\0' + text
    chunk = struct.pack('>I', len(chunk) - 4) + chunk + struct.pack('>I', zlib.crc32(chunk))
    return content[:-12] + chunk + content[-12:]  # before the last chunk


def _tiff_signature(path: Path, size: int) -> bytes:
    """Return the line that follows the first ``size`` bytes of a TIFF file; its length is always the same."""
    with open(path, 'rb') as stream:
        checksum = zlib.crc32(stream.read(min(size, _TIFF_SAMPLE)))
        stream.seek(max(stream.tell(), size - _TIFF_SAMPLE))
        checksum = zlib.crc32(stream.read(size - stream.tell()), checksum)
    return _TIFF_LINE % (size, checksum)


def is_ours(path: str | os.PathLike) -> bool:
    """Return whether a file is an unchanged result of this package, as far as its type can tell.

    Text tables (.csv, .txt) have no signature; they are ours in the folder of one of our runs, or in a folder inside it.
    GeoJSON files are ours if ``records/STEM.json`` beside them has their checksum in its list.
    Damaged, hostile and missing files, folders and pipes are not ours; no content raises an error.
    """
    path = Path(path)
    suffix = path.suffix
    try:
        if not path.is_file() or (suffix == '.json' and path.stat().st_size > _MAX_JSON_BYTES):
            return False
        if suffix in ('.png', *_LINES):
            with open(path, 'rb') as stream:  # pictures of others are not read whole
                stream.seek(max(0, path.stat().st_size - _SIGNATURE_TAIL))
                if b'mmseg_ignite' not in stream.read():
                    return False
            content = path.read_bytes()
            end = len(content) - 12 * (suffix == '.png')
            start = end - len(_signed(b'', suffix))
            return start > 0 and _signed(content[:start] + content[end:], suffix) == content
        if suffix in _TIFF:
            size = path.stat().st_size - len(_TIFF_LINE % (0, 0))
            with open(path, 'rb') as stream:
                stream.seek(max(size, 0))
                return size > 0 and stream.read() == _tiff_signature(path, size)
        if suffix == '.geojson':
            record = json.loads((path.parent / 'records' / f'{path.stem}.json').read_bytes())
            return zlib.crc32(path.read_bytes()) in record['checksums'][path.name]
        if suffix == '.npz':
            with zipfile.ZipFile(path) as archive:
                return set(archive.namelist()) >= _RUN_ARRAYS
        if suffix in ('.csv', '.txt'):
            return any(is_ours(folder / run) for folder in path.parents[:2] for run in _RUNS)
        known = json.loads(path.read_bytes())
        return isinstance(known, dict) and (
            {'schema_version', 'mIoU'} <= known.keys() or str(known.get('written_by')).startswith('mmseg_ignite ')
        )
    except Exception:  # json, zipfile and zlib raise many types, and a deep list exceeds the recursion limit
        return False


def _check_ours(path: Path) -> None:
    if path.is_dir():
        raise IgniteError(f'{path} is a folder, but a file was to be written there: choose another output folder.')
    if path.exists() and not is_ours(path):
        reason = 'mmseg_ignite did not write it or it was changed since'
        raise IgniteError(f'{path} exists and is kept ({reason}): choose another output folder, or move the file away.')


def check_outputs(outputs: Iterable[str | os.PathLike], inputs: Iterable[str | os.PathLike] = ()) -> None:
    """Check the files that a tool is going to write before it computes anything. Results of earlier runs may be replaced.

    Raise IgniteError if an output is an input (or a link to one), in a release or prepared data set, foreign or not writable.
    """
    read = {identity: path for path in inputs if (identity := _identity(path))}
    paths = [Path(path) for path in outputs]
    for folder in dict.fromkeys(path.parent for path in paths):
        check_output_folder(folder)
    for path in paths:
        if source := read.get(_identity(path)):
            raise IgniteError(
                f'{path} would be written, but it is an input of this run ({source}): choose another folder.'
            )
        _check_ours(path)


def _identity(path: str | os.PathLike) -> tuple[int, int] | None:
    """Return what all names of a file share, or None if there is none."""
    try:
        return (status := os.stat(path)).st_dev, status.st_ino
    except OSError:
        return None


def check_output_folder(folder: str | os.PathLike) -> None:
    """Raise IgniteError if a folder, which need not exist yet, cannot be written, or is in a release or prepared data set."""
    try:
        real = Path(os.path.realpath(folder))
        os.lstat(real) if os.path.lexists(real) else real.exists()
    except (OSError, ValueError) as error:  # a name that is too long, or has a null byte
        reason = getattr(error, 'strerror', None) or error
        raise IgniteError(f'{printable(folder)} cannot be created ({reason}): choose another output folder.') from error
    for parent in (real, *real.parents):
        release = (parent / 'data_overview.csv').is_file() and real.relative_to(parent).parts[:1] in _RELEASE_PARTS
        if release or all((parent / name).exists() for name in ('index.json', 'labels', 'points')):
            kind = 'release' if release else 'prepared data set'
            raise IgniteError(
                f'{folder} is in the {kind} {parent}, which is never modified: choose a folder outside it.'
            )
    existing = next(parent for parent in (real, *real.parents) if os.path.lexists(parent))
    if not existing.is_dir():
        raise IgniteError(f'{folder} cannot be created because {existing} is a file: choose another output folder.')
    if not os.access(existing, os.W_OK | os.X_OK):
        raise IgniteError(f'{folder} cannot be written (no permission in {existing}): choose another output folder.')


def check_writable(folder: str | os.PathLike) -> None:
    """Create a folder; raise IgniteError if it cannot be created or written, or is a file."""
    with writing(folder, 'choose another folder, or change its permissions'):
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass


def visible_files(folder: str | os.PathLike, suffixes: tuple[str, ...]) -> list[Path]:
    """Return the entries of a folder with one of the suffixes (in any case), sorted, without hidden ones."""
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise IgniteError(f'{folder} cannot be read as a folder ({error.strerror}): check the path.') from error
    return [Path(folder) / n for n in names if n.lower().endswith(suffixes) and not n.startswith('.')]


def printable(name: str | os.PathLike) -> str:
    """Return a name, or another text, as valid text of one line: bytes that are not UTF-8 become ``\\xNN``.

    Line breaks and other control characters, which would change a terminal, are shown as in Python, e.g. ``\\n``.
    """
    return _UNPRINTABLE.sub(_escaped, os.fsdecode(name))


def _escaped(found: re.Match) -> str:
    code = ord(found[0])
    return f'\\x{code - 0xDC00:02x}' if 0xDC80 <= code <= 0xDCFF else found[0].encode('unicode_escape').decode()


def sha256(path: str | os.PathLike) -> str:
    """Return the SHA-256 of a file, 64 hex digits."""
    digest = hashlib.sha256()
    with open(path, 'rb') as stream:  # hashlib.file_digest needs Python 3.11
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def link_or_copy(source: str | os.PathLike, path: str | os.PathLike) -> None:
    """Hard-link ``source`` to ``path``, or copy it if the disk does not support links."""
    try:
        os.link(source, path)
    except OSError:
        shutil.copyfile(source, path)


def link_file(source: str | os.PathLike, path: str | os.PathLike) -> None:
    """Link or copy a file atomically, replacing ``path``."""
    with atomic_file(path) as partial:
        partial.unlink()
        link_or_copy(source, partial)


@contextlib.contextmanager
def atomic_directory(path: str | os.PathLike, own: tuple[str, ...]) -> Iterator[Path]:
    """Yield an empty temporary folder next to ``path``; move it to ``path`` on success, else remove it.

    An older folder is replaced only if it has the first entry of ``own`` and no entry that is not in ``own``; anything else
    is an IgniteError. A link is followed, so that it keeps pointing at the folder's disk.
    """
    path = Path(os.path.realpath(path))
    if path.exists() and not path.is_dir():
        raise IgniteError(f'{path} is a file; a folder was expected: choose another output folder.')
    if path == Path.cwd():
        raise IgniteError(f'{path} is the current folder, which cannot be replaced: name a folder in it.')
    found = sorted(os.listdir(path)) if path.exists() else []
    foreign = [name for name in found if name not in own]
    if foreign or (found and own[0] not in found):
        names = ', '.join((foreign or found)[:3])
        raise IgniteError(f'{path} has other files ({names}) and is kept: choose a new or empty folder, or move them.')
    with writing(path, 'choose another output folder'):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f'.{path.name}.', dir=path.parent))
    try:
        partial.chmod(_permitted(0o777))
        yield partial
        _swap(partial, path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _swap(partial: Path, path: Path) -> None:
    """Replace ``path`` by ``partial``; if that fails, restore ``path``."""
    if not path.exists():
        partial.replace(path)
        return
    old = Path(tempfile.mkdtemp(prefix=f'.{path.name}.old.', dir=path.parent))
    try:
        path.replace(old)
        partial.replace(path)
    except BaseException:
        old.rmdir() if path.exists() else old.replace(path)
        raise
    shutil.rmtree(old, ignore_errors=True)


def write_json(path: str | os.PathLike, content: object) -> None:
    """Write JSON atomically; raise ValueError for NaN and infinity. File names that are not UTF-8 are read back unchanged."""
    with atomic_file(path) as partial:
        text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + '\n'
        # A byte that is not UTF-8 is a lone surrogate here; "\\udcff" is its JSON escape.
        partial.write_text(text, encoding='utf-8', errors='backslashreplace')


def write_result(path: str | os.PathLike, content: dict) -> None:
    """Write a result with :func:`write_json`, signed by the key ``written_by``; never replace a foreign file."""
    _check_ours(Path(path))
    write_json(path, dict(written_by=WRITTEN_BY, **content))
