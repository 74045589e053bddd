"""What the command-line tools share: one way to end, with a sentence instead of a traceback."""

import signal
import sys
from collections.abc import Callable

from .engine.allocator import keep_freed_memory
from .errors import IgniteError
from .messages import quiet_warnings


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def run(main: Callable[[], None]) -> None:
    """Call ``main``; print an IgniteError as one sentence and exit with status 2, when stopped with 130.

    The process keeps the memory that it frees, see :func:`keep_freed_memory
    <mmseg_ignite.engine.allocator.keep_freed_memory>`. SIGTERM and SIGHUP (a scheduler's time limit,
    a closed terminal) end it as Ctrl-C does, so that temporary files go.
    """
    keep_freed_memory()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, 'reconfigure'):  # a file name or a sign that the terminal does not know ends no run
            stream.reconfigure(errors='backslashreplace')
    quiet_warnings()
    for name in ('SIGTERM', 'SIGHUP'):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), _interrupt)
    try:
        main()
    except IgniteError as error:
        print(f'error: {error}', file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print('stopped.', file=sys.stderr)
        sys.exit(130)
