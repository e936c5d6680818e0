"""Each implementation lives in a process of its own, which does what it is asked for and then waits.

The allocator's settings are fixed when a process starts. There are two regimes: everything as its users run it, where
nothing is set, and tuned, where glibc keeps memory for everybody.
"""

from __future__ import annotations

import multiprocessing
import os
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

AS_RUN, TUNED = "as run", "tuned"
_TUNABLES = "glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=68719476736:glibc.malloc.top_pad=67108864"
REGIMES: dict[str, Mapping[str, str]] = {AS_RUN: {}, TUNED: {"GLIBC_TUNABLES": _TUNABLES}}
"""Environment of each regime."""
_ALLOCATOR_VARIABLES = ("GLIBC_TUNABLES", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_MAX_")

Serve = Callable[..., Callable[[Any], Any]]
"""Called in the new process, with what it is to be about; returns what answers a request."""


class ChildError(Exception):
    """A process failed; the text says how, in a few words."""


@contextmanager
def regime_environment(regime: str) -> Iterator[None]:
    """Let processes that start in this context have a regime's environment and no other allocator settings."""
    before = dict(os.environ)
    for name in _ALLOCATOR_VARIABLES:
        os.environ.pop(name, None)
    os.environ.update(REGIMES[regime])
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


class Child:
    """A process that answers requests, one at a time.

    Args:
        serve: A function of a module's top level; see Serve.
        arguments: What it is called with.
        regime: The allocator's regime.
    """

    def __init__(self, serve: Serve, *arguments: Any, regime: str = AS_RUN) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_answer, args=(theirs, serve, arguments), daemon=True)
        with regime_environment(regime):
            self._process.start()
        theirs.close()

    def ask(self, request: Any = None, timeout: float | None = None) -> Any:
        """Send a request and wait for the answer.

        Args:
            request: Any object that can be pickled.
            timeout: Seconds to wait (none: for ever).

        Raises:
            ChildError: If the process failed, died or took too long.
        """
        try:
            self._connection.send(request)
            if not self._connection.poll(timeout):
                raise ChildError(f"more than {timeout:.0f} s")
            succeeded, answer = self._connection.recv()
        except (EOFError, OSError):
            self._process.join()
            raise ChildError(_cause_of_death(self._process.exitcode)) from None
        if not succeeded:
            raise ChildError(answer)
        return answer

    def close(self) -> None:
        """End the process."""
        self._connection.close()
        self._process.terminate()
        self._process.join()


def ask_once(serve: Serve, *arguments: Any, request: Any = None, timeout: float | None = None) -> Any:
    """Start a process, ask it once, and end it; see Child."""
    child = Child(serve, *arguments)
    try:
        return child.ask(request, timeout)
    finally:
        child.close()


def _answer(connection: Connection, serve: Serve, arguments: tuple[Any, ...]) -> None:
    """Answer requests until the other side is gone."""
    function: Callable[[Any], Any] | None = None
    while True:
        try:
            request = connection.recv()
        except EOFError:
            return
        try:
            function = function or serve(*arguments)
            answer: tuple[bool, Any] = (True, function(request))
        except Exception as error:  # whatever an implementation raises is its own failure, not the measurement's
            answer = (False, _in_a_few_words(error))
        connection.send(answer)


def _in_a_few_words(error: Exception) -> str:
    text = str(error)
    if isinstance(error, MemoryError) or "out of memory" in text or "can't allocate memory" in text:
        return "out of memory"
    where = traceback.extract_tb(error.__traceback__)[-1]
    lines = text.splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]} ({where.filename.rpartition('/')[2]}, line {where.lineno})"


def _cause_of_death(exit_code: int | None) -> str:
    return "killed, probably out of memory" if exit_code == -9 else f"ended with status {exit_code}"
