import os
import platform
import subprocess
import sys

import pytest

from perceiver import allocator

# Takes and frees two arrays of 25 MB again and again, and prints the page faults of the last times.
PROGRAM = """
import resource, sys
import torch
from perceiver.allocator import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
def work():
    for _ in range(10):
        arrays = [torch.zeros(6 * 2**20) for _ in range(2)]
        del arrays
work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
has_glibc = platform.libc_ver()[0] == "glibc"


def count_page_faults(mode: str) -> int:
    environment = {name: value for name, value in os.environ.items() if name not in allocator._VARIABLES}
    program = [sys.executable, "-c", PROGRAM, mode]
    return int(subprocess.run(program, capture_output=True, text=True, check=True, env=environment).stdout)


@pytest.mark.skipif(not has_glibc, reason="mallopt is glibc's; that nothing happens without it is tested below")
def test_memory_that_was_freed_is_taken_again() -> None:
    assert count_page_faults("keep") < 1000  # of 122,880; left alone, it is 0 now and then, so that isn't compared


@pytest.mark.parametrize("name", allocator._VARIABLES)
def test_what_the_user_set_stays(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "1")
    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda _: pytest.fail("the allocator was asked"))
    assert not allocator.keep_freed_memory()


def test_without_glibc_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in allocator._VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda _: object())
    assert not allocator.keep_freed_memory()
