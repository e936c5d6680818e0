"""Processes of their own: answers, failures, time limits and the allocator's regime."""

import os
import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.benchmarks.processes import AS_RUN, TUNED, Child, ChildError, ask_once, regime_environment


def serve_tunables(suffix: str) -> Callable[[str], Any]:
    return lambda request: (os.environ.get("GLIBC_TUNABLES"), request + suffix)


def serve_trouble() -> Callable[[str], str]:
    def answer(request: str) -> str:
        if request == "raise":
            raise ValueError("bad\nvery bad")
        if request == "exhaust":
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried")
        if request == "die":
            os._exit(3)
        if request == "sleep":
            time.sleep(60)
        return request

    return answer


def test_children_have_the_environment_of_their_regime(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.arena_max=1")
    children = [Child(serve_tunables, "!", regime=regime) for regime in (AS_RUN, TUNED)]
    try:
        assert children[0].ask("a") == (None, "a!")
        tunables, answer = children[1].ask("b")
    finally:
        for child in children:
            child.close()
    assert answer == "b!"
    assert "glibc.malloc.mmap_max=0" in tunables
    assert os.environ["GLIBC_TUNABLES"] == "glibc.malloc.arena_max=1"


def test_regime_removes_other_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "1")
    with regime_environment(AS_RUN):
        assert "MALLOC_TRIM_THRESHOLD_" not in os.environ
    assert os.environ["MALLOC_TRIM_THRESHOLD_"] == "1"


def test_failures_are_told_in_a_few_words() -> None:
    child = Child(serve_trouble)
    try:
        with pytest.raises(ChildError, match=r"^ValueError: bad \(test_processes.py, line \d+\)$"):
            child.ask("raise")
        assert child.ask("fine") == "fine"  # a failure does not end the process
        with pytest.raises(ChildError, match="^out of memory$"):
            child.ask("exhaust")
        with pytest.raises(ChildError, match="more than 0 s"):
            child.ask("sleep", timeout=0.1)
    finally:
        child.close()
    with pytest.raises(ChildError, match="ended with status 3"):
        ask_once(serve_trouble, request="die")
