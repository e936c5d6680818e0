"""Interleaved measurement: A B C A B C ..., so that what disturbs the machine for a while disturbs everybody alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any, Protocol

from tests.benchmarks.processes import AS_RUN, Child, ChildError, Serve
from tests.benchmarks.settings import say

Row = dict[str, Any]
"""Name, failure (or None) and rounds (each a Pass as a dictionary) of one implementation."""


@dataclass(frozen=True)
class Pass:
    """What one implementation took for one round.

    Attributes:
        seconds: Time of the whole round.
        steps: Batches.
        samples: Reviews or images.
        tokens: Tokens that are not padding; 0 where there are none.
        peak_bytes: Highest use of memory in the round.
        resting_bytes: Use of memory before the first round.
        parameters: Number of parameters.
    """

    seconds: float
    steps: int
    samples: int
    tokens: int = 0
    peak_bytes: int = 0
    resting_bytes: int = 0
    parameters: int = 0


class Runner(Protocol):
    """What can be asked to run a round."""

    def ask(self, request: Any) -> Any:
        """Return the Pass of a round, of which round 0 is to warm up."""


def interleave(
    runners: Mapping[str, Runner], num_rounds: int, report: Callable[[str], None] = say
) -> tuple[dict[str, list[Pass]], dict[str, str]]:
    """Let everybody run one round after another, all of them in each round.

    Args:
        runners: Who runs, by name.
        num_rounds: Rounds that count; one more comes before them.
        report: Told how far it is.

    Returns:
        The passes of those who came through, and why the others did not.
    """
    passes: dict[str, list[Pass]] = {name: [] for name in runners}
    failures: dict[str, str] = {}
    for number in range(num_rounds + 1):
        for name, runner in runners.items():
            if name in failures:
                continue
            try:
                done = runner.ask(number)
            except ChildError as error:
                failures[name] = str(error)
                del passes[name]
                report(f"    {name}: failed: {error}")
                continue
            if number > 0:
                passes[name].append(done)
            stage = f"round {number}" if number else "warm-up"
            report(f"    {stage}: {name}: {done.seconds / done.steps:.3f} s a batch")
    return passes, failures


def measure(serve: Serve, jobs: Mapping[str, Any], num_rounds: int, regime: str = AS_RUN) -> list[Row]:
    """Measure jobs against each other, each in a process of its own.

    Args:
        serve: Makes a runner of a job, in the job's process.
        jobs: What is measured, by name.
        num_rounds: Rounds that count.
        regime: The allocator's regime.
    """
    with ExitStack() as stack:
        children = {}
        for name, job in jobs.items():
            children[name] = Child(serve, job, regime=regime)
            stack.callback(children[name].close)
        passes, failures = interleave(children, num_rounds)
    return [
        {"name": name, "failure": failures.get(name), "rounds": [asdict(done) for done in passes.get(name, [])]}
        for name in jobs
    ]


def seconds_per_step(row: Row) -> float:
    """Return the median over rounds of the seconds that a batch takes."""
    return median(done["seconds"] / done["steps"] for done in row["rounds"])


def rate(row: Row, unit: str) -> float:
    """Return the median over rounds of the samples or tokens a second."""
    return median(done[unit] / done["seconds"] for done in row["rounds"])


def ratio(slow: Row, fast: Row) -> float:
    """Return how many times as long one takes as another: the median of the ratios of each round."""
    pairs: Sequence[tuple[Any, Any]] = list(zip(slow["rounds"], fast["rounds"], strict=True))
    return median(a["seconds"] / b["seconds"] for a, b in pairs)


def peak_memory(row: Row) -> tuple[int, int]:
    """Return the highest use of memory in bytes, and how much of it came with the work, not with the libraries."""
    peak = max(done["peak_bytes"] for done in row["rounds"])
    return peak, max(0, peak - row["rounds"][0]["resting_bytes"])
