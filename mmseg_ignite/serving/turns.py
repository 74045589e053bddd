"""One prediction at a time; a few more may wait."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import IgniteError


class Turns:
    """Lets one caller in, a limited number wait, and refuses further ones.

    Args:
        waiting: how many may wait.

    Example:
        >>> turns = Turns(waiting=4)
        >>> with turns.taken():
        ...     labels = predictor.predict(image)
    """

    def __init__(self, waiting: int) -> None:
        self._turn, self._places = threading.Lock(), threading.BoundedSemaphore(waiting + 1)
        self._waiting = waiting

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Wait for the turn, and keep it in the block.

        Raises:
            IgniteError: as many as may wait are waiting.
        """
        if not self._places.acquire(blocking=False):
            others = 'no other may wait' if not self._waiting else f'{self._waiting} more are waiting'
            raise IgniteError(f'the server is busy (a prediction is running, and {others}): try again in a minute.')
        try:
            with self._turn:
                yield
        finally:
            self._places.release()
