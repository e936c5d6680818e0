"""What can end a training before its time: a wish of the driver's, or numbers that make no sense."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

Report = Callable[[dict[str, Any]], None]
"""Tells the driver the state of a training."""

HOW_TO_CONVERGE = "training diverged, set a lower optimizer.learning_rate or a trainer.gradient_clip_norm"
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Wish(IntEnum):
    """What the driver wants of a training that runs; the greatest of several holds."""

    NOTHING = 0
    CHECKPOINT = 1
    """A checkpoint after this step."""
    STOP = 2
    """A checkpoint after this step, and an end."""


class StoppedError(Exception):
    """Training ended because the driver wished it; the newest checkpoint has all that was trained."""


class DivergedError(FloatingPointError):
    """A loss, a metric or a weight is not a number, or infinite; starting again would lead to the same place.

    Args:
        message: What is wrong, in one line.
        facts: What of it the journal is told.
    """

    def __init__(self, message: str, facts: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.facts = dict(facts or {})


def _nothing() -> Wish:
    return Wish.NOTHING


@dataclass(frozen=True)
class Link:
    """The way between a worker and its driver.

    Attributes:
        report: Tells the driver the state of the training; rank 0 calls it, often.
        wish: Returns what the driver wishes; cheap enough to be asked before every step.
        rank: This worker's number.
        world_size: Number of workers.
        reasons: Why earlier attempts of this driver ended, in order.
        local_rank: This worker's number among those of its node.
    """

    report: Report
    wish: Callable[[], Wish] = _nothing
    rank: int = 0
    world_size: int = 1
    reasons: tuple[str, ...] = ()
    local_rank: int = 0

    @property
    def is_alone(self) -> bool:
        """Whether there is one worker, which has nobody to agree with."""
        return self.world_size == 1


class StopRequests:
    """Counts the signals that ask this process to stop: SIGINT (Ctrl-C) and SIGTERM (`ray job stop`)."""

    def __init__(self) -> None:
        self.count = 0
        self._is_heard = False

    def wish(self) -> Wish:
        """Return what the signals so far ask of the training."""
        self._is_heard = True
        return Wish.STOP if self.count else Wish.NOTHING

    def take(self, *_: Any) -> None:
        """Take a signal: the first lets training end in its own time, the second ends it at once.

        The first does so too where nobody has asked `wish` yet, since there is nothing to save.
        """
        self.count += 1
        if self.count > 1 or not self._is_heard:
            raise KeyboardInterrupt
        print("stopping after a checkpoint; once more stops at once", file=sys.stderr, flush=True)


@contextmanager
def stop_requests() -> Iterator[StopRequests]:
    """Take the signals that ask to stop for as long as something trains that looks at them.

    Outside of the main thread, which alone may take signals, there are none.
    """
    requests = StopRequests()
    with handlers(requests.take):
        yield requests


@contextmanager
def stoppable() -> Iterator[None]:
    """Let SIGTERM end a program as Ctrl-C does, so that what is to be tidied up is."""
    with handlers(_interrupt, (signal.SIGTERM,)):
        yield


@contextmanager
def handlers(handler: Any, signals: tuple[signal.Signals, ...] = SIGNALS) -> Iterator[None]:
    """Handle signals, and restore the earlier handlers at the end; outside of the main thread do nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in signals}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt
