"""Memory and speed of batch-predict on inputs of several sizes: what it takes must not grow with the input.

`python -m tests.benchmarks.batch_predict DATA` prints a Markdown table; DATA is a folder of Parquet files with texts.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from perceiver.build import build_model
from perceiver.config import EncoderConfig, TextClassifierConfig
from perceiver.data.tokenizer import train_tokenizer
from perceiver.saving import save_model

_MODEL = {"encoder": EncoderConfig(32, 64, 1, 1, 4, 4), "max_seq_len": 256}
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


def texts_of(data: Path) -> Iterator[str]:
    """Yield the texts of Parquet files, over and over."""
    files = sorted(data.rglob("*.parquet"))
    assert files, f"{data} holds no Parquet files"
    while True:
        for file in files:
            for batch in pq.ParquetFile(file).iter_batches(1000, columns=["text"]):
                yield from batch["text"].to_pylist()


def measure(data: Path, folder: Path, rows: int, actors: int) -> Use:
    """Classify so many rows with a command of its own, and watch it."""
    source, output, use = folder / f"{rows}.parquet", folder / str(rows), Use(rows)
    pq.write_table(pa.table({"text": list(islice(texts_of(data), rows))}), source, row_group_size=10_000)
    command = [sys.executable, "-m", "pipelines", "batch-predict", f"--model={folder / 'model'}", f"--input={source}"]
    command += [f"--output={output}", f"--num_actors={actors}"]
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


def table(uses: Sequence[Use]) -> str:
    """Write the Markdown table of what the commands took."""
    lines = [
        "| rows | seconds | rows/s | driver MB | largest actor MB | all processes MB |",
        "|---:|---:|---:|---:|---:|---:|",
    ]
    for use in uses:
        memory = " | ".join(f"{size / 1e6:.0f}" for size in (use.driver, use.actor, use.all))
        lines.append(f"| {use.rows:,} | {use.seconds:.0f} | {use.rows / use.seconds:.0f} | {memory} |")
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="folder of Parquet files with a column text")
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000], help="sizes of the inputs")
    parser.add_argument("--actors", type=int, default=2, help="processes that hold the model")
    values = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="perceiver-batch-") as name:
        folder = Path(name)
        tokenizer = train_tokenizer(list(islice(texts_of(values.data), 2000)), 10_003)
        config = TextClassifierConfig(**_MODEL, vocab_size=tokenizer.get_vocab_size(), class_names=("neg", "pos"))
        save_model(folder / "model", build_model(config), config, tokenizer)
        print(table([measure(values.data, folder, rows, values.actors) for rows in values.rows]))


if __name__ == "__main__":
    main()
