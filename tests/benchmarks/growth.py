"""Growth: seconds and memory of a step for longer texts and larger images, ours against the plain formulation."""

from __future__ import annotations

import time
from statistics import median
from typing import Any

from tests.benchmarks.data import random_images, random_texts
from tests.benchmarks.job import time_batches, to_device
from tests.benchmarks.memory import limit_memory, peak_bytes, reset_peak, used_bytes
from tests.benchmarks.plots import plot_growth
from tests.benchmarks.processes import ChildError, ask_once
from tests.benchmarks.settings import Settings, say
from tests.benchmarks.workloads import OURS, PLAIN, Size, image_classifier, masked_language_model

TOKENS, SIDES = "tokens", "pixels a side"
SIZES: dict[Size, dict[str, tuple[int, ...]]] = {
    "default": {TOKENS: (128, 256, 512, 1024, 2048, 4096, 8192), SIDES: (28, 56, 112, 224)},
    "tiny": {TOKENS: (8, 16), SIDES: (8, 12)},
}
_MEMORY_SHARE = 0.8
_LEAST_STEPS, _MOST_STEPS, _SECONDS = 3, 20, 5.0


class GrowthServer:
    """Takes steps of one size in a process of its own.

    Args:
        implementation: Ours or plain.
        kind: What grows: TOKENS or SIDES.
        extent: How much of it.
        size: Size of everything else.
        device: cpu or cuda.
    """

    def __init__(self, implementation: str, kind: str, extent: int, size: Size, device: str) -> None:
        from tests.benchmarks.others import build_other
        from tests.benchmarks.ours import build_ours

        if device == "cpu":
            limit_memory(_MEMORY_SHARE)
        workload = masked_language_model(extent, size) if kind == TOKENS else image_classifier(extent, size)
        self.device = device
        self.batch = to_device(random_texts(workload) if kind == TOKENS else random_images(workload), device)
        if implementation == OURS:
            self.implementation = build_ours(workload, device)
        else:
            self.implementation = build_other(PLAIN, workload, device)

    def __call__(self, request: None) -> dict[str, float]:
        """Return the median seconds of a step, and the bytes that steps take beyond what was there before."""
        resting = used_bytes(self.device)
        reset_peak(self.device)
        self._step()  # to warm up
        seconds: list[float] = []
        start = time.perf_counter()
        while len(seconds) < _LEAST_STEPS or (len(seconds) < _MOST_STEPS and time.perf_counter() - start < _SECONDS):
            seconds.append(self._step())
        return {"seconds": median(seconds), "bytes": max(0, peak_bytes(self.device) - resting)}

    def _step(self) -> float:
        return time_batches(self.implementation.work, [self.batch], self.device)


def measure_growth(settings: Settings) -> dict[str, Any]:
    """Measure all sizes, plot them, and return kind -> implementation -> extent -> seconds and bytes, or failure."""
    growth: dict[str, dict[str, dict[str, Any]]] = {}
    for kind, extents in SIZES[settings.size].items():
        growth[kind] = {OURS: {}, PLAIN: {}}
        for extent in extents:
            for name, results in growth[kind].items():
                results[str(extent)] = _measure(name, kind, extent, settings, results)
    plot_growth(growth, settings.picture("growth"))
    return {"growth": growth}


def _measure(name: str, kind: str, extent: int, settings: Settings, smaller: dict[str, Any]) -> dict[str, Any]:
    """Measure one size, unless a smaller one failed already."""
    if failed := [text for text, result in smaller.items() if "failure" in result]:
        return {"failure": f"not tried, as {failed[0]} failed"}
    arguments = (name, kind, extent, settings.size, settings.device)
    try:
        result: dict[str, Any] = ask_once(GrowthServer, *arguments, timeout=settings.timeout)
    except ChildError as error:
        result = {"failure": str(error)}
    say(f"    {extent} {kind}: {name}: {_shown(result)}")
    return result


def _shown(result: dict[str, Any]) -> str:
    if "failure" in result:
        return f"failed: {result['failure']}"
    return f"{result['seconds']:.3f} s, {result['bytes'] / 2**20:.0f} MiB"
