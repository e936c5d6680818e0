"""The tables of docs/scaling.md that are calculated."""

from __future__ import annotations

from tests.benchmarks.prediction import H100, L4, Machine, Work, samples_for, speed_up, weak_efficiency
from tests.benchmarks.sizes import Size
from tests.benchmarks.tables import markdown, times
from tests.benchmarks.traffic import BYTES_PER_NUMBER, STRATEGIES, padded_numbers, padding_share

GPUS = (2, 8, 64, 1024)
MACHINES = (H100, L4)
GOAL = 0.9
_OPTIMIZER_COPIES = 4  # weights, gradients, and Adam's two averages
_MEGABYTE = 1e6


def size_table(known: dict[str, Size], works: dict[str, Work]) -> str:
    """Return the table of what is trained."""
    header = [
        "model",
        "shape",
        "parameters",
        "in self-attention layers",
        "TFLOP a step of 64",
        "GB of memory read and written",
        "operations a step",
    ]
    rows = []
    for name, work in works.items():
        layout = work.layout
        share = f"{layout.layer_parameters / layout.num_parameters:.0%}"
        flops = f"{work.flops_per_sample * 64 / 1e12:.3f}"
        shape = known[name].shape
        moved = f"{work.bytes_per_sample * 64 / 1e9:.1f}"
        rows.append([name, shape, f"{layout.num_parameters:,}", share, flops, moved, f"{work.operations:,}"])
    return markdown(header, rows)


def traffic_table(works: dict[str, Work]) -> str:
    """Return the table of megabytes that a worker sends in a step, and of what it keeps."""
    header = ["model", "workers", "ddp: MB sent", "fsdp: MB sent", "ratio", "of it padding", "exchanges: ddp", "fsdp"]
    header += ["ddp: MB kept", "fsdp: MB kept"]
    rows = []
    for name, work in works.items():
        layout = work.layout
        kept = _OPTIMIZER_COPIES * BYTES_PER_NUMBER * layout.num_parameters / _MEGABYTE
        for workers in GPUS:
            ddp, fsdp = (make(layout, workers) for make in STRATEGIES.values())
            sent, shared = ddp.sent(workers), fsdp.sent(workers)
            padded = padded_numbers(layout.shapes, workers)
            gathered = _OPTIMIZER_COPIES * BYTES_PER_NUMBER * padded / workers / _MEGABYTE
            figures = [megabytes(sent), megabytes(shared), times(shared / sent)]
            figures += [f"{padding_share(layout, workers):.0%}", str(len(ddp.all)), str(len(fsdp.all))]
            rows.append([name, f"{workers:,}", *figures, f"{kept:,.0f}", f"{gathered:,.1f}"])
    return markdown(header, rows)


def megabytes(value: float) -> str:
    """Return bytes in MB."""
    return f"{value / _MEGABYTE:,.1f}"


def assumption_table() -> str:
    """Return the table of what the predictions rest on."""
    lines = [
        ("peak in bf16, data sheet", lambda m: f"{m.peak / 1e12:,.0f} TFLOP/s"),
        ("share of it that a step reaches", lambda m: f"{m.share:.0%}"),
        ("bandwidth of a GPU's memory", lambda m: f"{m.memory / 1e12:.2f} TB/s"),
        ("launch of an operation by the host", lambda m: f"{m.launch * 1e6:.0f} µs"),
        ("bandwidth between GPUs of a node, each way", lambda m: rate(m.inside) if m.gpus > 1 else "one GPU a node"),
        ("bandwidth between nodes, for each GPU, each way", lambda m: rate(m.between)),
        ("a collective, however little it sends", lambda m: f"{m.start * 1e6:.0f} µs"),
        ("a hop between GPUs of a node", lambda m: f"{m.hop_inside * 1e6:.0f} µs" if m.gpus > 1 else "one GPU a node"),
        ("a hop between nodes", lambda m: f"{m.hop_between * 1e6:.0f} µs"),
        ("share of a pass beside which collectives run", lambda m: f"{m.overlap:.0%}"),
    ]
    rows = [[what, *(show(machine) for machine in MACHINES)] for what, show in lines]
    return markdown(["assumption", *(machine.name for machine in MACHINES)], rows)


def rate(value: float) -> str:
    """Return bytes/s in GB/s."""
    return f"{value / 1e9:.3g} GB/s"


def _by_gpus(title: str) -> list[str]:
    return ["model", "strategy", *(f"{_short(m)}: {title}{gpus:,}" for m in MACHINES for gpus in GPUS)]


def _short(machine: Machine) -> str:
    return "H100" if machine is H100 else "L4"


def weak_table(works: dict[str, Work]) -> str:
    """Return the table of efficiencies if each GPU has 64 samples."""
    rows = [
        [name, strategy]
        + [f"{weak_efficiency(work, machine, strategy, gpus, 64):.0%}" for machine in MACHINES for gpus in GPUS]
        for name, work in works.items()
        for strategy in STRATEGIES
    ]
    return markdown(_by_gpus(""), rows)


def strong_table(works: dict[str, Work]) -> str:
    """Return the table of speed-ups if all GPUs share 64 samples."""
    gpus = [number for number in GPUS if number <= 64]
    header = ["model", "strategy", *(f"{_short(m)}: {number}" for m in MACHINES for number in gpus)]
    rows = [
        [name, strategy]
        + [times(speed_up(work, machine, strategy, number, 64)) for machine in MACHINES for number in gpus]
        for name, work in works.items()
        for strategy in STRATEGIES
    ]
    return markdown(header, rows)


def goal_table(works: dict[str, Work]) -> str:
    """Return the table of samples that each GPU needs to be well used."""
    rows = [
        [name, strategy]
        + [f"{samples_for(work, machine, strategy, gpus, GOAL):,}" for machine in MACHINES for gpus in GPUS]
        for name, work in works.items()
        for strategy in STRATEGIES
    ]
    return markdown(_by_gpus(""), rows)
