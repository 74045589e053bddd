"""When the death of a loader worker is reported.

torch raises an exception in a handler of SIGCHLD, in whatever line the main thread is: in the middle of an iteration, while a
checkpoint is written, or when Python exits.
"""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator


class WorkerErrors:
    """Lets torch's handler through at the right moments; does nothing outside the main thread or without workers."""

    def __init__(self) -> None:
        self._handler: Callable | None = None  # torch's
        self._deaths: list[tuple] = []
        self._late = False

    @contextlib.contextmanager
    def late(self) -> Iterator[None]:
        """Keep reports inside the context back until :meth:`at_once`."""
        handler = _current()
        if not callable(handler):
            yield
            return
        self._handler, self._deaths, self._late = handler, [], True
        signal.signal(signal.SIGCHLD, self._receive)
        try:
            yield
        finally:
            if _current() == self._receive:
                signal.signal(signal.SIGCHLD, handler)

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Raise reports that were kept back, and those inside the context."""
        self._late = False
        try:
            if self._deaths:
                self._handler(*self._deaths.pop())
            yield
        finally:
            self._late = True

    def off(self) -> None:
        """Report nothing any more: this process ends, and its workers were ended by the same signal."""
        handler = _current()
        if callable(handler):
            self._handler = self._handler if handler == self._receive else handler
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)

    def on(self) -> None:
        """Undo :meth:`off`."""
        if self._handler is not None and _current() == signal.SIG_DFL:
            signal.signal(signal.SIGCHLD, self._handler)

    def _receive(self, *arguments: object) -> None:
        if self._late:
            self._deaths.append(arguments)
        else:
            self._handler(*arguments)


def _current() -> object:
    """Return the handler of SIGCHLD; None where it cannot be changed."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, 'SIGCHLD'):
        return None
    return signal.getsignal(signal.SIGCHLD)


worker_errors = WorkerErrors()
"""Of this process."""
