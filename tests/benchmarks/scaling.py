"""What the workers send each other and what to expect of many: `python -m tests.benchmarks.scaling [options]`.

Prints the tables of docs/scaling.md: those that are calculated (paper), the time of a step of each size on this machine
(steps), and two workers on this machine against one (workers).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace

import torch

from tests.benchmarks.data import random_texts
from tests.benchmarks.environment import describe
from tests.benchmarks.job import time_batches
from tests.benchmarks.measure import Pass, Row, interleave, measure, ratio, seconds_per_step
from tests.benchmarks.ours import train_ours
from tests.benchmarks.scaling_tables import (
    GOAL,
    assumption_table,
    goal_table,
    size_table,
    strong_table,
    traffic_table,
    weak_table,
)
from tests.benchmarks.settings import Settings, say
from tests.benchmarks.sizes import count_work, sizes
from tests.benchmarks.tables import markdown, seconds, times
from tests.benchmarks.team import Team, TeamJob

SECTIONS = ("paper", "steps", "workers")
_THREADS = 2


def paper() -> str:
    """Return what is calculated."""
    known = sizes()
    works = {}
    for name, size in known.items():
        say(f"  counting the operations of {name}")
        works[name] = count_work(size.build, size.workload)
    parts = {
        "Sizes": size_table(known, works),
        "Megabytes that a worker sends, and receives, in a step": traffic_table(works),
        "Assumptions": assumption_table(),
        "Efficiency, each GPU with 64 samples": weak_table(works),
        "Times as fast as one GPU, all GPUs sharing a batch of 64": strong_table(works),
        f"Samples that each GPU needs for an efficiency of {GOAL:.0%}": goal_table(works),
    }
    return "\n\n".join(f"### {title}\n\n{table}" for title, table in parts.items())


@dataclass(frozen=True)
class StepJob:
    """What one process times.

    Attributes:
        size: A name of `sizes`.
    """

    size: str


class StepServer:
    """Trains a model of one size, see tests.benchmarks.processes."""

    def __init__(self, job: StepJob) -> None:
        torch.set_num_threads(_THREADS)
        torch.manual_seed(0)
        size = sizes()[job.size]
        workload = replace(size.workload, batch_size=size.cpu_batch_size)
        self.ours = train_ours(size.build(), workload, "cpu")
        self.batches = [random_texts(workload)] * size.cpu_steps

    def __call__(self, number: int) -> Pass:
        """Run a round."""
        taken = time_batches(self.ours.work, self.batches, "cpu")
        samples = len(self.batches) * len(self.batches[0]["labels"])
        return Pass(taken, len(self.batches), samples, parameters=self.ours.num_parameters)


def steps(rounds: int) -> str:
    """Return the time of a training step of each size."""
    known = sizes()
    rows = measure(StepServer, {name: StepJob(name) for name in known}, rounds)
    lines = []
    for row in rows:
        size = known[row["name"]]
        batch, tokens = size.cpu_batch_size, random_texts(replace(size.workload, batch_size=1))["labels"].shape[1]
        if row["failure"]:
            lines.append([row["name"], f"{batch} x {tokens:,}", f"failed: {row['failure']}", "", ""])
            continue
        workload = replace(size.workload, batch_size=batch)
        flops = batch * count_work(size.build, workload).flops_per_sample
        taken = seconds_per_step(row)
        figures = [f"{flops / 1e9:,.1f}", seconds(taken), f"{flops / taken / 1e9:.0f}"]
        lines.append([row["name"], f"{batch} x {tokens:,}", *figures])
    table = markdown(["model", "batch", "GFLOP a step", "s a step", "GFLOP/s"], lines)
    return f"### A training step on this machine's CPU, {_THREADS} threads\n\n{table}"


def team_jobs() -> dict[str, TeamJob]:
    """Return who is compared, the first with each of the others."""
    return {
        "1 worker, 2 threads": TeamJob("ddp", workers=1, threads=2, steps=5),
        "2 workers, 1 thread each, ddp": TeamJob("ddp", workers=2, threads=1, steps=5),
        "2 workers, 1 thread each, fsdp": TeamJob("fsdp", workers=2, threads=1, steps=5),
    }


def measure_teams(jobs: dict[str, TeamJob], rounds: int) -> list[Row]:
    """Measure teams of workers against each other."""
    with ExitStack() as stack:
        teams = {}
        for name, job in jobs.items():
            teams[name] = Team(job)
            stack.callback(teams[name].close)
        passes, failures = interleave(teams, rounds)
    return [
        {"name": name, "failure": failures.get(name), "rounds": [asdict(done) for done in passes.get(name, [])]}
        for name in jobs
    ]


def workers(rounds: int) -> str:
    """Return the time of a step of two workers on this machine against that of one."""
    rows = measure_teams(team_jobs(), rounds)
    if failed := [row for row in rows if row["failure"]]:
        return "\n".join(f"{row['name']} failed: {row['failure']}" for row in failed)
    alone, ddp, _ = rows
    lines = [
        [row["name"], seconds(seconds_per_step(row)), times(ratio(row, alone)), times(ratio(row, ddp))] for row in rows
    ]
    table = markdown(["", "s a step", "times the time of one worker", "times the time of two with ddp"], lines)
    return f"### Two workers on this machine, default masked language model, batch of 64 x 512\n\n{table}"


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.scaling", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="rounds that count")
    parser.add_argument("--only", choices=SECTIONS, action="append", help="what to print (none: everything)")
    values = parser.parse_args(argv)
    if values.rounds < 1:
        parser.error(f"--rounds is {values.rounds}, but must be 1 or more")
    return values


def main(argv: Sequence[str]) -> None:
    """Print the tables."""
    values = parse(argv)
    makers = {"paper": paper, "steps": lambda: steps(values.rounds), "workers": lambda: workers(values.rounds)}
    for name in values.only or SECTIONS:
        say(name)
        print(makers[name](), end="\n\n", flush=True)
    command = " ".join(["python -m tests.benchmarks.scaling", *argv])
    facts = describe(Settings(command=command))
    print("<sub>" + "<br>".join(f"{name}: {facts[name]}" for name in facts if name != "data") + "</sub>")


if __name__ == "__main__":
    main(sys.argv[1:])
