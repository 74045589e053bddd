"""The common entry point of the command-line tools, which turns errors into one sentence instead of a traceback."""

import gc
import logging
import os
import signal
import sys
from collections.abc import Callable

from .engine.allocator import keep_freed_memory
from .engine.worker_errors import worker_errors
from .errors import IgniteError
from .files import printable
from .messages import quiet_warnings


def run(main: Callable[[], None]) -> None:
    """Call ``main``; print an IgniteError as one sentence and exit with status 2, or 130 if interrupted.

    SIGTERM and SIGHUP (a scheduler's time limit, a closed terminal) act like Ctrl-C, so that temporary files are removed.
    """
    keep_freed_memory()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, 'reconfigure'):  # a character that the terminal cannot show must not end a run
            stream.reconfigure(errors='backslashreplace')
    if not gc.get_freeze_count():
        gc.freeze()  # mmengine collects garbage for each data set, which would visit all imported modules
    quiet_warnings()
    logging.raiseExceptions = False  # a log file on a full disk must not print a traceback for each message
    for name in ('SIGINT', 'SIGTERM', 'SIGHUP'):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), _interrupt)
    try:
        main()
    except IgniteError as error:
        print(f'error: {printable(str(error))}', file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print('stopped.', file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        if not _is_unread():
            raise
        print('stopped: the program that read the output has ended.', file=sys.stderr)
        sys.exit(2)


def _is_unread() -> bool:
    """Return whether nothing reads the output any more, e.g. after ``| head``; what is left of it is then dropped."""
    try:
        print(flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False


def _interrupt(number: int, frame: object) -> None:
    """Stop like Ctrl-C; loader workers, which the signal may have ended too, are not reported."""
    worker_errors.off()
    raise KeyboardInterrupt
