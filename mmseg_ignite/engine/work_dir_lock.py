"""One run per work dir: a lock file with the host and process that hold it."""

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from ..errors import IgniteError
from ..files import check_writable, writing
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
    ended = threading.Event()
    beat = threading.Thread(target=_beat, args=(path, ended), daemon=True)
    beat.start()
    try:
        yield
    finally:
        ended.set()
        beat.join()
        _held.discard(folder)
        with contextlib.suppress(OSError, IgniteError):
            if _read(path) == own:
                path.unlink()
        if created:
            with contextlib.suppress(OSError):  # a folder with files stays
                folder.rmdir()


def _acquire(path: Path) -> dict:
    own = dict(host=socket.gethostname(), pid=os.getpid(), started=_started(os.getpid()))
    while True:
        try:
            with writing(path), open(path, 'x', encoding='utf-8') as stream:
                json.dump(own, stream)
            return own
        except IgniteError as error:
            if not isinstance(error.__cause__, FileExistsError):
                raise
        holder = _read(path)
        if _is_alive(holder, path):
            raise IgniteError(
                f'{path.parent} is used by another run (process {holder.get("pid")} on {holder.get("host")}): wait for it or '
                f'choose another --work-dir; if that run has ended, delete {path}.'
            )
        aside = path.with_name(f'.{LOCK}.{os.getpid()}')
        with contextlib.suppress(FileNotFoundError):  # of several runs that wait, one moves it
            if _read(path) == holder:
                path.replace(aside)
                aside.unlink()


def _read(path: Path) -> dict:
    """Return who holds a lock; {} if the file is not readable as a lock or is just being written."""
    with contextlib.suppress(OSError, ValueError, RecursionError):
        found = json.loads(path.read_bytes()[:10_000])
        if isinstance(found, dict):
            return found
    return {}


def _is_alive(holder: dict, path: Path) -> bool:
    pid = holder.get('pid')
    if holder.get('host') == socket.gethostname() and type(pid) is int and 0 < pid < 1 << 31:
        return _exists(pid) and holder.get('started') in (None, _started(pid))
    before = _touched(path)
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        time.sleep(min(1.0, PATIENCE))
        if _touched(path) != before:
            return path.exists()
    return False


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _started(pid: int) -> int | None:
    """Return when a process started, in clock ticks since the boot, which tells it from a later one of the same number."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        return int(Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[19])
    return None


def _touched(path: Path) -> int | None:
    with contextlib.suppress(OSError):
        return path.stat().st_mtime_ns
    return None


def _beat(path: Path, ended: threading.Event) -> None:
    while not ended.wait(BEAT):
        with contextlib.suppress(OSError):
            os.utime(path)
