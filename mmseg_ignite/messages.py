"""Which messages of mmengine and mmseg a user of this package sees on the console."""

import contextlib
import logging
import warnings
from collections.abc import Iterator

import mmengine.logging


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
