"""system-RANK.jsonl: how busy the machines are that train, one JSON object per line, a line every ten seconds.

Each node has a file of its own, written by one of its workers, whose number among all workers is in the name. Its
records have `time` (unix seconds), `step`, `node` (name of the host), `rank`, `cpu_percent` (of the host, all its cores
being 100), `rss_bytes` (of the worker), `memory_used_bytes` and `memory_total_bytes` (of the host), and for the GPU of
the worker `gpu_name`, `gpu_memory_bytes` (in use), `gpu_memory_total_bytes` and, where nvidia-ml-py is installed,
`gpu_percent`.
"""

from __future__ import annotations

import importlib.util
import platform
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Self

import psutil
import torch

from pipelines.journal import encode_record
from pipelines.storage import Storage

_SAMPLE_SECONDS = 10.0
_REMOTE_SECONDS = 60.0  # between two writes to an object store, each of which writes all that was sampled
_END_SECONDS = 5.0  # that training waits at most for the last record


def system_file(rank: int) -> str:
    """Return the name of the file that the worker of a rank writes."""
    return f"system-{rank}.jsonl"


class SystemSampler:
    """Samples the machine in a thread while its context is open; what goes wrong there is nobody's concern.

    Args:
        folder: The stage's folder; records are added to those that are there.
        rank: Number of this worker among all.
        step: Returns the optimizer steps done.
        device: Device that this worker trains on.
        seconds: Between two records.
    """

    def __init__(
        self,
        folder: Storage,
        rank: int,
        step: Callable[[], int],
        device: torch.device,
        seconds: float = _SAMPLE_SECONDS,
    ) -> None:
        self._file = folder / system_file(rank)
        self._rank = rank
        self._step = step
        self._device = device
        self._seconds = seconds
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._work, name="system", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join(_END_SECONDS)

    def _work(self) -> None:
        with suppress(Exception):
            record = _Records(self._file)
            sample = _Sampler(self._rank, self._device)
            while not self._ended.wait(self._seconds):
                with suppress(Exception):
                    record.add(sample.take(self._step()))
            record.add(sample.take(self._step()))
            record.write()


class _Sampler:
    """Asks the operating system and the GPU's driver."""

    def __init__(self, rank: int, device: torch.device) -> None:
        self._where = {"node": platform.node(), "rank": rank}
        self._process = psutil.Process()
        psutil.cpu_percent()  # the load is that since the last time somebody asked
        self._gpu = device if device.type == "cuda" else None
        self._tells_load = importlib.util.find_spec("pynvml") is not None

    def take(self, step: int) -> dict[str, Any]:
        memory = psutil.virtual_memory()
        return {
            "time": round(time.time(), 3),
            "step": step,
            **self._where,
            "cpu_percent": psutil.cpu_percent(),
            "rss_bytes": self._process.memory_info().rss,
            "memory_used_bytes": memory.used,
            "memory_total_bytes": memory.total,
            **self._gpu_values(),
        }

    def _gpu_values(self) -> dict[str, Any]:
        if self._gpu is None:
            return {}
        free, total = torch.cuda.mem_get_info(self._gpu)
        values = {
            "gpu_name": torch.cuda.get_device_name(self._gpu),
            "gpu_memory_bytes": total - free,
            "gpu_memory_total_bytes": total,
        }
        if self._tells_load:
            with suppress(Exception):  # a driver that doesn't tell the load may well tell the memory
                values["gpu_percent"] = torch.cuda.utilization(self._gpu)
        return values


class _Records:
    """Adds records to a file, at once where it is local; files of object stores don't grow, and are written anew."""

    def __init__(self, file: Storage) -> None:
        self._file = file
        earlier = file.read_bytes() if file.exists() else b""
        self._pending = b"\n" if earlier and not earlier.endswith(b"\n") else b""  # a line that a crash tore ends here
        self._written = b"" if file.is_local else earlier
        self._last = time.monotonic()

    def add(self, record: dict[str, Any]) -> None:
        self._pending += encode_record(record)
        if self._file.is_local or time.monotonic() - self._last >= _REMOTE_SECONDS:
            self.write()

    def write(self) -> None:
        if self._file.is_local:
            with self._file.local_path.open("ab") as file:
                file.write(self._pending)
        else:
            self._written += self._pending
            self._file.write_bytes(self._written)
        self._pending, self._last = b"", time.monotonic()
