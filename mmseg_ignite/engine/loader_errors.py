"""Failures of the workers of data loaders, in one sentence."""

import contextlib
import multiprocessing.queues
import os
import re
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from unittest import mock

from torch.utils.data import get_worker_info
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from ..errors import IgniteError

TIMEOUT = 600
"""Default of a loader's ``timeout`` in seconds: how long a batch may take before its workers count as hanging."""
_NO_SHARED_MEMORY, _NOT_PICKLED = 74, 65
"""Exit status of a worker that could not send a batch: EX_IOERR, EX_DATAERR."""
_CAUGHT = re.compile(r'Caught (\w+) in (DataLoader worker process \d+|pin memory thread for device \d+)\.\nOriginal ')
_OURS = re.compile(r'^(?:\w+\.)*(?:IgniteError|MaskError): ', re.MULTILINE)
_FRAME = re.compile(r'^  File "(.+)", line (\d+), in ', re.MULTILINE)
_PID = re.compile(r'DataLoader worker \(pid(?:\(s\))? (\d+)')
_SIGNAL = re.compile(r'is killed by signal: ([^.]+)\.')
_TIMED_OUT = re.compile(r'DataLoader timed out after ')
_EXIT_CODE = re.compile(r'exit code (-?\d+)')
_SHM_FILE = re.compile(r'</torch_|unable to allocate shared memory')
_FEWER = 'use fewer workers (num_workers of the loader)'
_SHARED_MEMORY = (
    'the shared memory (/dev/shm), through which loader workers send their batches, is full: enlarge it (docker run '
    f'--shm-size=8g), {_FEWER} or smaller batches.'
)


@contextlib.contextmanager
def loader_errors() -> Iterator[None]:
    """Turn what torch raises for a failed worker of a data loader into one sentence.

    torch raises an exception whose message is the worker's traceback. Inside the context, a worker that cannot send a batch
    ends at once, while torch would print a traceback and wait for the batch, and the timeout of a loader also limits the
    transfer of a batch from a worker that was stopped.

    Raises:
        IgniteError: a worker raised an IgniteError (its sentence is unchanged) or another exception, was killed, ended,
            or sent nothing in time.
    """
    watch, wait = _Watch(), _MultiProcessingDataLoaderIter._try_get_data

    def watched(loader: _MultiProcessingDataLoaderIter, *args: object, **kwargs: object) -> object:
        with watch.limit(loader):
            return wait(loader, *args, **kwargs)

    with (
        mock.patch.object(multiprocessing.queues.Queue, '_on_queue_feeder_error', staticmethod(_send_failed)),
        mock.patch.object(_MultiProcessingDataLoaderIter, '_try_get_data', watched),
        mock.patch.object(sys, 'excepthook', _quiet_workers(sys.excepthook)),
        watch,
    ):
        try:
            yield
        except Exception as error:
            with _no_child_signals():
                loader = watch.expired or _loader(error)
                timed_out = watch.expired or (loader and _TIMED_OUT.match(str(error)))
                sentence = _timed_out(loader) if timed_out else _sentence(error, loader._workers if loader else [])
                if sentence and loader:
                    _kill(loader)
                    loader._shutdown_workers()  # torch forgets them
            if sentence is None:
                raise
            raise IgniteError(sentence) from error


class _Watch:
    """A thread that kills the workers of a loader which has waited for a batch for longer than its timeout.

    torch's timeout does not limit the transfer of a batch: for each tensor the worker is asked for a file descriptor.
    """

    def __init__(self) -> None:
        self.expired: _MultiProcessingDataLoaderIter | None = None
        self._waiting: tuple[_MultiProcessingDataLoaderIter, float] | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._thread.join()
        self.expired = self._waiting = None

    @contextlib.contextmanager
    def limit(self, loader: _MultiProcessingDataLoaderIter) -> Iterator[None]:
        """Kill the loader's workers if the block takes a second longer than the loader's timeout."""
        self._waiting = (loader, time.monotonic() + loader._timeout + 1) if loader._timeout else None
        try:
            yield
        finally:
            self._waiting = None

    def _run(self) -> None:
        while not self._ended.wait(0.5):
            waiting = self._waiting
            if waiting and time.monotonic() > waiting[1]:
                self.expired = waiting[0]
                _kill(waiting[0])
                return


_print_traceback = multiprocessing.queues.Queue._on_queue_feeder_error


def _send_failed(error: Exception, obj: object) -> None:
    """Handle an object that a queue could not send: end a loader worker, else print a traceback as Python does."""
    if get_worker_info() is None:
        _print_traceback(error, obj)
    else:
        os._exit(_NO_SHARED_MEMORY if _SHM_FILE.search(str(error)) else _NOT_PICKLED)


def _quiet_workers(hook: Callable) -> Callable:
    """Return a hook that prints no traceback in a worker whose batch the main process does not want any more."""

    def quiet(kind: type, error: BaseException, trace: object) -> None:
        if get_worker_info() is None or not isinstance(error, OSError):
            hook(kind, error, trace)

    return quiet


@contextlib.contextmanager
def _no_child_signals() -> Iterator[None]:
    """Switch off torch's handler, which raises an exception in any line of code when a worker ends."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, 'SIGCHLD'):
        yield
        return
    before = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, before)


def _loader(error: Exception) -> _MultiProcessingDataLoaderIter | None:
    """Return the loader that waited for a batch when an exception was raised."""
    frames = [frame.f_locals.get('self') for frame, _ in traceback.walk_tb(error.__traceback__)]
    return next((owner for owner in frames if isinstance(owner, _MultiProcessingDataLoaderIter)), None)


def _kill(loader: _MultiProcessingDataLoaderIter) -> None:
    """End workers, also stopped ones, which do not react to torch's SIGTERM while Python waits for them when it exits."""
    for worker in loader._workers:
        worker.kill()


def _timed_out(loader: _MultiProcessingDataLoaderIter) -> str:
    return (
        f'the workers of a data loader have sent no batch for {loader._timeout:g} s (timeout of the loader): check that the '
        'disk of the data answers and that no worker is stopped, or raise the timeout.'
    )


def _sentence(error: Exception, workers: list[BaseProcess]) -> str | None:
    """Return the sentence about an exception that comes from a loader's worker; None if it does not."""
    text = str(error)
    if 'Too many open files' in text and ('</torch_' in text or 'Communication with the workers' in text):
        return f'loader workers have too many open files: raise the limit (ulimit -n 65536), or {_FEWER}.'
    if caught := _CAUGHT.match(text):
        return _raised(caught[1], caught[2], text)
    # Of a worker that ends while its batch is received, torch reports only the broken connection.
    if _PID.search(text) or (isinstance(error, (OSError, EOFError)) and workers):
        return _ended(workers, text)
    return None


def _raised(kind: str, where: str, text: str) -> str:
    """Return the sentence about an exception in a worker: our own, or its last line and where it was raised."""
    if ours := list(_OURS.finditer(text)):
        return text[ours[-1].end() :].strip()
    if _SHM_FILE.search(text):
        return _SHARED_MEMORY
    reason = text.strip().splitlines()[-1].removeprefix(f'{kind}: ')[:300]
    frames = _FRAME.findall(text)
    place = f' at {frames[-1][0]}, line {frames[-1][1]}' if frames else ''
    worker = where.replace('DataLoader worker process', 'loader worker')
    if kind == 'MemoryError':
        return f'{worker} has no memory left{place}: {_FEWER} or smaller batches.'
    return (
        f'{worker} failed{place} ({kind}: {reason}): correct the data or the pipeline; num_workers=0 of the loader shows the '
        'whole traceback.'
    )


def _ended(workers: list[BaseProcess], text: str) -> str | None:
    """Return the sentence about a worker that was killed or ended; None if all are alive."""
    pid, cause, code = _PID.search(text), _SIGNAL.search(text), _EXIT_CODE.search(text)
    pid, cause, code = pid and pid[1], cause and cause[1], code and int(code[1])
    if cause is None and code is None and (worker := _first_ended(workers)):
        pid, code = worker.pid, worker.exitcode
    if code is not None and code < 0:
        cause = signal.strsignal(-code)
    if code == _NO_SHARED_MEMORY or (cause or '').startswith('Bus error'):
        return _SHARED_MEMORY
    if cause:
        usual = ', as the system does when memory runs out' if cause in ('Killed', 'Terminated') else ''
        return f'loader worker (pid {pid}) was ended by the signal "{cause}"{usual}: {_FEWER} or smaller batches.'
    if code == _NOT_PICKLED:
        return (
            f'loader worker (pid {pid}) could not send a batch, which has an object that cannot be pickled: let the pipeline '
            'return arrays, tensors and plain values.'
        )
    if pid is None:
        return None
    status = '' if code is None else f' with status {code}'
    return f'loader worker (pid {pid}) ended{status}: num_workers=0 of the loader may show why.'


def _first_ended(workers: list[BaseProcess]) -> BaseProcess | None:
    """Return a worker that has ended, or ends within a second."""
    end = time.monotonic() + 1
    while True:
        if found := next((worker for worker in workers if worker.exitcode is not None), None):
            return found
        if time.monotonic() > end:
            return None
        time.sleep(0.02)
