"""Run a function on several gloo ranks, as Lightning sees them under torchrun, and collect what each returns."""

from __future__ import annotations

import os
import socket
import traceback
from collections.abc import Callable
from typing import Any

import torch
import torch.multiprocessing as mp


def run_distributed(function: Callable[..., Any], world_size: int, *args: Any, timeout: float = 120.0) -> list[Any]:
    """Call `function(*args)` in `world_size` processes and return their results by rank."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = mp.get_context("spawn")
    queue = context.Queue()
    processes = [
        context.Process(target=_run, args=(function, rank, world_size, port, queue, args)) for rank in range(world_size)
    ]
    for process in processes:
        process.start()
    try:
        results = dict(queue.get(timeout=timeout) for _ in processes)
    finally:
        for process in processes:
            process.join(timeout=10)
            process.kill()
    failures = [result for result in results.values() if isinstance(result, str) and result.startswith("Traceback")]
    assert not failures, failures[0]
    return [results[rank] for rank in range(world_size)]


def _run(function: Callable[..., Any], rank: int, world_size: int, port: int, queue: Any, args: tuple) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "GROUP_RANK": "0",
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_RUN_ID": "test",
    }
    torch.set_num_threads(1)
    try:
        queue.put((rank, function(*args)))
    except Exception:
        queue.put((rank, traceback.format_exc()))
