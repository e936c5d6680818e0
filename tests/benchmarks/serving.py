"""Load test: clients that ask one after the other, of our server and of MLflow's, with the same model and texts.

`python -m tests.benchmarks.serving` prints a Markdown table.
"""

from __future__ import annotations

import argparse
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
from urllib.parse import urlsplit

import numpy as np
import psutil

from perceiver.build import build_model
from perceiver.config import TextClassifierConfig
from perceiver.data.tokenizer import train_tokenizer
from perceiver.data.toy_reviews import toy_reviews
from perceiver.saving import save_model
from pipelines.models.flavor import write_pyfunc
from tests.model_servers import ModelServer, mlflow_model_server, own_server

Ask = Callable[[str], tuple[str, bytes]]
"""Returns path and body of a request about a text."""


_WORDS = 230


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


def percentile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that at least a share of all values don't exceed; NaN if there are none."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)] if values else math.nan


def table(rows: dict[str, Load], clients: int) -> str:
    """Write the Markdown table of what each server did."""
    lines = [
        f"| server, {clients} clients | requests/s | p50 ms | p99 ms | errors | RSS at start MB | at end MB |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, load in rows.items():
        figures = [
            f"{len(load.latencies) / load.seconds:.1f}",
            *(f"{1000 * percentile(load.latencies, share):.0f}" for share in (0.5, 0.99)),
            str(load.errors),
            *(f"{size / 1e6:.0f}" for size in load.memory),
        ]
        lines.append(f"| {name} | {' | '.join(figures)} |")
    return "\n".join(lines)


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


def measure(clients: int, seconds: float) -> dict[str, Load]:
    """Put both servers under load, one after the other."""
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
        loads = {}
        for title, (running, ask) in servers.items():
            with running as server:
                loads[title] = put_load(server, ask, texts, clients, seconds)
        return loads


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=16, help="clients that ask at the same time")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long each server is asked")
    values = parser.parse_args()
    print(table(measure(values.clients, values.seconds), values.clients))


if __name__ == "__main__":
    main()
