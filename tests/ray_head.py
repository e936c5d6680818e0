"""A Ray head of a test's own: on free ports, with a token, in a folder of its own."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

_PORTS = ("port", "dashboard-port", "ray-client-server-port", "dashboard-agent-listen-port",
          "dashboard-agent-grpc-port", "metrics-export-port", "runtime-env-agent-port", "node-manager-port",
          "object-manager-port")  # fmt: skip
_START_SECONDS = 60.0


@dataclass(frozen=True)
class Head:
    """A running head.

    Attributes:
        address: For ray.init and RAY_ADDRESS.
        dashboard: URL of the dashboard and of the Jobs API.
        token: What it asks for.
        token_file: File of mode 0600 that holds the token.
        folder: Ray's temporary folder, which holds its logs.
        environment: Variables of a process that may use the cluster.
    """

    address: str
    dashboard: str
    token: str
    token_file: Path
    folder: Path
    environment: Mapping[str, str]


@contextmanager
def ray_head(num_cpus: int = 2, **variables: str) -> Iterator[Head]:
    """Run a token-protected head on the loopback interface, and stop it with all that it started.

    Args:
        num_cpus: Cores that it offers.
        **variables: Further environment variables of the head, which jobs have too.
    """
    folder = Path(tempfile.mkdtemp(prefix="ray-"))  # short: it holds sockets, whose paths may have 107 characters
    token_file = folder / "token"
    token_file.touch(mode=0o600)
    token_file.write_text(token := secrets.token_hex(32))
    ports = _free_ports(len(_PORTS))
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    clean |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token_file), "RAY_USAGE_STATS_ENABLED": "0"}
    head = Head(f"127.0.0.1:{ports[0]}", f"http://127.0.0.1:{ports[1]}", token, token_file, folder, clean)
    bin_folder = str(Path(sys.executable).parent)
    environment = {**clean, **variables, "PATH": f"{bin_folder}:{clean.get('PATH', '')}"}
    options = {
        **dict(zip(_PORTS, ports, strict=True)),
        "node-ip-address": "127.0.0.1",
        "dashboard-host": "127.0.0.1",
        "temp-dir": folder,
        "num-cpus": num_cpus,
        "object-store-memory": 200 * 1024**2,
    }
    command = [
        f"{bin_folder}/ray",
        "start",
        "--head",
        "--block",
        *(f"--{key}={value}" for key, value in options.items()),
    ]
    with (folder / "head.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
    try:
        _wait(head, process)
        yield head
    finally:
        _stop(process)
        shutil.rmtree(folder, ignore_errors=True)


def _free_ports(number: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    ports = [probe.getsockname()[1] for probe in sockets]
    for probe in sockets:
        probe.close()
    return ports


def _wait(head: Head, process: subprocess.Popen[bytes]) -> None:
    """Wait until the dashboard answers and knows the head's own node."""
    request = urllib.request.Request(
        f"{head.dashboard}/api/v0/nodes", headers={"Authorization": f"Bearer {head.token}"}
    )
    end = time.monotonic() + _START_SECONDS
    while time.monotonic() < end and process.poll() is None:
        with suppress(OSError), urllib.request.urlopen(request, timeout=5) as answer:
            if json.load(answer)["data"]["result"]["result"]:
                return
        time.sleep(0.2)
    raise AssertionError(f"the head did not start: {(head.folder / 'head.log').read_text()}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End the head, which ends its children; whatever is left of them goes too, such as the driver of a job."""
    children = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(5)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    for child in children:
        with suppress(psutil.NoSuchProcess):
            child.kill()
    process.wait(10)
