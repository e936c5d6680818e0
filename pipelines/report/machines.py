"""What the machines did while they trained: their load and memory, and how many operations the model took."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes

from pipelines.report.curves import thinned
from pipelines.report.parts import COLORS, Facts, MissingSourceError, Picture, new_axes, picture, shortened
from pipelines.report.sources import Sources

_GB = 1e9
_MOST_LINES = 16
_FEW_POINTS = 3  # a line of one would not be seen

Series = tuple[str, Sequence[Mapping[str, Any]], str]
"""Name of a line, its records, and the field that it shows."""


def load(sources: Sources) -> list[Picture]:
    """Draw the load of each node's CPUs, and of each GPU."""
    axes = new_axes("minutes", "%")
    lines = [(name, records, "cpu_percent") for name, records in _by_node(sources.system).items()]
    gpus = [(name, records, "gpu_percent") for name, records in _by_gpu(sources.system, "gpu_percent").items()]
    _draw(axes, lines, gpus)
    axes.set_ylim(0, 105)
    return [
        picture("load", "Load", axes, "CPU of each node; dashed: each worker's GPU." if gpus else "CPU of each node.")
    ]


def memory(sources: Sources) -> list[Picture]:
    """Draw the memory of each node and of each GPU that is in use."""
    axes = new_axes("minutes", "GB")
    nodes, gpus = _by_node(sources.system), _by_gpu(sources.system, "gpu_memory_bytes")
    lines = [(name, records, "memory_used_bytes") for name, records in nodes.items()]
    lines += [(name, records, "rss_bytes") for name, records in _by_worker(sources.system).items()]
    _draw(axes, lines, [(name, records, "gpu_memory_bytes") for name, records in gpus.items()], _GB)
    axes.set_ylim(bottom=0)
    rooms = [f"{name} has {records[0]['memory_total_bytes'] / _GB:.0f} GB" for name, records in nodes.items()]
    for name, records in gpus.items():
        rooms.append(f"the {name} {records[0]['gpu_memory_total_bytes'] / _GB:.0f} GB")
    return [picture("memory", "Memory", axes, f"In use; {', '.join(rooms[:_MOST_LINES])}.")]


def _draw(axes: Axes, lines: Sequence[Series], dashed: Sequence[Series], unit: float = 1.0) -> None:
    begun = min(records[0]["time"] for _, records, _ in lines)
    for number, (name, records, field) in enumerate([*lines, *dashed][:_MOST_LINES]):
        minutes = thinned([(record["time"] - begun) / 60 for record in records])
        values = thinned([record[field] / unit for record in records])
        style = "-" if number < len(lines) else "--"
        axes.plot(minutes, values, style, color=COLORS[number % len(COLORS)], linewidth=1.2, label=shortened(name, 28))
        axes.lines[-1].set_marker("." if len(values) < _FEW_POINTS else "")
    axes.set_xlim(left=0)
    axes.legend(fontsize=7.5)


def _by_node(records: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """Return the records of one worker of each node, which speak for the whole of it."""
    speaker: dict[str, int] = {}
    for record in records:
        speaker[record["node"]] = min(record["rank"], speaker.get(record["node"], record["rank"]))
    return {
        f"node {node}": [record for record in records if record["node"] == node and record["rank"] == rank]
        for node, rank in speaker.items()
    }


def _by_worker(records: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    ranks = sorted({record["rank"] for record in records})
    return {f"process of worker {rank}": [record for record in records if record["rank"] == rank] for rank in ranks}


def _by_gpu(records: Sequence[Mapping[str, Any]], field: str) -> dict[str, list[Mapping[str, Any]]]:
    """Return the records of each worker's GPU that have a field."""
    with_field = [record for record in records if field in record]
    ranks = sorted({record["rank"] for record in with_field})
    return {f"GPU of worker {rank}": [record for record in with_field if record["rank"] == rank] for rank in ranks}


def operations(sources: Sources) -> list[Facts]:
    """Say how many operations a step takes, how fast they were done, and which share of the GPUs' peak that is."""
    result = sources.stage.result
    if "flops_per_sample" not in result:
        raise MissingSourceError("the result has no flops_per_sample")
    per_sample, device = float(result["flops_per_sample"]), str(result.get("device", "cpu"))
    workers = int(result.get("num_workers") or 1)
    rates = [record["samples_per_second"] for record in sources.records("train", "samples_per_second")]
    achieved = float(np.median(rates)) * per_sample
    rows = {
        "per sample": _scaled(per_sample, "FLOP"),
        f"per step of {sources.batch_size} samples": _scaled(per_sample * sources.batch_size, "FLOP"),
        "achieved (median step)": _scaled(achieved, "FLOP/s"),
        "on": f"{workers} x {device}",
    }
    peak = _peak_of(device, sources.settings["trainer"].get("precision", "auto"))
    if peak is not None:
        rows["share of the peak"] = f"{achieved / (peak * workers):.2%} of {_scaled(peak * workers, 'FLOP/s')}"
    caption = "Forward and backward. What is recomputed, and a frozen encoder, doesn't count."
    return [Facts("Computation", caption, rows)]


def _scaled(value: float, unit: str) -> str:
    for size, prefix in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g} {prefix}{unit}"
    return f"{value:.3g} {unit}"


@lru_cache
def _peak_of(device: str, precision: str) -> float | None:
    """Return the operations per second that a GPU's maker promises; None for what is none, or not in this machine."""
    if not torch.cuda.is_available() or torch.cuda.get_device_name() != device:
        return None
    from lightning_fabric.utilities.throughput import get_available_flops

    bf16 = precision == "bf16-mixed" or (precision == "auto" and torch.cuda.is_bf16_supported(False))
    dtype = torch.float16 if precision == "16-mixed" else torch.bfloat16 if bf16 else torch.float32
    return get_available_flops(torch.device("cuda"), dtype)
