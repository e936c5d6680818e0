"""Commands that a test starts in processes of their own."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

Start = Callable[[list[str]], "subprocess.Popen[bytes]"]


@contextmanager
def commands(log: Path, environment: Mapping[str, str]) -> Iterator[Start]:
    """Yield what starts a command, whose output goes to the log; none outlives the context."""
    processes = []

    def start(arguments: list[str]) -> subprocess.Popen[bytes]:
        with log.open("ab") as output:
            process = subprocess.Popen(arguments, stdout=output, stderr=output, env=environment, start_new_session=True)
        processes.append(process)
        return process

    try:
        yield start
    finally:
        for process in processes:
            process.kill()
