"""How glibc treats memory that is freed on a CPU, which takes and frees the same arrays in every step."""

from __future__ import annotations

import ctypes
import os

# From malloc.h, whose numbers are part of glibc's interface.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_SETTINGS = {_M_TRIM_THRESHOLD: 64 * 2**20, _M_MMAP_THRESHOLD: 32 * 2**20}  # the most that glibc comes to by itself
_VARIABLES = ("GLIBC_TUNABLES", "MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TOP_PAD_")


def keep_freed_memory() -> bool:
    """Let this process keep up to 64 MB of freed memory, instead of asking for the same pages again in every step.

    Left alone, glibc gives memory back to the system at every other opportunity, and the system clears each page that
    it is asked for: up to 110 MB in a step of the default image classifier, which takes 6 to 9 % less time without.

    Returns:
        Whether it was set: not where the user chose settings of the allocator, nor without glibc.
    """
    if any(os.environ.get(name) for name in _VARIABLES):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # not glibc
        return False
    return all(mallopt(option, size) for option, size in _SETTINGS.items())
