"""Which messages of mmengine and mmseg reach the console of this package's users. Log files hold all of them."""

import contextlib
import logging
import os
import warnings
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import mmengine.logging

VERBOSE = 'MMSEG_IGNITE_VERBOSE'
"""Environment variable; set to anything but 0, the console shows what the log file holds."""
_UNWANTED = (
    'The prefix is not set in metric class',
    '"FileClient" will be',
    '"HardDiskBackend" is the alias',
    'Exp name:',
)
"""Messages that ask nothing of the user, by their first words."""
_WANTED = ('Auto resumed', 'resumed epoch', 'Did not find')
_STACK = tuple(str(Path(find_spec(name).origin).parent) + os.sep for name in ('mmengine', 'mmcv', 'mmseg'))
_WANTED_SOURCES = ('logger_hook', 'checkpoint_hook', 'early_stopping_hook')


class ConsoleFilter(logging.Filter):
    """Pass warnings, losses, scores, checkpoints and what others than mmengine say; leave out mmengine's own affairs.

    These are some 700 lines of environment, config, hooks and learning rates before the first iteration.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the console shows a record."""
        message = record.getMessage()
        if message.startswith(_UNWANTED):
            return False
        if record.levelno != logging.INFO or record.module in _WANTED_SOURCES or message.startswith(_WANTED):
            return True
        return not record.pathname.startswith(_STACK)


def quiet_console(logger: logging.Logger) -> None:
    """Put a :class:`ConsoleFilter` on a logger's console, unless :data:`VERBOSE` is set."""
    if os.environ.get(VERBOSE, '0') not in ('', '0'):
        return
    for handler in logger.handlers:
        if not isinstance(handler, logging.FileHandler):
            handler.addFilter(ConsoleFilter())


def quiet_warnings() -> None:
    """Leave out torch's warning that memory is not pinned on a machine without accelerator, where nothing needs it."""
    warnings.filterwarnings('ignore', "'pin_memory' argument is set as true but no accelerator")


@contextlib.contextmanager
def quiet_imports() -> Iterator[None]:
    """Leave out two messages that importing mmseg prints, and that concern no user of this package.

    "Could not import OneDL" is a debug message that mmengine prints where there is no logger yet; the other advises to
    replace mmcv-lite, which is not installed, for an operator that SegFormer does not use.
    """
    plain = mmengine.logging.print_log

    def print_log(msg: object, logger: object = None, level: int = logging.INFO) -> None:
        if msg != 'Could not import OneDL':
            plain(msg, logger, level)

    mmengine.logging.print_log = print_log
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings('ignore', 'Fail to import ``MultiScaleDeformableAttention``')
            yield
    finally:
        mmengine.logging.print_log = plain
