"""Memory that a process has freed and will want again."""

import ctypes
import os

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h of glibc


def keep_freed_memory() -> bool:
    """Let glibc keep what is freed instead of giving it back to the system.

    By default each tensor above 32 MB (the output of one layer) is mapped anew from the system, which zeroes its pages one
    by one as they are first touched; on a CPU that takes a third of the time of stock's training step (docs/performance.md).
    It costs some resident memory. For processes that are ours: the tools call it, the library never.

    Returns:
        Whether it was done: not where the user has set glibc's ``MALLOC_...`` or another allocator by ``LD_PRELOAD``, nor
        on systems without glibc.
    """
    if 'LD_PRELOAD' in os.environ or any(name.startswith(('MALLOC_', 'GLIBC_TUNABLES')) for name in os.environ):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, 1 << 30)) and bool(mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1))
