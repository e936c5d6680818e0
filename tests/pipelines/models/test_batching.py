"""Batches are what has come while the function was busy, and each caller gets its own answer."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from pipelines.models.batching import Batcher

TIMEOUT = 30.0


class Squares:
    """A function that holds each batch back until it is told to go on, and notes what it got."""

    def __init__(self) -> None:
        self.batches: list[tuple[int, ...]] = []
        self.begun, self.go_on = threading.Semaphore(0), threading.Semaphore(0)

    def __call__(self, xs: Sequence[int]) -> list[int]:
        self.batches.append(tuple(xs))
        self.begun.release()
        assert self.go_on.acquire(timeout=TIMEOUT)
        return [x * x for x in xs] if 13 not in xs else [1 // 0]


@pytest.fixture
def executor() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as pool:
        yield pool


async def ask(
    batcher: Batcher[int, int], function: Squares, first: int, others: Sequence[int]
) -> list[asyncio.Task[int]]:
    """Ask for one square, and for others while the function is busy with it."""
    tasks = [asyncio.create_task(batcher(first))]
    assert await asyncio.to_thread(function.begun.acquire, timeout=TIMEOUT)
    tasks += [asyncio.create_task(batcher(x)) for x in others]
    await asyncio.sleep(0)  # lets them get into the queue
    return tasks


def test_what_comes_meanwhile_makes_batches_up_to_the_limit(executor: ThreadPoolExecutor) -> None:
    async def scene() -> list[int]:
        tasks = await ask(Batcher(function, 3, executor), function, 1, [2, 3, 4, 5])
        function.go_on.release(3)
        return await asyncio.gather(*tasks)

    function = Squares()
    assert asyncio.run(scene()) == [1, 4, 9, 16, 25]
    assert function.batches == [(1,), (2, 3, 4), (5,)]


def test_callers_that_have_gone_are_left_out_and_those_that_go_harm_nobody(executor: ThreadPoolExecutor) -> None:
    async def scene() -> list[int | BaseException]:
        tasks = await ask(Batcher(function, 8, executor), function, 1, [2, 3])
        tasks[0].cancel()
        tasks[1].cancel()
        await asyncio.sleep(0)
        function.go_on.release(2)
        return await asyncio.gather(*tasks, return_exceptions=True)

    function = Squares()
    gone, left_out, answered = asyncio.run(scene())
    assert isinstance(gone, asyncio.CancelledError)
    assert isinstance(left_out, asyncio.CancelledError)
    assert answered == 9
    assert function.batches == [(1,), (3,)]


def test_an_error_is_that_of_its_batch_alone(executor: ThreadPoolExecutor) -> None:
    async def scene() -> list[int | BaseException]:
        batcher = Batcher(function, 2, executor)
        tasks = await ask(batcher, function, 1, [13, 2, 3])
        function.go_on.release(4)
        found = await asyncio.gather(*tasks, return_exceptions=True)
        return [*found, await batcher(4)]

    function = Squares()
    first, bad, beside, next_one, later = asyncio.run(scene())
    assert isinstance(bad, ZeroDivisionError)
    assert isinstance(beside, ZeroDivisionError)
    assert (first, next_one, later) == (1, 9, 16)
