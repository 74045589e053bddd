"""Stopping a training on a signal, after its state was saved."""

import contextlib
import itertools
import os
import signal
import threading
import time
from collections.abc import Iterator

import torch
from mmengine.dist import get_rank, get_world_size

from . import compatibility
from .distributed import ask_store
from .worker_errors import worker_errors

SIGNALS = ('SIGINT', 'SIGTERM', 'SIGHUP', 'SIGUSR1')
"""Ctrl-C, a scheduler's or a system's request to end, a closed terminal, Slurm's early warning (--signal=USR1@120)."""
_FAREWELL = 10.0
_MARGIN = 5
"""Iterations after which all processes stop together; processes that share gradients are at most two apart."""


class TrainingStopped(SystemExit):
    """A training ended by a signal after it was saved; the exit status is 128 + the signal's number, as in a shell."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)


class StopRequest:
    """Whether a signal has asked the training of this process to stop. A second SIGINT raises KeyboardInterrupt at once."""

    _runs = itertools.count()

    def __init__(self) -> None:
        self.signal: int | None = None
        self._listening = 0
        self._key = ''

    @property
    def name(self) -> str:
        """Name of the signal, e.g. 'SIGTERM'."""
        return signal.Signals(self.signal).name if self.signal else ''

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Receive signals inside the context, in the main thread only; afterwards the earlier handlers are back."""
        if self._listening or threading.current_thread() is not threading.main_thread():
            yield
            return
        worker_errors.on()
        self.signal, self._listening = None, os.getpid()
        self._key = f'mmseg_ignite/stop/{next(self._runs)}'
        numbers = [getattr(signal, name) for name in SIGNALS if hasattr(signal, name)]
        before = {number: signal.getsignal(number) for number in numbers}
        try:
            for number in numbers:
                signal.signal(number, self._receive)
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler if handler is not None else signal.SIG_DFL)
            self._listening = 0

    def _receive(self, number: int, frame: object) -> None:
        if os.getpid() != self._listening:  # a loader worker, which the main process ends
            return
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = number

    def due(self, iteration: int, multiple: int = 1) -> bool:
        """Return whether to stop before this iteration; all processes of a distributed run agree on the iteration.

        Args:
            multiple: stop after a multiple of this number of iterations, of which each updates the weights.
        """
        if get_world_size() == 1:
            return self.signal is not None
        chosen = self._agreed(compatibility.process_store(), -(-(iteration + _MARGIN) // multiple) * multiple)
        return chosen is not None and iteration >= chosen

    def received(self) -> bool:
        """Return whether this or another process of the run was asked to stop, if that is known within two seconds."""
        if get_world_size() > 1:
            ask_store(lambda store: self._agreed(store, 0))
        return self.signal is not None

    def _agreed(self, store: torch.distributed.Store, proposal: int) -> int | None:
        """Return the iteration at which all processes stop, proposed by the first that got a signal; None without one."""
        if self.signal is not None:
            store.compare_set(self._key, '', f'{proposal} {self.signal}')
        if not store.check([self._key]):
            return None
        chosen, number = map(int, store.get(self._key).split())
        self.signal = self.signal or number
        return chosen

    def leave(self) -> None:
        """Say that this process ends; the first process, which often keeps the store, waits up to 10 s for the others."""
        if get_world_size() == 1:
            return
        end, gone = time.monotonic() + _FAREWELL, ask_store(lambda store: store.add(f'{self._key}/left', 1))
        while get_rank() == 0 and gone is not None and gone < get_world_size() and time.monotonic() < end:
            time.sleep(0.05)
            gone = ask_store(lambda store: store.add(f'{self._key}/left', 0))


stop_request = StopRequest()
"""The request of this process: a process has one training at a time and one set of signal handlers."""
