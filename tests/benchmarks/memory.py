"""How much memory this process takes."""

from __future__ import annotations

import ctypes
import resource
import sys
from pathlib import Path

import torch

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_RESET_PEAK = "5"  # proc(5): resets the peak resident set size to the current one


def reset_peak(device: str) -> None:
    """Forget the highest use of memory so far, where the system can."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    elif _CLEAR.exists():
        _CLEAR.write_text(_RESET_PEAK)


def peak_bytes(device: str) -> int:
    """Return the highest use of memory since reset_peak: of the GPU, or the resident set of this process.

    ru_maxrss would not do on Linux: it begins with what the parent process had when it started this one.
    """
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    if _STATUS.exists():
        return _read_status("VmHWM")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def used_bytes(device: str) -> int:
    """Return the present use of memory: of the GPU, or the resident set of this process."""
    if device == "cuda":
        return torch.cuda.memory_allocated()
    return _read_status("VmRSS") if _STATUS.exists() else peak_bytes(device)


def give_back_free_memory() -> None:
    """Let glibc give the memory that nothing uses back to the system, even where it was told to keep it."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def limit_memory(share: float) -> None:
    """Let allocations beyond a share of the machine's memory fail, instead of having the process killed."""
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        total = 1024 * int(_find_field(meminfo.read_text(), "MemTotal"))
        resource.setrlimit(resource.RLIMIT_DATA, (int(share * total), resource.RLIM_INFINITY))


def _read_status(field: str) -> int:
    return 1024 * int(_find_field(_STATUS.read_text(), field))


def _find_field(text: str, name: str) -> str:
    line = next(line for line in text.splitlines() if line.startswith(f"{name}:"))
    return line.split()[1]
