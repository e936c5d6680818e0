"""The sections that time implementations against each other: workloads, and tricks taken away in turn."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.benchmarks.data import write_rounds
from tests.benchmarks.job import Job, Server
from tests.benchmarks.measure import measure
from tests.benchmarks.others import implementations
from tests.benchmarks.processes import AS_RUN, TUNED
from tests.benchmarks.settings import Settings, say
from tests.benchmarks.tricks import TRICKS
from tests.benchmarks.workloads import OURS, WORKLOADS, find_workload

EVERYTHING = "all tricks"


def measure_workload(name: str, settings: Settings) -> dict[str, Any]:
    """Time all implementations of a workload in each regime.

    Returns:
        workload, batch_size and, by regime, the rows of tests.benchmarks.measure.
    """

    def jobs(data: Path) -> dict[str, Job]:
        return {who: Job(name, settings.size, who, settings.device, data) for who in implementations(name)}

    return _measure(name, settings, jobs, settings.regimes)


def measure_tricks(name: str, settings: Settings) -> dict[str, Any]:
    """Time our step with each trick taken away in turn, as our pipelines run it.

    Returns:
        As measure_workload; the rows' names are tricks and EVERYTHING.
    """

    def jobs(data: Path) -> dict[str, Job]:
        everything = {EVERYTHING: Job(name, settings.size, OURS, settings.device, data)}
        tricks = [trick for trick, about in TRICKS.items() if name in about.workloads and about.exists]
        return everything | {
            trick: Job(name, settings.size, OURS, settings.device, data, without=trick) for trick in tricks
        }

    return _measure(name, settings, jobs, (AS_RUN,))


def _measure(
    name: str, settings: Settings, jobs: Callable[[Path], dict[str, Job]], regimes: tuple[str, ...]
) -> dict[str, Any]:
    workload = find_workload(name, settings.size)
    with tempfile.TemporaryDirectory(prefix="perceiver-benchmark-") as folder:
        data = write_rounds(workload, settings, Path(folder))
        measured = {}
        for regime in regimes:
            say(f"  {WORKLOADS[name]}; memory: {regime}")
            children = {who: replace(job, keeps_memory=regime == TUNED) for who, job in jobs(data).items()}
            measured[regime] = measure(Server, children, settings.rounds, regime)
    return {"workload": name, "batch_size": workload.batch_size, "regimes": measured}
