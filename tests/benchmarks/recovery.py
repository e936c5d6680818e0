"""What a death costs: seconds until training steps again after rank 0 was killed, steps lost, waits for checkpoints.

Two workers on a Ray cluster of this machine's own train the digits. They are killed again and again at different
distances from their last checkpoint.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipelines.config import ImageClassifierStageConfig
from tests.benchmarks.settings import REPOSITORY, Settings, say
from tests.benchmarks.workloads import Size
from tests.pipelines.ray_faults import VERB, Run

_CHECKPOINT_STEPS = 10
_KILLS: dict[Size, int] = {"default": 10, "tiny": 1}
_EPOCHS: dict[Size, int] = {"default": 20, "tiny": 1}


@dataclass(frozen=True)
class Kill:
    """A death of rank 0.

    Attributes:
        seconds: From the signal to the end of the first step of the next attempt.
        lost: Steps that had to be trained again.
    """

    seconds: float
    lost: int


def measure_recovery(settings: Settings) -> dict[str, Any]:
    """Kill rank 0 again and again, then train without deaths.

    Returns:
        checkpoint_steps, kills, and the step and its wait for checkpoints in `waits`.
    """
    with tempfile.TemporaryDirectory(prefix="perceiver-benchmark-") as folder:
        kills = _kill(Path(folder), _KILLS[settings.size])
        waits = _waits(Path(folder), _EPOCHS[settings.size])
    return {"checkpoint_steps": _CHECKPOINT_STEPS, "kills": [asdict(kill) for kill in kills], "waits": waits}


def _kill(folder: Path, number: int) -> list[Kill]:
    options = {
        "data.limit": "null",
        "trainer.max_epochs": 1000,
        "trainer.checkpoint_every_n_steps": _CHECKPOINT_STEPS,
        "scaling.max_failures": number,
        "tracking.mlflow": "false",
    }
    run = Run(folder, "kills", {**os.environ, "RAY_ADDRESS": "local"}, options)
    kills = []
    with run.started() as process:
        begin = 1
        for attempt in range(1, number + 1):
            workers = run.wait_for_step(process, begin + _CHECKPOINT_STEPS + attempt % _CHECKPOINT_STEPS, attempt)
            os.kill(workers[0], signal.SIGKILL)
            killed = time.time()
            run.wait_for_step(process, 1, attempt + 1)
            before = [note for note in run.notes() if note["attempt"][1] < attempt]
            first = next(note for note in run.notes() if note["attempt"][1] == attempt)
            begin = first["step"]
            kills.append(Kill(first["time"] - killed, max(note["step"] for note in before) - begin + 1))
            say(f"  killed at step {begin + kills[-1].lost - 1}: {kills[-1].seconds:.1f} s")
        process.terminate()
        process.wait(60)
    return kills


def _waits(folder: Path, epochs: int) -> dict[str, float]:
    """Train the default image classifier in one process, with a checkpoint after each epoch.

    Returns:
        Seconds of a step, the share of them that it waited for checkpoints, and steps per checkpoint.
    """
    options = {
        "run_name": "waits",
        "storage_path": folder / "runs",
        "data.path": "digits",
        "data.cache_dir": folder / "cache",
        "trainer.max_epochs": epochs,
        "tracking.mlflow": "false",
        "tracking.tensorboard": "false",
        "scaling.num_workers": 0,
    }
    arguments = [f"--{name}={value}" for name, value in options.items()]
    subprocess.run(
        [sys.executable, "-m", "pipelines", VERB, *arguments], cwd=REPOSITORY, check=True, stdout=subprocess.DEVNULL
    )
    lines = (folder / "runs" / "waits" / VERB / "metrics.jsonl").read_text().splitlines()
    steps = [record for record in map(json.loads, lines) if record["kind"] == "train"]
    lengths = [1 / step["samples_per_second"] for step in steps]  # in batches' sizes, which are equal
    waited = sum(length * step["checkpoint_wait"] for length, step in zip(lengths, steps, strict=True))
    return {
        "step_seconds": ImageClassifierStageConfig().trainer.batch_size * sum(lengths) / len(steps),
        "share": waited / sum(lengths),
        "steps_per_checkpoint": len(steps) / epochs,
    }
