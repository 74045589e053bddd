"""One prediction at a time; a few more may wait, as long as their visitors do."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ..errors import IgniteError

_CHECK = 0.5
"""Seconds after which a waiting caller looks whether its visitor is still there."""


class Turns:
    """Lets one caller in, a limited number wait, the first first, and refuses further ones.

    Args:
        waiting: how many may wait.

    Example:
        >>> turns = Turns(waiting=4)
        >>> with turns.taken():
        ...     labels = predictor.predict(image)
    """

    def __init__(self, waiting: int) -> None:
        self._waiting, self._line, self._changed = waiting, [], threading.Condition()

    @contextmanager
    def taken(self, has_left: Callable[[], bool] = lambda: False) -> Iterator[None]:
        """Wait for the turn, and keep it in the block.

        Args:
            has_left: whether nobody waits for the result any more, which ends the waiting.

        Raises:
            IgniteError: as many as may wait are waiting, or nobody waits for the result.
        """
        place = object()
        with self._changed:
            if len(self._line) > self._waiting:
                others = f'{self._waiting} more are waiting' if self._waiting else 'no other may wait'
                raise IgniteError(f'the server is busy (a prediction is running, and {others}): try again in a minute.')
            self._line.append(place)
        try:
            with self._changed:
                while self._line[0] is not place:
                    check_presence(has_left)
                    self._changed.wait(_CHECK)
            check_presence(has_left)
            yield
        finally:
            with self._changed:
                self._line.remove(place)
                self._changed.notify_all()

    def wait_for_the_end(self, seconds: float) -> None:
        """Wait until nobody is in or waits, for a number of seconds at most."""
        with self._changed:
            self._changed.wait_for(lambda: not self._line, seconds)


class Visitors:
    """Which sessions of the page listen for results: who closes the page frees the place of the prediction.

    Args:
        patience: seconds without a listener after which a visitor has left.
    """

    def __init__(self, patience: float = 10.0) -> None:
        self.patience, self._ended = patience, False
        self._listeners, self._lock = Counter(), threading.Lock()

    @contextmanager
    def listening(self, session: str) -> Iterator[None]:
        """Count a listener of a session in the block."""
        with self._lock:
            self._listeners[session] += 1
        try:
            yield
        finally:
            with self._lock:
                self._listeners[session] -= 1
                self._listeners += Counter()  # drops sessions without listeners

    def watch(self, session: str) -> Callable[[], bool]:
        """Return a function that tells whether the visitor has left since now."""
        seen = time.monotonic()

        def has_left() -> bool:
            nonlocal seen
            if self._listeners[session]:
                seen = time.monotonic()
            return self._ended or time.monotonic() - seen > self.patience

        return has_left

    def end(self) -> None:
        """All have left: the server stops."""
        self._ended = True


def check_presence(has_left: Callable[[], bool]) -> None:
    """Raise IgniteError if a visitor has left."""
    if has_left():
        raise IgniteError('nobody waits for this prediction any more, so it has ended.')
