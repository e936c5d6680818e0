import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils.data import Dataset

from perceiver.data.loader import ReadAheadLoader


class Squares(Dataset[int]):
    """Squares of 0 to 9, each made when `gate` lets it."""

    def __init__(self, gate: Callable[[int], None] = lambda index: None) -> None:
        self.gate = gate
        self.made: list[int] = []

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> int:
        self.gate(index)
        self.made.append(index)
        return index**2


def make_loader(source: Squares, **options: Any) -> ReadAheadLoader:
    return ReadAheadLoader(source, batch_size=2, collate_fn=lambda batch: batch, **options)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def reading_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "read-ahead"]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_batches_come_complete_and_in_order_in_every_pass(num_workers: int) -> None:
    loader = ReadAheadLoader(Squares(), batch_size=4, num_workers=num_workers, persistent_workers=num_workers > 0)
    for _ in range(2):
        assert [batch.tolist() for batch in loader] == [[0, 1, 4, 9], [16, 25, 36, 49], [64, 81]]
    assert len(loader) == 3
    assert not reading_threads()


def test_next_batches_are_made_while_one_is_used() -> None:
    source = Squares()
    batches = iter(make_loader(source))
    assert next(batches) == [0, 1]
    wait_until(lambda: len(source.made) >= 6)  # two batches in the queue beside the one in use


def test_an_iterator_that_is_never_used_reads_nothing() -> None:
    source = Squares()
    iter(make_loader(source))
    assert not source.made
    assert not reading_threads()


def test_an_abandoned_pass_ends_its_thread() -> None:
    batches = iter(make_loader(Squares()))
    next(batches)
    assert reading_threads()
    batches.close()  # type: ignore[attr-defined]
    wait_until(lambda: not reading_threads())


def test_an_error_is_raised_where_the_batch_is_taken() -> None:
    def fail_at_five(index: int) -> None:
        if index == 5:
            raise ValueError("the fifth is broken")

    batches = iter(make_loader(Squares(fail_at_five)))
    assert [next(batches), next(batches)] == [[0, 1], [4, 9]]
    with pytest.raises(ValueError, match="the fifth is broken"):
        next(batches)


def test_time_spent_waiting_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(100))
    monkeypatch.setattr("perceiver.data.loader.time.perf_counter", lambda: float(next(clock)))
    loader = make_loader(Squares())
    assert len(list(loader)) == 5
    assert loader.seconds_waited == 6.0  # five batches and the end, a tick each


def test_reading_ahead_does_not_touch_torchs_generator() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    batches = make_loader(Squares())
    iterator = iter(batches)
    torch.set_rng_state(before)  # a DataLoader draws a seed for its workers when a pass begins
    list(iterator)
    assert torch.equal(torch.get_rng_state(), before)


def test_reading_ahead_has_one_core_and_training_its_own() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        seen = set()
        for _ in make_loader(Squares(lambda index: seen.add(torch.get_num_threads()))):
            assert torch.get_num_threads() == 2
        assert seen == {1}
    finally:
        torch.set_num_threads(before)
