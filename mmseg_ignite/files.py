"""Atomic writing that never destroys what we did not write: every file and folder of the package goes through here.

Results carry a signature: PNG, HTML, SVG, PDF and TeX files a line or chunk with the checksum of the rest of the file,
JSON files the key ``written_by`` (``schema_version`` in metrics.json). A file without a valid signature belongs to
somebody else, also if it has the name of one of our results, and is not replaced.
"""

import contextlib
import hashlib
import json
import os
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
_TAILS = {'.png': 12, '.html': 0, '.svg': 0, '.pdf': 0, '.tex': 0, '.py': 0}
"""Bytes at the end of a file of each type that its signature precedes: the last chunk of a PNG."""
_RUN = 'confusion.npz'
_RUN_ARRAYS = {'names.npy', 'matrices.npy', 'classes.npy', 'metadata.npy'}


def _permitted(mode: int) -> int:
    """A mode less what the umask forbids; temporary files and folders are made private."""
    umask = os.umask(0)
    os.umask(umask)
    return mode & ~umask


@contextlib.contextmanager
def atomic_file(path: str | os.PathLike) -> Iterator[Path]:
    """Give a temporary path beside ``path`` (same suffix); rename it into place on success, else remove it."""
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
    """:func:`atomic_file` for a result: it is signed, and a file that we did not write is not replaced.

    Args:
        replace: replace any file; for folders that were checked before.

    Raises:
        IgniteError: ``path`` exists and is not ours, see :func:`is_ours`.
    """
    path = Path(path)
    if not replace:
        _check_ours(path)
    with atomic_file(path) as partial:
        yield partial
        if path.suffix in _TAILS:
            partial.write_bytes(_signed(partial.read_bytes(), path.suffix))


def _signature(suffix: str, checksum: int) -> bytes:
    """The bytes that sign a file; their number depends on the suffix alone."""
    text = b'Written by mmseg_ignite, CRC-32 %08x' % checksum
    if suffix == '.png':
        chunk = b'tEXtSoftware\0' + text
        return struct.pack('>I', len(chunk) - 4) + chunk + struct.pack('>I', zlib.crc32(chunk))
    if suffix in ('.html', '.svg'):
        return b'<!-- ' + text + b' -->\n'
    return (b'# ' if suffix == '.py' else b'% ') + text + b'\n'


def _signed(content: bytes, suffix: str) -> bytes:
    place = len(content) - _TAILS[suffix]
    return content[:place] + _signature(suffix, zlib.crc32(content)) + content[place:]


def is_ours(path: str | os.PathLike) -> bool:
    """Whether a file is a result of ours and unchanged since, as far as its type can tell.

    Text tables have no room for a signature; they are ours in the folder of a run of ours, or in a folder inside it.
    """
    path = Path(path)
    suffix = path.suffix
    try:
        if suffix in _TAILS:
            content = path.read_bytes()
            end = len(content) - _TAILS[suffix]
            start = end - len(_signature(suffix, 0))
            return start > 0 and _signed(content[:start] + content[end:], suffix) == content
        if suffix == '.npz':
            with zipfile.ZipFile(path) as archive:
                return set(archive.namelist()) >= _RUN_ARRAYS
        if suffix in ('.csv', '.txt'):
            return any(is_ours(folder / _RUN) for folder in path.parents[:2])
        known = json.loads(path.read_bytes())
        return isinstance(known, dict) and (
            {'schema_version', 'mIoU'} <= known.keys() or str(known.get('written_by')).startswith('mmseg_ignite ')
        )
    except (OSError, ValueError, zipfile.BadZipFile):
        return False


def _check_ours(path: Path) -> None:
    if path.is_dir():
        raise IgniteError(
            f'{path} is a folder, and a file of that name is to be written: choose another output folder.'
        )
    if path.exists() and not is_ours(path):
        raise IgniteError(
            f'{path} is there already, and mmseg_ignite did not write it or it was changed since; it is left as it is: '
            'choose another output folder, or move the file away.'
        )


def check_outputs(outputs: Iterable[str | os.PathLike], inputs: Iterable[str | os.PathLike] = ()) -> None:
    """Check the files that a tool is going to write, before it computes anything. Results of earlier runs may be replaced.

    Args:
        outputs: the paths of the files.
        inputs: what the tool reads; links to a file count as that file.

    Raises:
        IgniteError: an output is an input, lies in a release or a prepared data set, is a file that we did not write, or
            cannot be written.
    """
    read = {identity: path for path in inputs if (identity := _identity(path)) is not None}
    checked = set()
    for path in map(Path, outputs):
        if (identity := _identity(path)) in read and identity is not None:
            raise IgniteError(
                f'{path} is to be written and is an input of the same run ({read[identity]}): choose another output folder.'
            )
        if path.parent not in checked:
            check_place(path.parent)
            checked.add(path.parent)
        _check_ours(path)


def _identity(path: str | os.PathLike) -> tuple[int, int] | None:
    """What two names of one file have in common; None if there is no such file."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def check_place(folder: str | os.PathLike) -> None:
    """Check that results may be written into a folder, which need not exist yet.

    Raises:
        IgniteError: it is a release, lies in its images or annotations or in a prepared data set, or cannot be written.
    """
    real = Path(os.path.realpath(folder))
    for place in (real, *real.parents):
        inside = real.relative_to(place).parts
        if (place / 'data_overview.csv').is_file() and inside[:1] in ((), ('images',), ('annotations',)):
            raise IgniteError(
                f'{folder} lies in the release {place}, which stays as it is: choose a folder outside it.'
            )
        if (place / 'index.json').is_file() and (place / 'labels').is_dir() and (place / 'points').is_dir():
            raise IgniteError(
                f'{folder} lies in the prepared data set {place}, which stays as it is: choose a folder outside it.'
            )
    there = next(place for place in (real, *real.parents) if os.path.lexists(place))
    if not there.is_dir():
        raise IgniteError(f'{folder} cannot be made, as {there} is a file: choose another output folder.')
    if not os.access(there, os.W_OK | os.X_OK):
        raise IgniteError(f'{folder} cannot be written (no permission in {there}): choose another output folder.')


def visible_files(folder: str | os.PathLike, suffixes: tuple[str, ...]) -> list[Path]:
    """The entries of a folder that have one of the suffixes (in any case), sorted; hidden ones, such as ``._a.png`` of
    macOS, are left out.

    Raises:
        IgniteError: there is no such folder, or it cannot be read.
    """
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise IgniteError(f'{folder} cannot be read as a folder ({error.strerror}): check the path.') from error
    return [Path(folder) / n for n in names if n.lower().endswith(suffixes) and not n.startswith('.')]


def printable(name: str | os.PathLike) -> str:
    """A file name as valid text: bytes that are not UTF-8 become ``\\xNN``."""
    return os.fsencode(name).decode('utf-8', 'backslashreplace')


def sha256(path: str | os.PathLike) -> str:
    """The SHA-256 of a file, 64 hex digits."""
    digest = hashlib.sha256()
    with open(path, 'rb') as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def link_file(source: str | os.PathLike, path: str | os.PathLike) -> None:
    """Put a file in a second place, atomically: a hard link, or a copy where the disk knows none."""
    with atomic_file(path) as partial:
        partial.unlink()
        try:
            os.link(source, partial)
        except OSError:
            shutil.copyfile(source, partial)


def _check_replaceable(path: Path, own: tuple[str, ...]) -> None:
    """Raise IgniteError unless ``path`` is absent, empty, or a folder that holds nothing but what we wrote."""
    if path.exists() and not path.is_dir():
        raise IgniteError(f'{path} is a file; a folder was expected: choose another output folder.')
    if path == Path.cwd():
        raise IgniteError(f'{path} is the current folder, which cannot be replaced: name a folder in it.')
    found = sorted(p.name for p in path.iterdir()) if path.exists() else []
    foreign = [name for name in found if name not in own]
    if foreign or (found and own[0] not in found):
        raise IgniteError(
            f'{path} holds other files ({", ".join((foreign or found)[:3])}) and is left as it is: choose a new or empty '
            'output folder, or move them away.'
        )


@contextlib.contextmanager
def atomic_directory(path: str | os.PathLike, own: tuple[str, ...]) -> Iterator[Path]:
    """Give an empty temporary folder beside ``path``; put it in the place of ``path`` on success.

    An older folder is replaced only if all its entries are among ``own``, the first of which must be there. A link is
    followed, so that it goes on pointing at the folder's disk.

    Raises:
        IgniteError: ``path`` holds anything else, or cannot be written.
    """
    path = Path(os.path.realpath(path))
    _check_replaceable(path, own)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f'.{path.name}.', dir=path.parent))
    except OSError as error:
        raise IgniteError(f'{path} cannot be written ({error.strerror}): choose another output folder.') from error
    try:
        partial.chmod(_permitted(0o777))
        yield partial
        _swap(partial, path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _swap(partial: Path, path: Path) -> None:
    """Put ``partial`` in the place of ``path``; if that fails, ``path`` is as it was."""
    if not path.exists():
        partial.replace(path)
        return
    old = Path(tempfile.mkdtemp(prefix=f'.{path.name}.old.', dir=path.parent))
    try:
        path.replace(old)
        partial.replace(path)
    except BaseException:
        if not path.exists():
            old.replace(path)
        else:
            old.rmdir()
        raise
    shutil.rmtree(old, ignore_errors=True)


def write_json(path: str | os.PathLike, content: object) -> None:
    """Write JSON atomically. File names that are not UTF-8 are read back as they were.

    Raises:
        ValueError: NaN or infinity, which JSON does not have.
    """
    with atomic_file(path) as partial:
        text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + '\n'
        # A byte that is not UTF-8 is a lone surrogate here; "\\udcff" is how JSON spells it.
        partial.write_text(text, encoding='utf-8', errors='backslashreplace')


def write_result(path: str | os.PathLike, content: dict) -> None:
    """:func:`write_json` of a result: signed by the key ``written_by``; a file that we did not write is not replaced."""
    _check_ours(Path(path))
    write_json(path, dict(written_by=WRITTEN_BY, **content))


def check_writable(folder: str | os.PathLike) -> None:
    """Make a folder and find out, before any work, whether files can be written into it.

    Raises:
        IgniteError: it cannot be made or written, or is a file.
    """
    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise IgniteError(
            f'{folder} cannot be written ({error.strerror or error}): choose another folder, or change its permissions.'
        ) from error
