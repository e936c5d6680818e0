"""A command line ends with its status and tidies up, with Ray in its process as without."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import atexit, sys, threading, time
from concurrent.futures import ThreadPoolExecutor
from pipelines.program import run_program

executor = ThreadPoolExecutor()
executor.submit(int).result()  # its thread waits for more

def late():
    time.sleep(0.3)  # until main has ended
    print("a thread ends")

def main():
    atexit.register(print, "tidied up")
    threading.Thread(target=late).start()
    {what}

{ray}
run_program(main)
"""


@pytest.mark.parametrize("ray", ["", "sys.modules['ray'] = sys"])
@pytest.mark.parametrize(
    ("what", "status", "said"),
    [
        ("pass", 0, ""),
        ("sys.exit()", 0, ""),
        ("sys.exit(130)", 130, ""),
        ("sys.exit('error: why')", 1, "error: why"),
        ("raise KeyboardInterrupt", 130, ""),
        ("raise ValueError('a mistake of ours')", 1, "ValueError: a mistake of ours"),
    ],
)
def test_the_status_is_what_main_exits_with(ray: str, what: str, status: int, said: str) -> None:
    code = PROGRAM.format(what=what, ray=ray)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout.split("\n")) == (status, ["a thread ends", "tidied up", ""])
    assert done.stderr.strip().splitlines()[-1:] == ([said] if said else [])


def test_an_output_that_takes_nothing_leaves_the_status_alone() -> None:
    code = PROGRAM.format(what="sys.exit(3)", ray="sys.modules['ray'] = sys")
    with open("/dev/full", "w") as full:
        assert subprocess.run([sys.executable, "-c", code], stdout=full, check=False, timeout=60).returncode == 3
