"""Memory that a process has freed and will soon need again."""

import ctypes
import os

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h of glibc


def keep_freed_memory() -> bool:
    """Make glibc keep freed memory instead of returning it to the system.

    By default every tensor above 32 MB (the output of one layer) is mapped from the system, which zeroes its pages one by one
    as they are first touched; on a CPU that takes a third of a training step of stock mmseg (docs/performance.md). Keeping it
    costs some resident memory. The tools call this for their own process; the library never does.

    Returns:
        Whether it was done: not if the user has set glibc's ``MALLOC_...`` or another allocator with ``LD_PRELOAD``, and not
        on systems without glibc.
    """
    if 'LD_PRELOAD' in os.environ or any(name.startswith(('MALLOC_', 'GLIBC_TUNABLES')) for name in os.environ):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, 1 << 30)) and bool(mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1))
