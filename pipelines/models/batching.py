"""Inputs of several callers that are computed together."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import Generic, TypeVar

Input = TypeVar("Input")
Output = TypeVar("Output")


class Batcher(Generic[Input, Output]):
    """Lets a function that takes long answer many callers at once.

    As soon as the function is free it gets everything that has come meanwhile, so that nobody waits for company, and
    batches grow with the load. `ray.serve.batch` closes a batch some time after its first input came, whether or not
    the function is free: under load, its batches are small ones that queue.

    Args:
        function: Returns one output per input.
        max_batch_size: Inputs that it gets at once at most.
        executor: Where it runs.
    """

    def __init__(
        self, function: Callable[[Sequence[Input]], Sequence[Output]], max_batch_size: int, executor: Executor
    ) -> None:
        self._function = function
        self._max_batch_size = max_batch_size
        self._executor = executor
        self._waiting: deque[tuple[Input, asyncio.Future[Output]]] = deque()
        self._working: asyncio.Task[None] | None = None

    async def __call__(self, x: Input) -> Output:
        """Return the output for an input.

        Raises:
            Exception: Whatever the function raised about the batch that the input was in.
        """
        answer: asyncio.Future[Output] = asyncio.get_running_loop().create_future()
        self._waiting.append((x, answer))
        if self._working is None or self._working.done():
            self._working = asyncio.create_task(self._work())
        return await answer

    async def _work(self) -> None:
        """Answer until nobody waits."""
        while batch := self._take():
            inputs, answers = zip(*batch, strict=True)
            try:
                outputs = await asyncio.get_running_loop().run_in_executor(self._executor, self._function, inputs)
                for answer, output in zip(answers, outputs, strict=True):
                    if not answer.done():  # a caller may go while the function runs
                        answer.set_result(output)
            except Exception as error:  # whoever asked has to know
                for answer in answers:
                    if not answer.done():
                        answer.set_exception(error)

    def _take(self) -> list[tuple[Input, asyncio.Future[Output]]]:
        """Take the next batch from the queue, without those whose callers have gone."""
        batch: list[tuple[Input, asyncio.Future[Output]]] = []
        while self._waiting and len(batch) < self._max_batch_size:
            x, answer = self._waiting.popleft()
            if not answer.done():
                batch.append((x, answer))
        return batch
