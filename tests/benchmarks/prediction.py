"""How long a training step takes on many GPUs: a calculation from a few assumptions, not a measurement."""

from __future__ import annotations

import math
from dataclasses import dataclass

from tests.benchmarks.traffic import STRATEGIES, Collective, Layout

FORWARD_SHARE = 1 / 3
"""Share of the forward pass in a step; the backward pass takes the rest."""


@dataclass(frozen=True)
class Machine:
    """A kind of node with its network.

    Attributes:
        name: What it is.
        gpus: GPUs of a node.
        peak: FLOP/s of a GPU in bf16, from its data sheet.
        share: Share of the peak that a step reaches.
        memory: Bytes/s that a GPU reads and writes in its memory.
        launch: Seconds until the host has launched an operation.
        inside: Bytes/s that a GPU sends to another one of its node.
        between: Bytes/s that a node sends, for each of its GPUs.
        start: Seconds that a collective takes however little is sent.
        hop_inside: Seconds from a GPU to another one of its node.
        hop_between: Seconds from a node to another.
        overlap: Share of a pass beside which collectives run without holding it up.
    """

    name: str
    gpus: int
    peak: float
    share: float
    memory: float
    launch: float
    inside: float
    between: float
    start: float
    hop_inside: float
    hop_between: float
    overlap: float


H100 = Machine(
    "8 x H100, NVLink, 400 Gb/s a GPU",
    gpus=8, peak=989e12, share=0.4, memory=2.7e12, launch=8e-6, inside=360e9, between=40e9,
    start=10e-6, hop_inside=2e-6, hop_between=8e-6, overlap=0.8,
)  # fmt: skip
L4 = Machine(
    "g6.2xlarge (1 x L4), 5 Gb/s",
    gpus=1, peak=121e12, share=0.4, memory=0.24e12, launch=8e-6, inside=math.inf, between=0.56e9,
    start=30e-6, hop_inside=0.0, hop_between=40e-6, overlap=0.8,
)  # fmt: skip


@dataclass(frozen=True)
class Work:
    """What a training step consists of.

    Attributes:
        layout: The model.
        flops_per_sample: Floating-point operations of the matrix products, forward and backward.
        bytes_per_sample: What the operations read and write.
        operations: Operations that the host launches in a step, however large the batch.
    """

    layout: Layout
    flops_per_sample: float
    bytes_per_sample: float
    operations: int


def compute_seconds(work: Work, machine: Machine, samples: int) -> float:
    """Return the seconds of a step on one GPU: of its arithmetic, its memory or its launches, whichever is longest."""
    arithmetic = samples * work.flops_per_sample / (machine.peak * machine.share)
    memory = samples * work.bytes_per_sample / machine.memory
    return max(arithmetic, memory, work.operations * machine.launch)


def bus_bandwidth(machine: Machine, workers: int) -> float:
    """Return the bytes/s that each GPU sends along a ring: what leaves a node goes by all of its cards."""
    if workers <= machine.gpus:
        return machine.inside
    return min(machine.inside, machine.gpus * machine.between)


def latency(collective: Collective, machine: Machine, workers: int) -> float:
    """Return the seconds of a collective that sends next to nothing.

    An all-reduce goes around a ring twice, or up and down a tree, whichever is faster. The others go around a ring, but
    NCCL has something like a tree (PAT) for all-gathers where a node has one GPU.
    """
    nodes = math.ceil(workers / machine.gpus)
    ring = (workers - nodes) * machine.hop_inside + (nodes - 1) * machine.hop_between
    chain = (min(workers, machine.gpus) - 1) * machine.hop_inside
    tree = chain + math.ceil(math.log2(nodes)) * machine.hop_between
    if collective.kind == "all-reduce":
        return machine.start + 2 * min(ring, tree)
    if collective.kind == "all-gather" and machine.gpus == 1:
        return machine.start + min(ring, tree)
    return machine.start + ring


def collective_seconds(collectives: list[Collective], machine: Machine, workers: int) -> float:
    """Return the seconds of collectives one after the other."""
    return sum(
        collective.sent(workers) / bus_bandwidth(machine, workers) + latency(collective, machine, workers)
        for collective in collectives
    )


def predict(work: Work, machine: Machine, strategy: str, workers: int, samples: int) -> float:
    """Return the seconds of a training step.

    Args:
        work: What is computed.
        machine: Where.
        strategy: ddp or fsdp.
        workers: GPUs.
        samples: Samples of each GPU.
    """
    computing = compute_seconds(work, machine, samples)
    step = STRATEGIES[strategy](work.layout, workers)
    seconds = computing
    for collectives in (step.first, step.between, step.last):
        seconds += collective_seconds(collectives, machine, workers)
    for collectives, share in ((step.forward, FORWARD_SHARE), (step.backward, 1 - FORWARD_SHARE)):
        beside = machine.overlap * share * computing
        seconds += max(0.0, collective_seconds(collectives, machine, workers) - beside)
    return seconds


def weak_efficiency(work: Work, machine: Machine, strategy: str, workers: int, samples: int) -> float:
    """Return the share of the GPUs' time that is not spent waiting, if each GPU has so many samples."""
    return compute_seconds(work, machine, samples) / predict(work, machine, strategy, workers, samples)


def speed_up(work: Work, machine: Machine, strategy: str, workers: int, batch: int) -> float:
    """Return how many times as fast as one GPU some are, which share a batch; no more of them than it has samples."""
    workers = min(workers, batch)
    together = predict(work, machine, strategy, workers, math.ceil(batch / workers))
    return compute_seconds(work, machine, batch) / together


def samples_for(work: Work, machine: Machine, strategy: str, workers: int, goal: float) -> int:
    """Return the least power of two of samples that each GPU needs for an efficiency."""
    samples = 1
    while weak_efficiency(work, machine, strategy, workers, samples) < goal:
        samples *= 2
    return samples
