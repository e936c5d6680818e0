"""Workers that train one model together, each in a process of its own; all of them run a round at the same time."""

from __future__ import annotations

import socket
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh

from perceiver.allocator import keep_freed_memory
from perceiver.build import build_model
from perceiver.masking import IGNORED_LABEL, Selection, pack_selection
from perceiver.model import PerceiverMLM
from perceiver.optim import build_optimizer
from perceiver.sharding import shard
from tests.benchmarks.data import random_texts
from tests.benchmarks.implementation import Batch
from tests.benchmarks.measure import Pass
from tests.benchmarks.processes import Child
from tests.benchmarks.workloads import Size as WorkloadSize
from tests.benchmarks.workloads import find_workload


@dataclass(frozen=True)
class TeamJob:
    """What is measured.

    Attributes:
        strategy: ddp or fsdp; one worker alone needs neither.
        workers: Processes.
        threads: Threads of each.
        steps: Steps of a round.
        size: default or tiny.
    """

    strategy: str
    workers: int
    threads: int
    steps: int
    size: WorkloadSize = "default"


class _Loss(nn.Module):
    """What DistributedDataParallel wraps, as Lightning lets it wrap a task."""

    def __init__(self, model: PerceiverMLM) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch) -> Tensor:
        """Return the sum of the cross-entropies of the masked tokens."""
        selection = Selection(batch["label_indices"], batch["label_places"])
        decoded, labels = self.model.decode_masked(batch["input_ids"], batch["labels"], batch["pad_mask"], selection)
        return self.model.decoder.output_adapter.cross_entropy(decoded, labels)


def part_of(batch: Batch, rank: int, workers: int) -> Batch:
    """Return a worker's part of a batch of masked texts."""
    part = {name: batch[name][rank::workers] for name in ("input_ids", "labels", "pad_mask")}
    indices, places = pack_selection(part["labels"] != IGNORED_LABEL)
    return {**part, "label_indices": indices, "label_places": places}


class Worker:
    """Trains the masked language model on its part of the same batch again and again.

    Args:
        job: What is measured.
        rank: Number of this worker.
        address: Where the workers meet; none: the process group is there already, or the worker is alone.
    """

    def __init__(self, job: TeamJob, rank: int, address: str | None = None) -> None:
        torch.set_num_threads(job.threads)
        keep_freed_memory()
        if address is not None:
            torch.distributed.init_process_group("gloo", address, rank=rank, world_size=job.workers)
        self.job = job
        workload = find_workload("mlm", job.size)
        torch.manual_seed(0)
        self.batch = part_of(random_texts(workload), rank, job.workers)
        model = build_model(workload.model)
        assert isinstance(model, PerceiverMLM)
        self.model = model
        self.loss: nn.Module = _Loss(model)
        if job.workers > 1 and job.strategy == "fsdp":
            shard(model, init_device_mesh("cpu", (job.workers,)))
        elif job.workers > 1:
            self.loss = nn.parallel.DistributedDataParallel(self.loss, gradient_as_bucket_view=True)
        self.optimizer = build_optimizer(model, workload.optimizer)

    def step(self) -> None:
        """Train a step, whose gradient is that of the whole batch's mean loss, as perceiver.tasks.base has it."""
        self.optimizer.zero_grad()
        total = self.loss(self.batch)
        sums = torch.stack([total.detach(), total.new_tensor(len(self.batch["label_places"])), total.new_zeros(())])
        if self.job.workers > 1:
            torch.distributed.all_reduce(sums)
        (total * (self.job.workers / sums[1])).backward()
        self.optimizer.step()

    def __call__(self, number: int) -> Pass:
        """Run a round, after one step that is not timed."""
        self.step()
        start = time.perf_counter()
        for _ in range(self.job.steps):
            self.step()
        seconds = time.perf_counter() - start
        return Pass(seconds, self.job.steps, samples=self.job.steps * len(self.batch["labels"]))


class Team:
    """Asks all workers at once; see tests.benchmarks.measure.Runner."""

    def __init__(self, job: TeamJob) -> None:
        address = None if job.workers == 1 else f"tcp://127.0.0.1:{_free_port()}"
        self._children = [Child(Worker, job, rank, address) for rank in range(job.workers)]

    def ask(self, request: Any = None) -> Pass:
        """Return the pass of the slowest worker, with the samples of all."""

        def ask(child: Child) -> Pass:
            passed: Pass = child.ask(request, timeout=600)
            return passed

        with ThreadPoolExecutor(len(self._children)) as pool:
            passes = list(pool.map(ask, self._children))
        return Pass(max(done.seconds for done in passes), passes[0].steps, sum(done.samples for done in passes))

    def close(self) -> None:
        """End the processes."""
        for child in self._children:
            child.close()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
