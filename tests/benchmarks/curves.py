"""Loss curves: ours with every trick against the plain formulation, from the same weights on the same batches."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from perceiver.convert import from_reference
from tests.benchmarks.data import write_rounds
from tests.benchmarks.job import read_rounds, to_device
from tests.benchmarks.others import train_other
from tests.benchmarks.ours import train_ours
from tests.benchmarks.plain import build_plain
from tests.benchmarks.plots import plot_curves
from tests.benchmarks.processes import ask_once
from tests.benchmarks.settings import Settings, say
from tests.benchmarks.workloads import Size, find_workload

_SEED = 0
_REPORT_EVERY = 20


class CurveServer:
    """Trains both models side by side in a process of its own.

    Args:
        size: default or tiny.
        device: cpu or cuda.
    """

    def __init__(self, size: Size, device: str) -> None:
        torch.manual_seed(_SEED)
        self.device = device
        workload = find_workload("mlm", size)
        plain = build_plain(workload.model)
        ours = from_reference(plain.state_dict(), workload.model)
        self.ours = train_ours(ours, workload, device)
        self.plain = train_other(plain.to(device), workload, device)

    def __call__(self, request: tuple[Path, int]) -> dict[str, list[float]]:
        """Return the losses of both at each step, given the file of the batches and the number of steps."""
        file, num_steps = request
        batches = read_rounds(file)[0]["like length"][0]
        losses: dict[str, list[float]] = {"ours": [], "plain": []}
        for step in range(num_steps):
            batch = to_device(batches[step % len(batches)], self.device)
            losses["ours"].append(self.ours.work(batch).item())
            losses["plain"].append(self.plain.work(batch).item())
            if (step + 1) % _REPORT_EVERY == 0:
                say(f"    step {step + 1}: greatest difference so far {greatest_difference(losses):.1e}")
        return losses


def greatest_difference(losses: dict[str, Sequence[float]] | dict[str, list[float]]) -> float:
    """Return the greatest absolute difference of the two losses at any step."""
    return max(abs(ours - plain) for ours, plain in zip(losses["ours"], losses["plain"], strict=True))


def measure_curves(settings: Settings) -> dict[str, Any]:
    """Train both models, plot the losses, and return them: ours and plain, by step."""
    say(f"  {settings.steps} steps of ours and of the plain formulation")
    one_round = replace(settings, rounds=0, batches=settings.steps)
    with tempfile.TemporaryDirectory(prefix="perceiver-benchmark-") as folder:
        file = write_rounds(find_workload("mlm", settings.size), one_round, Path(folder))
        request = (file, settings.steps)
        losses: dict[str, list[float]] = ask_once(CurveServer, settings.size, settings.device, request=request)
    plot_curves(losses, settings.picture("curves"))
    return {"losses": losses}
