"""What one measuring process does: set up an implementation, then run the rounds it is asked for.

It imports no more than its implementation needs, whose memory it measures.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from tests.benchmarks.implementation import Batch, Implementation, Rounds, pad_fully
from tests.benchmarks.measure import Pass
from tests.benchmarks.memory import give_back_free_memory, peak_bytes, reset_peak, used_bytes
from tests.benchmarks.workloads import OURS, OURS_KEPT, Size, find_workload, max_seq_len


@dataclass(frozen=True)
class Job:
    """What one process measures.

    Attributes:
        workload: A name of WORKLOADS.
        size: default or tiny.
        implementation: Who does it.
        device: cpu or cuda.
        data: File with the rounds.
        without: Name of the trick that ours does without (none: all are on).
        keeps_memory: Whether the allocator keeps memory; after each round it is told to give it back after all, lest
            none is left for the others.
    """

    workload: str
    size: Size
    implementation: str
    device: str
    data: Path
    without: str | None = None
    keeps_memory: bool = False


class Server:
    """Runs the rounds of a job; it answers in a process of its own, see tests.benchmarks.processes.

    Args:
        job: What is measured.
    """

    def __init__(self, job: Job) -> None:
        self._without = ExitStack()  # closed with the process
        self.device = job.device
        self._keeps_memory = job.keeps_memory
        self.workload = find_workload(job.workload, job.size)
        self.rounds, tokenizer = read_rounds(job.data)
        build = self._build_ours if job.implementation in (OURS, OURS_KEPT) else self._build_other
        self.implementation = build(job, None if tokenizer is None else Tokenizer.from_str(tokenizer))
        self.resting_bytes = used_bytes(job.device)

    def _build_ours(self, job: Job, tokenizer: Tokenizer | None) -> Implementation:
        from tests.benchmarks.ours import build_ours, keep_output
        from tests.benchmarks.tricks import TRICKS

        trick = TRICKS[job.without] if job.without else None
        if trick is None:
            ours = build_ours(self.workload, self.device, tokenizer)
            return keep_output(ours) if job.implementation == OURS_KEPT else ours
        self._without.enter_context(trick.without())
        ours = build_ours(self.workload, self.device, tokenizer)
        return replace(ours, order=trick.order or ours.order, padding=trick.padding or ours.padding)

    def _build_other(self, job: Job, tokenizer: Tokenizer | None) -> Implementation:
        from tests.benchmarks.others import build_other

        return build_other(job.implementation, self.workload, self.device, tokenizer)

    def __call__(self, number: int) -> Pass:
        """Run a round."""
        batches = self.prepare(self.rounds[self.implementation.order][number])
        convert = self.implementation.convert
        converted = batches if convert is None else [convert(batch) for batch in batches]
        # The others took caches and memory in the meantime; in a training, a step follows another one.
        self.implementation.work(converted[0])
        reset_peak(self.device)
        seconds = time_batches(self.implementation.work, converted, self.device)
        peak = peak_bytes(self.device)
        if self._keeps_memory:
            give_back_free_memory()
        return Pass(
            seconds,
            len(batches),
            samples=sum(map(count_samples, batches)),
            tokens=sum(map(count_tokens, batches)),
            peak_bytes=peak,
            resting_bytes=self.resting_bytes,
            parameters=self.implementation.num_parameters,
        )

    def prepare(self, batches: Sequence[Batch]) -> list[Batch]:
        """Pad batches as the implementation needs them, and copy them to where it computes."""
        if self.implementation.padding == "full" and self.workload.reads_text:
            batches = [pad_fully(batch, max_seq_len(self.workload.model)) for batch in batches]
        return [to_device(batch, self.device) for batch in batches]


def read_rounds(file: Path) -> tuple[Rounds, str | None]:
    """Return what tests.benchmarks.data wrote: the rounds and, of texts, the tokenizer as JSON."""
    content: dict[str, Any] = torch.load(file, mmap=True)
    return content["rounds"], content["tokenizer"]


def to_device(batch: Batch, device: str) -> Batch:
    """Copy a batch to where it is used; on the CPU too, for the original is mapped from a file."""
    return {
        name: value.to(device, copy=True) if isinstance(value, torch.Tensor) else value for name, value in batch.items()
    }


def time_batches(work: Callable[[Batch], Any], batches: Sequence[Batch], device: str) -> float:
    """Return the seconds that work takes for some batches."""
    if device != "cuda":
        start = time.perf_counter()
        for batch in batches:
            work(batch)
        return time.perf_counter() - start
    before, after = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    before.record()
    for batch in batches:
        work(batch)
    after.record()
    torch.cuda.synchronize()
    return before.elapsed_time(after) / 1000


def count_samples(batch: Batch) -> int:
    """Return the number of samples of a batch."""
    return len(next(iter(batch.values())))


def count_tokens(batch: Batch) -> int:
    """Return the number of tokens of a batch that are not padding."""
    return int((~batch["pad_mask"]).sum()) if "pad_mask" in batch else 0
