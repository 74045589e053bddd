"""One run per work dir: a lock file with the host and process that hold it."""

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

from ..errors import IgniteError
from ..files import check_writable
from .claims import beating, create, read_holder, release, runs_here, take_away, touched
from .distributed import is_main_process

LOCK = 'run.lock'
BEAT = 5.0
"""Seconds between two signs of life, which a run gives by touching its lock."""
PATIENCE = 30.0
"""Seconds without a sign of life after which a run on another machine counts as dead."""
_held: set[Path] = set()


@contextlib.contextmanager
def locked(work_dir: str | Path) -> Iterator[None]:
    """Hold the lock of a work dir inside the context; the main process of a distributed run holds it for all.

    The lock of a process that no longer exists is taken over: at once on this machine; for another machine, whose processes
    cannot be seen, after 30 s without a sign of life. A folder that was created for the lock and is still empty is removed.

    Raises:
        IgniteError: another run holds the lock, or the folder cannot be written.
    """
    folder = Path(work_dir).absolute()
    if not is_main_process() or folder in _held:
        yield
        return
    created = not folder.exists()
    check_writable(folder)
    path = folder / LOCK
    own = _acquire(path)
    _held.add(folder)
    try:
        with beating(path, BEAT):
            yield
    finally:
        _held.discard(folder)
        release(path, own)
        if created:
            with contextlib.suppress(OSError):  # a folder with files stays
                folder.rmdir()


def _acquire(path: Path) -> dict:
    while (own := create(path)) is None:
        holder = read_holder(path)
        if _is_alive(holder, path):
            raise IgniteError(
                f'{path.parent} is used by another run (process {holder.get("pid")} on {holder.get("host")}): wait for it or '
                f'choose another --work-dir; if that run has ended, delete {path}.'
            )
        take_away(path, holder)
    return own


def _is_alive(holder: dict, path: Path) -> bool:
    here = runs_here(holder)
    if here is not None:
        return here
    before = touched(path)
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        time.sleep(min(1.0, PATIENCE))
        if touched(path) != before:
            return path.exists()
    return False
