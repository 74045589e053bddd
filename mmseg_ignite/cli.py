"""What the command-line tools share: one way to end, with a sentence instead of a traceback."""

import sys
from collections.abc import Callable

from .errors import IgniteError


def run(main: Callable[[], None]) -> None:
    """Call ``main``; print an IgniteError as one sentence and exit with status 2, Ctrl-C with 130."""
    try:
        main()
    except IgniteError as error:
        print(f'error: {error}', file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print('stopped.', file=sys.stderr)
        sys.exit(130)
