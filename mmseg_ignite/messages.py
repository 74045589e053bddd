"""Which messages of mmengine and mmseg reach the console. Log files have all of them."""

import contextlib
import logging
import os
import warnings
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from unittest import mock

import mmengine.logging

VERBOSE = 'MMSEG_IGNITE_VERBOSE'
"""Environment variable; unless it is empty or 0, the console shows the whole log."""
_HIDDEN = (
    'The prefix is not set in metric class',
    '"FileClient" will be',
    '"HardDiskBackend" is the alias',
    'Exp name:',
)
"""First words of messages that a user need not act on."""
_SHOWN = ('Auto resumed', 'resumed epoch', 'Did not find')
_SHOWN_SOURCES = ('logger_hook', 'checkpoint_hook', 'early_stopping_hook')
_STACK = tuple(str(Path(find_spec(name).origin).parent) + os.sep for name in ('mmengine', 'mmcv', 'mmseg'))


class ConsoleFilter(logging.Filter):
    """Pass warnings, losses, scores, checkpoints and messages of other packages; drop mmengine's internals.

    These are about 700 lines on environment, config, hooks and learning rates before the first iteration.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether the console shows a record."""
        message = record.getMessage()
        if message.startswith(_HIDDEN):
            return False
        if record.levelno != logging.INFO or record.module in _SHOWN_SOURCES or message.startswith(_SHOWN):
            return True
        return not record.pathname.startswith(_STACK)


def quiet_console(logger: logging.Logger) -> None:
    """Add a :class:`ConsoleFilter` to a logger's console handlers, unless :data:`VERBOSE` is set."""
    if os.environ.get(VERBOSE, '0') in ('', '0'):
        for handler in logger.handlers:
            if not isinstance(handler, logging.FileHandler):
                handler.addFilter(ConsoleFilter())


def quiet_warnings() -> None:
    """Hide torch's warning that memory is not pinned on a machine without an accelerator, where this does not matter."""
    warnings.filterwarnings('ignore', "'pin_memory' argument is set as true but no accelerator")


@contextlib.contextmanager
def quiet_imports() -> Iterator[None]:
    """Hide two messages of importing mmseg that do not concern users of this package.

    "Could not import OneDL" is a debug message that mmengine prints before there is a logger; the other suggests replacing
    mmcv-lite, which is not installed, for an operator that SegFormer does not use.
    """
    original = mmengine.logging.print_log

    def print_log(msg: object, *args, **kwargs) -> None:
        if msg != 'Could not import OneDL':
            original(msg, *args, **kwargs)

    with warnings.catch_warnings(), mock.patch.object(mmengine.logging, 'print_log', print_log):
        warnings.filterwarnings('ignore', 'Fail to import ``MultiScaleDeformableAttention``')
        yield
