"""Load test: clients that ask one after the other, of our server and of MLflow's, with the same model and texts."""

from __future__ import annotations

import http.client
import json
import math
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import psutil

from perceiver.build import build_model
from perceiver.config import TextClassifierConfig
from perceiver.data.tokenizer import train_tokenizer
from perceiver.data.toy_reviews import toy_reviews
from perceiver.saving import save_model
from pipelines.models.flavor import write_pyfunc
from tests.benchmarks.settings import Settings, say
from tests.benchmarks.workloads import Size
from tests.model_servers import ModelServer, mlflow_model_server, own_server

Ask = Callable[[str], tuple[str, bytes]]
"""Returns path and body of a request about a text."""


_WORDS = 230
_CLIENTS = 16
_SECONDS: dict[Size, float] = {"default": 60.0, "tiny": 3.0}


@dataclass
class Load:
    """What clients saw of a server.

    Attributes:
        seconds: How long they asked.
        latencies: Seconds of each answer.
        errors: Requests without a good answer.
        memory: Bytes of the processes that hold the model, at the start and at the end.
    """

    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    errors: int = 0
    memory: tuple[int, int] = (0, 0)

    def figures(self) -> dict[str, Any]:
        """Return what is reported."""
        return {
            "requests_per_second": len(self.latencies) / self.seconds,
            "p50": percentile(self.latencies, 0.5),
            "p99": percentile(self.latencies, 0.99),
            "errors": self.errors,
            "memory": self.memory,
        }


def percentile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that at least a share of all values don't exceed; NaN if there are none."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)] if values else math.nan


def put_load(server: ModelServer, ask: Ask, texts: Sequence[str], clients: int, seconds: float) -> Load:
    """Let clients ask for some time, each one question after the other over one connection."""
    load = Load()
    lock = threading.Lock()
    _client(server.url, ask, _in_turn(texts, 0), time.monotonic() + min(3.0, seconds), Load(), lock)  # warm-up
    start_memory = memory_of(server)
    start = time.monotonic()
    threads = [
        threading.Thread(target=_client, args=(server.url, ask, _in_turn(texts, number), start + seconds, load, lock))
        for number in range(clients)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    load.seconds = time.monotonic() - start
    load.memory = (start_memory, memory_of(server))
    return load


def _in_turn(texts: Sequence[str], number: int) -> Iterator[str]:
    """Yield texts for ever, in an order of a client's own."""
    rng = np.random.default_rng(number)
    while True:
        yield texts[int(rng.integers(len(texts)))]


def _client(url: str, ask: Ask, texts: Iterator[str], end: float, load: Load, lock: threading.Lock) -> None:
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
    while time.monotonic() < end:
        path, body = ask(next(texts))
        begin = time.monotonic()
        try:
            connection.request("POST", path, body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            good = bool(json.loads(answer.read())["predictions"]) and answer.status == 200
        except (OSError, ValueError, KeyError, http.client.HTTPException):
            connection.close()
            good = False
        with lock:
            if good:
                load.latencies.append(time.monotonic() - begin)
            else:
                load.errors += 1
    connection.close()


def memory_of(server: ModelServer) -> int:
    """Return the resident bytes of the processes that hold a model: Serve's replicas, or MLflow's workers."""
    processes = psutil.Process(server.process.pid).children(recursive=True)
    names = {process: " ".join(_command(process)) for process in processes}
    holders = [process for process, name in names.items() if "ServeReplica" in name or "uvicorn" in name]
    return sum(process.memory_info().rss for process in holders or [psutil.Process(server.process.pid)])


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def _ask_own(text: str) -> tuple[str, bytes]:
    return "/predict", json.dumps({"texts": [text]}).encode()


def _ask_mlflow(text: str) -> tuple[str, bytes]:
    return "/invocations", json.dumps({"dataframe_split": {"columns": ["text"], "data": [[text]]}}).encode()


def long_texts(reviews: Sequence[str]) -> list[str]:
    """Join reviews until each text is as long as those of IMDB are on average."""
    texts: list[str] = []
    words: list[str] = []
    for review in reviews:
        words += review.split()
        if len(words) >= _WORDS:
            texts.append(" ".join(words[:_WORDS]))
            words = []
    return texts


def _save(folder: Path, texts: Sequence[str]) -> Path:
    """Write a text classifier of the default size with random weights."""
    tokenizer = train_tokenizer(texts, 10_003)
    config = TextClassifierConfig(class_names=("negative", "positive"))
    save_model(folder, build_model(config), config, tokenizer)
    return folder


def measure_serving(settings: Settings) -> dict[str, Any]:
    """Put both servers under load, one after the other.

    Returns:
        clients, seconds (of the load), and rows: name of a server -> requests/s, p50 and p99 in seconds, errors, and
        bytes of its processes at the start and at the end.
    """
    seconds = _SECONDS[settings.size]
    texts = long_texts(toy_reviews(num_train=2000, num_test=2, num_unsupervised=0)["train"]["text"])
    with tempfile.TemporaryDirectory(prefix="perceiver-serving-") as name:
        folder = Path(name)
        model = _save(folder / "model", texts)
        write_pyfunc(model, folder / "pyfunc")
        uri = f"sqlite:///{folder / 'mlflow.db'}"
        servers: dict[str, tuple[AbstractContextManager[ModelServer], Ask]] = {
            "python -m pipelines serve": (own_server(str(model), folder / "own.txt"), _ask_own),
            "mlflow models serve": (
                mlflow_model_server(str(folder / "pyfunc"), folder / "mlflow.txt", uri),
                _ask_mlflow,
            ),
        }
        rows = {}
        for title, (running, ask) in servers.items():
            with running as server:
                rows[title] = put_load(server, ask, texts, _CLIENTS, seconds).figures()
            say(f"    {title}: {rows[title]['requests_per_second']:.1f} requests a second")
    return {"clients": _CLIENTS, "seconds": seconds, "rows": rows}
