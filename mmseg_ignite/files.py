"""Writing that is whole or absent: every file and folder the package publishes goes through here."""

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from .errors import IgniteError


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
        umask = os.umask(0)
        os.umask(umask)
        partial.chmod(0o666 & ~umask)  # mkstemp makes private files
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_directory(path: 'str | os.PathLike', marker: str) -> Iterator[Path]:
    """Give an empty temporary folder beside ``path``; put it in the place of ``path`` on success.

    An older folder is replaced only if it holds ``marker``, the file that shows it was written by us.

    Raises:
        IgniteError: if ``path`` exists and is neither empty nor one of ours.
    """
    path = Path(path)
    if path.exists() and not path.is_dir():
        raise IgniteError(f'{path} is a file; a folder was expected: choose another output folder.')
    if path.exists() and any(path.iterdir()) and not (path / marker).exists():
        raise IgniteError(
            f'{path} holds other files (no {marker} among them) and is left as it is: '
            'choose a new or empty output folder.'
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f'.{path.name}.', dir=path.parent))
    except OSError as error:
        raise IgniteError(f'{path} cannot be written ({error.strerror}): choose another output folder.') from error
    try:
        partial.chmod(0o755)
        yield partial
        old = None
        if path.exists():
            old = Path(tempfile.mkdtemp(prefix=f'.{path.name}.old.', dir=path.parent))
            path.replace(old)
        try:
            partial.replace(path)
        except BaseException:
            if old is not None:
                old.replace(path)
            raise
        if old is not None:
            shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_json(path: 'str | os.PathLike', content: object) -> None:
    """Write JSON atomically; NaN becomes null, since JSON has none."""
    with atomic_file(path) as partial:
        partial.write_text(json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + '\n', encoding='utf-8')
