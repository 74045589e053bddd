"""Claims: files by which processes that share a folder agree on who works on what.

A claim is created with O_EXCL, holds host and process, and is touched regularly. One of a process that has ended is taken
over: at once on the same machine; on another machine, whose processes cannot be seen, after some time without a touch.
"""

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from ..errors import IgniteError
from ..files import writing

BEAT = 5.0
"""Seconds between two touches of a claim."""
PATIENCE = 60.0
"""Seconds without a touch after which a claim of another machine counts as dead."""


class Claims:
    """The claims of this process on named items of a folder.

    Args:
        folder: Folder of the claim files, shared by the processes; it is created.

    Example:
        >>> claims = Claims('out/claims')
        >>> with claims.claimed('slide_1') as mine:
        ...     if mine:
        ...         work()
    """

    def __init__(self, folder: str | os.PathLike) -> None:
        self.folder = Path(folder)
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        self._seen: dict[Path, tuple[int | None, float]] = {}

    def path(self, name: str) -> Path:
        """Return the claim file of an item."""
        return self.folder / f'{name}.claim'

    @contextlib.contextmanager
    def claimed(self, name: str) -> Iterator[bool]:
        """Hold the claim of an item inside the context, if no living process has it; yield whether this process has it.

        Raises:
            IgniteError: The folder cannot be written.
        """
        path = self.path(name)
        own = self._create(path)
        if own is None and not self.is_alive(name):
            take_away(path, read_holder(path))
            own = self._create(path)
        if own is None:
            yield False
            return
        with beating(path, BEAT):
            try:
                yield True
            finally:
                release(path, own)

    def _create(self, path: Path) -> dict | None:
        """Create a claim; its folder may be removed by another process that has finished."""
        for last in (False,) * 9 + (True,):
            with writing(self.folder):
                self.folder.mkdir(parents=True, exist_ok=True)
            try:
                return create(path)
            except IgniteError as error:
                if last or not isinstance(error.__cause__, FileNotFoundError):
                    raise
        return None

    @contextlib.contextmanager
    def waited(self, name: str) -> Iterator[None]:
        """Hold the claim of an item inside the context, after waiting for processes that have it."""
        while True:
            with self.claimed(name) as mine:
                if mine:
                    yield
                    return
            time.sleep(0.2)

    def holder(self, name: str) -> str:
        """Describe the process that has the claim of an item, e.g. 'process 12 on node3'; '' if there is none."""
        found = read_holder(self.path(name))
        return f'process {found.get("pid")} on {found.get("host")}' if found else ''

    def is_mine(self, name: str) -> bool:
        """Return whether this process still has the claim, which another may take over if the process was suspended."""
        return read_holder(self.path(name)) == identity()

    def is_alive(self, name: str) -> bool:
        """Return whether the process that has a claim may still work; it does not wait, but remembers when it last asked."""
        path = self.path(name)
        holder = read_holder(path)
        here = runs_here(holder)
        if here is not None:
            return here
        touch, now = touched(path), time.monotonic()
        if path not in self._seen or self._seen[path][0] != touch:
            self._seen[path] = touch, now
        return touch is not None and now - self._seen[path][1] < PATIENCE


def identity() -> dict:
    """Return what a claim of this process holds."""
    return dict(host=socket.gethostname(), pid=os.getpid(), started=_started(os.getpid()))


def create(path: Path) -> dict | None:
    """Create a claim of this process; return its content, or None if there is a claim already.

    Raises:
        IgniteError: The folder cannot be written.
    """
    own = identity()
    try:
        with writing(path), open(path, 'x', encoding='utf-8') as stream:
            try:
                json.dump(own, stream)
                stream.flush()
            except OSError:  # a full disk; nobody could tell whose claim it is
                path.unlink(missing_ok=True)
                raise
    except IgniteError as error:
        if not isinstance(error.__cause__, FileExistsError):
            raise
        return None
    return own


def read_holder(path: Path) -> dict:
    """Return who holds a claim; {} if the file is missing, not readable as a claim, or is just being written."""
    with contextlib.suppress(OSError, ValueError, RecursionError):
        found = json.loads(path.read_bytes()[:10_000])
        if isinstance(found, dict):
            return found
    return {}


def runs_here(holder: dict) -> bool | None:
    """Return whether a process of this machine exists; None for one of another machine or unknown."""
    pid = holder.get('pid')
    if holder.get('host') == socket.gethostname() and type(pid) is int and 0 < pid < 1 << 31:
        return _exists(pid) and holder.get('started') in (None, _started(pid))
    return None


def take_away(path: Path, holder: dict) -> None:
    """Remove a claim if it is still that of ``holder``; of several processes that try, one succeeds."""
    aside = path.with_name(f'.{socket.gethostname()}.{os.getpid()}.{threading.get_ident()}')
    with contextlib.suppress(FileNotFoundError):
        if read_holder(path) != holder:
            return
        path.replace(aside)
        if read_holder(aside) != holder:  # another process was faster and has claimed it since: restore its claim
            with contextlib.suppress(OSError):
                os.link(aside, path)
        aside.unlink()


def release(path: Path, own: dict) -> None:
    """Remove a claim of this process, unless another process has taken it over."""
    with contextlib.suppress(OSError):
        if read_holder(path) == own:
            path.unlink()


def touched(path: Path) -> int | None:
    """Return when a claim was last touched, in ns of its file system's clock."""
    with contextlib.suppress(OSError):
        return path.stat().st_mtime_ns
    return None


@contextlib.contextmanager
def beating(path: Path, interval: float) -> Iterator[None]:
    """Touch a file every ``interval`` seconds inside the context."""
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(interval):
            with contextlib.suppress(OSError):
                os.utime(path)

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _started(pid: int) -> int | None:
    """Return when a process started, in clock ticks since the boot, which tells it from a later one of the same number.

    None for one that has ended, also if its parent has not asked for its exit status yet, so that the number still exists.
    """
    with contextlib.suppress(OSError, ValueError, IndexError):
        fields = Path(f'/proc/{pid}/stat').read_text(errors='replace').rpartition(')')[2].split()
        return int(fields[19]) if fields[0] not in 'ZX' else None
    return None
