"""Writing that is whole or absent: every file and folder the package publishes goes through here."""

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from .errors import IgniteError


def _permitted(mode: int) -> int:
    """A mode less what the umask forbids; temporary files and folders are made private."""
    umask = os.umask(0)
    os.umask(umask)
    return mode & ~umask


@contextlib.contextmanager
def atomic_file(path: 'str | os.PathLike') -> Iterator[Path]:
    """Give a temporary path beside ``path`` (same suffix); rename it into place on success, else remove it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f'.{path.stem}.', suffix=path.suffix, dir=path.parent)
    os.close(handle)
    partial = Path(name)
    try:
        yield partial
        partial.chmod(_permitted(0o666))
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def link_file(source: 'str | os.PathLike', path: 'str | os.PathLike') -> None:
    """Put a file in a second place, atomically: a hard link, or a copy where the disk knows none."""
    with atomic_file(path) as partial:
        partial.unlink()
        try:
            os.link(source, partial)
        except OSError:
            shutil.copyfile(source, partial)


def _check_replaceable(path: Path, own: 'tuple[str, ...]') -> None:
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
def atomic_directory(path: 'str | os.PathLike', own: 'tuple[str, ...]') -> Iterator[Path]:
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


def write_json(path: 'str | os.PathLike', content: object) -> None:
    """Write JSON atomically.

    Raises:
        ValueError: NaN or infinity, which JSON has not.
    """
    with atomic_file(path) as partial:
        partial.write_text(json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + '\n', encoding='utf-8')


def check_writable(folder: 'str | os.PathLike') -> None:
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
