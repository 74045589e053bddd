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
_HIDDEN_ENDS = ('is skipped since its requires_grad=False',)  # once for each parameter of a frozen encoder
_SHOWN = ('resumed from', 'Did not find')
_SHOWN_SOURCES = ('logger_hook', 'checkpoint_hook', 'early_stopping_hook')
_STACK = tuple(str(Path(find_spec(name).origin).parent) + os.sep for name in ('mmengine', 'mmcv', 'mmseg'))


def on_console(record: logging.LogRecord) -> bool:
    """Return whether the console shows a record: warnings, losses, scores, checkpoints and messages of other packages.

    About 700 lines of mmengine on environment, config, hooks and learning rates before the first iteration are dropped.
    """
    message = record.getMessage()
    if message.startswith(_HIDDEN) or message.endswith(_HIDDEN_ENDS):
        return False
    if record.levelno != logging.INFO or record.module in _SHOWN_SOURCES or message.startswith(_SHOWN):
        return True
    return not record.pathname.startswith(_STACK)


def quiet_console(logger: logging.Logger) -> None:
    """Filter a logger's console handlers by :func:`on_console`, unless :data:`VERBOSE` is set."""
    if os.environ.get(VERBOSE, '0') in ('', '0'):
        for handler in logger.handlers:
            if not isinstance(handler, logging.FileHandler):
                handler.addFilter(on_console)


def quiet_warnings() -> None:
    """Hide torch's warning that memory is not pinned on a machine without an accelerator, where this does not matter."""
    warnings.filterwarnings('ignore', "'pin_memory' argument is set as true but no accelerator")


@contextlib.contextmanager
def quiet_imports() -> Iterator[None]:
    """Hide two messages of importing mmseg: a debug message, and a hint at an operator that SegFormer does not use."""
    original = mmengine.logging.print_log

    def print_log(msg: object, *args, **kwargs) -> None:
        if msg != 'Could not import OneDL':
            original(msg, *args, **kwargs)

    with warnings.catch_warnings(), mock.patch.object(mmengine.logging, 'print_log', print_log):
        warnings.filterwarnings('ignore', 'Fail to import ``MultiScaleDeformableAttention``')
        yield
