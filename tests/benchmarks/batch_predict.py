"""Memory and speed of batch-predict on inputs of several sizes: what it takes must not grow with the input."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from perceiver.build import build_model
from perceiver.config import EncoderConfig, TextClassifierConfig
from perceiver.data.tokenizer import train_tokenizer
from perceiver.data.toy_reviews import toy_reviews
from perceiver.saving import save_model
from tests.benchmarks.settings import Settings
from tests.benchmarks.workloads import Size

_MODEL: dict[str, Any] = {"encoder": EncoderConfig(32, 64, 1, 1, 4, 4), "max_seq_len": 256}
_ACTORS = 2
_ROWS: dict[Size, tuple[int, ...]] = {"default": (10_000, 100_000), "tiny": (100, 200)}
_INTERVAL = 0.5


@dataclass
class Use:
    """What a command took.

    Attributes:
        rows: Rows of its input.
        seconds: How long it ran, with its start and its end.
        driver: Greatest resident bytes of the command's own process.
        actor: Greatest resident bytes of a process that holds the model.
        all: Greatest bytes of all its processes, Ray's own among them; what they share counts once.
    """

    rows: int
    seconds: float = 0.0
    driver: int = 0
    actor: int = 0
    all: int = 0

    def look(self, driver: psutil.Process) -> None:
        """Note what the processes take now."""
        everything = 0
        for process in (driver, *driver.children(recursive=True)):
            try:
                memory, is_actor = process.memory_full_info(), "ShardPredictor" in " ".join(process.cmdline())
            except psutil.Error:  # it has just ended
                continue
            everything += memory.pss
            if process == driver:
                self.driver = max(self.driver, memory.rss)
            elif is_actor:
                self.actor = max(self.actor, memory.rss)
        self.all = max(self.all, everything)


def texts_of(folder: str | None) -> Iterator[str]:
    """Yield the texts of a folder of Parquet files, or the toy reviews, over and over."""
    if folder is None:
        yield from cycle(toy_reviews()["unsupervised"]["text"])
        return
    for file in cycle(sorted(Path(folder).rglob("*.parquet"))):
        for batch in pq.ParquetFile(file).iter_batches(1000, columns=["text"]):
            yield from batch["text"].to_pylist()


def _measure(texts: Iterator[str], folder: Path, rows: int) -> Use:
    """Classify so many rows with a command of its own, and watch it."""
    source, output, use = folder / f"{rows}.parquet", folder / str(rows), Use(rows)
    pq.write_table(pa.table({"text": list(islice(texts, rows))}), source, row_group_size=10_000)
    command = [sys.executable, "-m", "pipelines", "batch-predict", f"--model={folder / 'model'}", f"--input={source}"]
    command += [f"--output={output}", f"--num_actors={_ACTORS}"]
    start = time.monotonic()
    with subprocess.Popen(command, env={**os.environ, "RAY_ADDRESS": "local"}) as running:
        driver = psutil.Process(running.pid)
        while running.poll() is None:
            use.look(driver)
            time.sleep(_INTERVAL)
    use.seconds = time.monotonic() - start
    assert running.returncode == 0, f"batch-predict ended with status {running.returncode}"
    written = sum(pq.read_metadata(part).num_rows for part in output.glob("part-*.parquet"))
    assert written == use.rows, f"{written} of {use.rows} rows were written"
    return use


def measure_batch_predict(settings: Settings) -> dict[str, Any]:
    """Classify inputs of several sizes.

    Returns:
        actors (processes that hold the model) and rows: what was used for each size.
    """
    data = settings.find_data("imdb")
    with tempfile.TemporaryDirectory(prefix="perceiver-batch-") as name:
        folder = Path(name)
        tokenizer = train_tokenizer(list(islice(texts_of(data), 2000)), 10_003)
        config = TextClassifierConfig(**_MODEL, vocab_size=tokenizer.get_vocab_size(), class_names=("neg", "pos"))
        save_model(folder / "model", build_model(config), config, tokenizer)
        uses = [_measure(texts_of(data), folder, rows) for rows in _ROWS[settings.size]]
    return {"actors": _ACTORS, "rows": [asdict(use) for use in uses]}
