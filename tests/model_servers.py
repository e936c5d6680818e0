"""The two programs that answer HTTP requests with a trained model, in processes of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tests.mlflow_server import free_port, wait_until_healthy

_STOP_SECONDS = 60.0
_REPOSITORY = Path(__file__).parents[1]


@dataclass(frozen=True)
class ModelServer:
    """A server that answers.

    Attributes:
        url: Its address.
        process: Its first process.
        log: What it has printed.
    """

    url: str
    process: subprocess.Popen[bytes]
    log: Path


@contextmanager
def own_server(
    model: str, log: Path, options: Sequence[str] = (), environment: Mapping[str, str] | None = None
) -> Iterator[ModelServer]:
    """Run `python -m pipelines serve`, on a Ray cluster of its own unless the environment names one."""
    port = free_port()
    command = [sys.executable, "-m", "pipelines", "serve", f"--model={model}", f"--port={port}", *options]
    if environment is None:
        environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    with _server(command, f"http://127.0.0.1:{port}", log, environment) as server:
        yield server


@contextmanager
def mlflow_model_server(model: str, log: Path, tracking_uri: str) -> Iterator[ModelServer]:
    """Run `mlflow models serve`, which may not unpickle anything."""
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "models", "serve", f"--model-uri={model}", f"--port={port}"]
    environment = {
        **os.environ,
        "MLFLOW_TRACKING_URI": tracking_uri,
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",  # it starts uvicorn by its name
    }
    with _server([*command, "--env-manager=local"], f"http://127.0.0.1:{port}", log, environment) as server:
        yield server


@contextmanager
def _server(command: list[str], url: str, log: Path, environment: Mapping[str, str]) -> Iterator[ModelServer]:
    with log.open("ab") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=output, env=environment, cwd=_REPOSITORY, start_new_session=True
        )
    try:
        wait_until_healthy(url, process, log)
        yield ModelServer(url, process, log)
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(_STOP_SECONDS)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(_STOP_SECONDS)
