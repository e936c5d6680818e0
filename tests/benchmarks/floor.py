"""The floor: how long a step's arithmetic takes at the rate at which this machine multiplies large matrices."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from perceiver.masking import IGNORED_LABEL, pack_selection
from tests.benchmarks.data import write_rounds
from tests.benchmarks.implementation import Batch
from tests.benchmarks.job import read_rounds, to_device
from tests.benchmarks.others import freeze_all_but
from tests.benchmarks.ours import build_ours
from tests.benchmarks.plain import Plain, build_plain, plain_loss
from tests.benchmarks.processes import ask_once
from tests.benchmarks.settings import Settings, say
from tests.benchmarks.workloads import Size, Workload, find_workload

WORKLOADS_WITH_FLOOR = ("mlm", "frozen", "joint", "images")
_MATRIX_SIZE = {"cpu": 2048, "cuda": 8192}
_PRODUCTS = 10


def _product_flops(total: Any, a: Any, b: Any, *args: Any, **kwargs: Any) -> int:
    """Count the operations of a product of (..., n, k) and (..., k, m) that is added to a total, given the shapes."""
    return 2 * math.prod(a) * int(b[-1])


# torch counts these where they make a new array, but not where they add to one.
IN_PLACE = {torch.ops.aten.addmm_: _product_flops, torch.ops.aten.baddbmm_: _product_flops}


def count_flops(work: Callable[..., object], *arguments: Any) -> int:
    """Count the floating-point operations of the matrix products in a call, forward and backward."""
    # Attention as two products, since torch doesn't count its own kernel on the CPU.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False, custom_mapping=IN_PLACE) as counter:
        work(*arguments)
    return counter.get_total_flops()


def matrix_rate(device: str, size: int | None = None) -> float:
    """Measure the FLOP/s of a product of large square matrices, float32 on a CPU and bf16 on a GPU: the best of some.

    Args:
        device: cpu or cuda.
        size: Rows and columns (none: large enough for the device).
    """
    size = size or _MATRIX_SIZE[device]
    a, b = torch.randn(2, size, size, device=device, dtype=torch.bfloat16 if device == "cuda" else torch.float32)
    result = a @ b
    best = float("inf")
    for _ in range(_PRODUCTS):
        _wait(device)
        start = time.perf_counter()
        torch.mm(a, b, out=result)
        _wait(device)
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


@dataclass(frozen=True)
class Floor:
    """Arithmetic of a step.

    Attributes:
        needed: FLOPs of the plain formulation, restricted to what the loss depends on.
        executed: FLOPs of our implementation, as it computes them.
        rate: FLOP/s of large products on this machine.
    """

    needed: float
    executed: float
    rate: float

    @property
    def seconds(self) -> float:
        """Seconds below which no implementation comes: by the smaller of the two counts."""
        return min(self.needed, self.executed) / self.rate

    def multiple(self, seconds: float) -> float:
        """Return how many times the floor a measured step takes."""
        return seconds / self.seconds


def needed_loss(model: Plain, batch: Batch) -> Tensor:
    """Return the plain formulation's loss, from the masked positions alone where there are any."""
    if model.is_classifier:
        x = batch["images"] if "images" in batch else batch["input_ids"]
        return plain_loss(model(x, batch.get("pad_mask")), batch["labels"])
    selection = pack_selection(batch["labels"] != IGNORED_LABEL)
    latents = model.encoder(batch["input_ids"], batch["pad_mask"])
    decoded = model.decoder.cross_attention(model.decoder.output[selection.indices], latents)
    logits = model.decoder.output_adapter(selection.take(decoded))
    return plain_loss(logits, selection.take(batch["labels"].gather(1, selection.indices)))


def _backward(model: Plain, batch: Batch) -> None:
    needed_loss(model, batch).backward()


class FloorServer:
    """Counts and measures in a process of its own.

    Args:
        size: default or tiny.
        device: cpu or cuda.
    """

    def __init__(self, size: Size, device: str) -> None:
        self.size, self.device = size, device

    def __call__(self, data: dict[str, Path]) -> dict[str, Any]:
        """Return the rate, and of each workload the FLOPs of a batch: see Floor."""
        size = 64 if self.size == "tiny" else None
        result: dict[str, Any] = {"rate": matrix_rate(self.device, size), "flops": {}}
        for name, file in data.items():
            rounds, _ = read_rounds(file)
            batches = [to_device(batch, self.device) for batch in rounds["like length"][0]]
            result["flops"][name] = self._count(find_workload(name, self.size), batches)
        return result

    def _count(self, workload: Workload, batches: list[Batch]) -> dict[str, float]:
        plain = build_plain(workload.model).to(self.device)
        if workload.name == "frozen":
            freeze_all_but(plain, ("decoder",))
        ours = build_ours(workload, self.device)
        needed = sum(count_flops(_backward, plain, batch) for batch in batches)
        executed = sum(count_flops(ours.work, batch) for batch in batches)
        return {"needed": needed / len(batches), "executed": executed / len(batches)}


def measure_floor(settings: Settings) -> dict[str, Any]:
    """Count FLOPs and measure the machine; see FloorServer."""
    say("  counting operations")
    with tempfile.TemporaryDirectory(prefix="perceiver-benchmark-") as folder:
        data = {
            name: write_rounds(find_workload(name, settings.size), settings, Path(folder))
            for name in WORKLOADS_WITH_FLOOR
        }
        result: dict[str, Any] = ask_once(FloorServer, settings.size, settings.device, request=data)
    return result
