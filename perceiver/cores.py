"""Threads beside the one that trains, which leave all cores to it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


def use_one_core() -> None:
    """Let the operations of the calling thread have no threads of their own; to be called as its first act.

    Each thread whose operations are large has a team of OpenMP threads. If there are more of them than cores, as with
    two teams, OpenMP lets all teams sleep between operations: steps of small models take up to twice as long, also
    while the other team has nothing to do.
    """
    torch.get_num_threads()  # a thread that never asked is set to everybody's number by its first operation
    torch.set_num_threads(1)


@contextmanager
def cores_kept() -> Iterator[None]:
    """Let the calling thread have the cores that it had, after another one was started that has called use_one_core.

    Torch sets OpenMP's number of threads for the thread that asks, but MKL's for all.
    """
    num_threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)
