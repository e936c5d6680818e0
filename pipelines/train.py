"""Train one stage where the config says: in this process, or on the workers of a Ray cluster."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from pipelines.cluster import own_cores, trains_in_process
from pipelines.config import ScalingConfig
from pipelines.control import Link, Report, StoppedError, stop_requests
from pipelines.stages import StagePlan


def train(plan: StagePlan, scaling: ScalingConfig, report: Report) -> dict[str, Any]:
    """Train a stage; the cluster must be connected unless `trains_in_process`.

    Args:
        plan: What to train.
        scaling: Workers.
        report: Called in this process with the state of the training.

    Returns:
        The stage's result, as `pipelines.worker.run_stage` returns it.

    Raises:
        KeyboardInterrupt: If the user stopped it, by Ctrl-C or SIGTERM.
        DivergedError: If the numbers make no sense any more.
    """
    if trains_in_process(scaling):
        from pipelines.worker import run_stage  # Lightning takes seconds to import, and is for those who train

        with _threads(own_cores(scaling)), stop_requests() as requests:
            try:
                return run_stage(plan, Link(report, requests.wish))
            except StoppedError:
                raise KeyboardInterrupt from None
    from pipelines.ray_train import train_on_workers  # Ray takes seconds to import

    return train_on_workers(plan, scaling, report)


@contextmanager
def _threads(cores: int) -> Iterator[None]:
    """Let torch use as many cores as Ray would give a worker: in a container it counts those of the whole machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(min(before, cores))
    try:
        yield
    finally:
        torch.set_num_threads(before)
