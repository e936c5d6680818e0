"""The numbers of training steps on their way from the device: read without making it wait, and checked."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

import torch
from torch import Tensor

from perceiver.tasks.base import NOT_COMPUTED
from pipelines.control import HOW_TO_CONVERGE, DivergedError, Wish
from pipelines.journal import Record

_IDS_SHOWN = 8


class _Numbers:
    """A few numbers that a device has yet to compute, on their way to the host."""

    def __init__(self, numbers: Tensor) -> None:
        self._arrived: torch.cuda.Event | None = None
        self._host = numbers
        if numbers.is_cuda:
            self._host = torch.empty_like(numbers, device="cpu", pin_memory=True).copy_(numbers, non_blocking=True)
            self._arrived = torch.cuda.Event()
            self._arrived.record()

    def read(self) -> list[float]:
        """Wait for the numbers."""
        if self._arrived is not None:
            self._arrived.synchronize()
        values: list[float] = self._host.tolist()
        return values


@dataclass(frozen=True)
class _Step:
    record: Record
    numbers: _Numbers
    sample_ids: Tensor


class StepReader:
    """Turns the numbers of each step into a record with a loss, and stops where one makes no sense.

    On a CPU a step is read when it ends. On a GPU the step before it is: its numbers are there, while those of the step
    itself would have to be waited for. All ranks read the same numbers at the same step.

    Args:
        scales_gradients: Whether the gradients are scaled to float16, in which some steps are meant to overflow.

    Attributes:
        num_tokens: Tokens, of all ranks, in the steps whose records `take` returned last; 0 where there are none.
    """

    def __init__(self, scales_gradients: bool = False) -> None:
        self.records: list[Record] = []
        self.num_tokens = 0.0
        self._tokens_read = 0.0
        self._scales_gradients = scales_gradients
        self._unread: deque[_Step] = deque()

    def add(self, record: Record, numbers: Tensor, sample_ids: Tensor) -> Wish:
        """Take a step, and return what rank 0 wishes to happen after it.

        Args:
            record: What is known of the step.
            numbers: `Task.step_numbers` of the step.
            sample_ids: Samples of this rank's part of the batch, -1 where there is none.

        Raises:
            DivergedError: If a loss or a gradient is not a number, or infinite.
        """
        self._unread.append(_Step(record, _Numbers(numbers), sample_ids))
        return self._read(leave=1 if numbers.is_cuda else 0)

    def take(self) -> list[Record]:
        """Return the records of all steps since the last time, the newest among them.

        Raises:
            DivergedError: As `add` does.
        """
        self._read(leave=0)
        records, self.records = self.records, []
        self.num_tokens, self._tokens_read = self._tokens_read, 0.0
        return records

    def _read(self, leave: int) -> Wish:
        wish = Wish.NOTHING
        while len(self._unread) > leave:
            step = self._unread.popleft()
            loss, signals, norm, tokens = step.numbers.read()
            self._tokens_read += tokens
            norms = {"gradient_norm": norm} if norm != NOT_COMPUTED else {}
            self.records.append({**step.record, "loss": loss, **norms})
            wish = max(wish, Wish(int(signals)))
            if not math.isfinite(loss):
                raise _diverged(step, "loss", loss)
            if not math.isfinite(norm) and not self._scales_gradients:
                raise _diverged(step, "gradient_norm", norm)
        return wish


def _diverged(step: _Step, name: str, value: float) -> DivergedError:
    """Say which number of which step made no sense, and on which samples of all ranks; all of them come here."""
    samples = [sample for sample in step.sample_ids.tolist() if sample >= 0]
    if torch.distributed.is_initialized():
        of_ranks: list[list[int]] = [[]] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(of_ranks, samples)
        samples = sum(of_ranks, [])
    shown = ", ".join(map(str, samples[:_IDS_SHOWN])) + (" ..." if len(samples) > _IDS_SHOWN else "")
    number, epoch = step.record["step"], step.record["epoch"]
    return DivergedError(
        f"{name} is {value} in step {number} (epoch {epoch + 1}), whose samples are {shown}: {HOW_TO_CONVERGE}",
        {"step": number, "epoch": epoch, name: value, "sample_ids": samples},
    )
