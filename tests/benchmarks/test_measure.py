"""Order of the rounds, and the arithmetic of medians and ratios, with a clock that says what it is told."""

from collections.abc import Sequence
from typing import Any

import pytest

from tests.benchmarks.measure import Pass, Row, interleave, peak_memory, rate, ratio, seconds_per_step
from tests.benchmarks.processes import ChildError


class FakeRunner:
    def __init__(self, name: str, log: list[str], seconds: Sequence[float | None]) -> None:
        self.name, self.log, self.seconds = name, log, seconds

    def ask(self, number: int) -> Pass:
        self.log.append(self.name + str(number))
        seconds = self.seconds[number]
        if seconds is None:
            raise ChildError("out of memory")
        return Pass(seconds, steps=2, samples=6)


def row(*seconds: float, **counts: int) -> Row:
    rounds = [{"seconds": s, "steps": 2, "samples": 6, "tokens": 60, **counts} for s in seconds]
    return {"name": "x", "failure": None, "rounds": rounds}


def run(num_rounds: int, **seconds: Sequence[float | None]) -> Any:
    log: list[str] = []
    runners = {name: FakeRunner(name, log, times) for name, times in seconds.items()}
    return (*interleave(runners, num_rounds, report=lambda text: None), log)


def test_rounds_are_interleaved_and_the_first_does_not_count() -> None:
    passes, failures, log = run(2, a=[9, 1, 2], b=[9, 3, 4], c=[9, 5, 6])
    assert log == ["a0", "b0", "c0", "a1", "b1", "c1", "a2", "b2", "c2"]
    assert {name: [p.seconds for p in found] for name, found in passes.items()} == {
        "a": [1, 2],
        "b": [3, 4],
        "c": [5, 6],
    }
    assert failures == {}


def test_who_fails_is_left_out_and_the_others_go_on() -> None:
    passes, failures, log = run(2, a=[1, 1, 1], b=[1, None, 1])
    assert log == ["a0", "b0", "a1", "b1", "a2"]
    assert failures == {"b": "out of memory"}
    assert list(passes) == ["a"]
    assert len(passes["a"]) == 2


def test_a_ratio_is_the_median_of_the_rounds_ratios() -> None:
    # The machine slows down by 10 in the last round: the ratio of the medians would be 8 / 2 = 4.
    slow, fast = row(6.0, 8.0, 90.0), row(2.0, 1.0, 30.0)
    assert ratio(slow, fast) == 3.0
    assert seconds_per_step(fast) == 1.0
    assert rate(fast, "samples") == 3.0
    assert rate(fast, "tokens") == 30.0


def test_a_ratio_needs_the_same_rounds() -> None:
    with pytest.raises(ValueError, match="shorter"):
        ratio(row(1.0, 2.0), row(1.0))


def test_memory_of_the_work_is_what_comes_on_top() -> None:
    assert peak_memory(row(1.0, 1.0, peak_bytes=70, resting_bytes=30)) == (70, 40)
