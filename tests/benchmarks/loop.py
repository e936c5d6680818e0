"""What Lightning and our callback add to a training step: a stage as it is trained, against a bare loop of its steps.

    python -m tests.benchmarks.loop [--rounds 5] [--steps 200] [--profile]

Both do the same work on the same batches, in turns, in this process. A step lasts from one computation of a loss to the
next, so that starting, validation, checkpoints and the test are left out, and everything between the steps counts.
"""

from __future__ import annotations

import argparse
import cProfile
import math
import pstats
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import torch

from perceiver.config import DecoderConfig, EncoderConfig, TextDataConfig, TrainerConfig
from perceiver.data.sampling import Loading
from perceiver.optim import build_optimizer, schedule_factor
from perceiver.random import step_seed
from perceiver.tasks.base import Batch, Task
from pipelines.build import build
from pipelines.config import MLMStageConfig, StageConfig, TextClassifierStageConfig
from pipelines.control import Link
from pipelines.stages import Prepared, StagePlan, prepare
from pipelines.storage import Storage
from pipelines.worker import run_stage

_WARM_UP = 10
_BATCH_SIZE = 32
_MOST_SAMPLES = 3200  # of an epoch; there are a few more toy reviews to train on


def stages(cache: str, steps: int) -> dict[str, StageConfig]:
    """Return the stages that are measured: one with steps of about 10 ms, and the quickstart's pretraining."""
    samples = steps * _BATCH_SIZE
    trainer = TrainerConfig(max_epochs=math.ceil(samples / _MOST_SAMPLES), batch_size=_BATCH_SIZE)
    limit = min(samples, _MOST_SAMPLES)
    text = TextDataConfig(path="toy_reviews", limit=limit, max_seq_len=64, vocab_size=2000, cache_dir=cache)
    small = EncoderConfig(num_latents=4, num_latent_channels=16, num_layers=1, num_self_attention_layers_per_block=2)
    tiny = TextClassifierStageConfig(data=text, encoder=small, trainer=trainer)
    encoder = EncoderConfig(num_latents=16, num_layers=2, num_self_attention_layers_per_block=2)
    mlm = MLMStageConfig(data=text, encoder=encoder, decoder=DecoderConfig(), samples=(), trainer=trainer)
    return {"tiny": tiny, "quickstart": mlm}


class Clock:
    """Notes when each training step computes its loss, in seconds of the clock and of this process's cores."""

    def __init__(self) -> None:
        self.ticks: list[tuple[float, float]] = []

    @contextmanager
    def watch(self, kind: type[Task]) -> Iterator[None]:
        """Watch the steps of a kind of task."""
        original = kind.loss_terms

        def loss_terms(task: Task, batch: Batch) -> Any:
            if torch.is_grad_enabled():  # not in validation
                self.ticks.append((time.perf_counter(), time.process_time()))
            return original(task, batch)

        kind.loss_terms = loss_terms  # type: ignore[method-assign]
        try:
            yield
        finally:
            kind.loss_terms = original  # type: ignore[method-assign]

    def milliseconds(self) -> tuple[float, float]:
        """Return the median length of a step by the clock, and the mean one in seconds of the cores."""
        ticks = self.ticks[_WARM_UP:]
        lengths = [after[0] - before[0] for before, after in zip(ticks, ticks[1:], strict=False)]
        return 1e3 * median(lengths), 1e3 * (ticks[-1][1] - ticks[0][1]) / (len(ticks) - 1)


def train_bare(task: Task, loader: Any, config: StageConfig) -> None:
    """Train for an epoch in the fewest lines that do the same."""
    optimizer = build_optimizer(task.model, config.optimizer)
    factor = schedule_factor(config.optimizer, task.total_steps)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    task.train()
    for step, batch in enumerate(loader):
        torch.default_generator.manual_seed(step_seed(config.trainer.seed, step, 0))
        terms = task.loss_terms(batch)
        optimizer.zero_grad()
        (terms.total / terms.num_terms.clamp(min=1)).backward()
        optimizer.step()
        scheduler.step()


def measure_bare(config: StageConfig, prepared: Prepared) -> tuple[float, float]:
    """Return milliseconds of a step of the bare loop, by the clock and of the cores."""
    clock = Clock()
    task, data = build(config, prepared, Loading(config.trainer.batch_size, config.trainer.seed))
    with clock.watch(type(task)):
        train_bare(task, data.train_dataloader(), config)
    return clock.milliseconds()


def measure_stage(config: StageConfig, prepared: Prepared, profile: cProfile.Profile | None) -> tuple[float, float]:
    """Return milliseconds of a step of the stage as it is trained, by the clock and of the cores."""
    clock = Clock()
    task, _ = build(config, prepared, Loading(config.trainer.batch_size, config.trainer.seed))
    with tempfile.TemporaryDirectory(prefix="perceiver-benchmark-") as folder, clock.watch(type(task)):
        plan = StagePlan("stage", config, prepared, Storage.from_uri(Path(folder)))
        if profile:
            profile.enable()
        run_stage(plan, Link(lambda state: None))
        if profile:
            profile.disable()
    return clock.milliseconds()


def compare(name: str, config: StageConfig, rounds: int, profile: cProfile.Profile | None) -> None:
    """Measure a stage and the bare loop in turns, and print the medians of the rounds."""
    prepared = prepare(config)
    bare, stage = [], []
    for _ in range(rounds):
        bare.append(measure_bare(config, prepared))
        stage.append(measure_stage(config, prepared, profile))
    for kind, unit in enumerate(("wall", "cores")):
        without, whole = (median(times[kind] for times in measured) for measured in (bare, stage))
        added = whole - without
        print(f"{name:10}  {unit:5}  {without:7.2f} ms bare  {whole:7.2f} ms  +{added:.2f} ms  {added / without:+.1%}")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=200, help="steps of a round")
    parser.add_argument("--threads", type=int, default=1, help="cores of a step; more only add noise to steps so short")
    parser.add_argument("--profile", action="store_true", help="show where the time of the tiny stage goes")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory(prefix="perceiver-benchmark-") as cache:
        chosen = stages(cache, arguments.steps)
        if not arguments.profile:
            for name, config in chosen.items():
                compare(name, config, arguments.rounds, None)
            return
        profile = cProfile.Profile()
        compare("tiny", chosen["tiny"], 1, profile)
        pstats.Stats(profile).sort_stats("tottime").print_stats(45)


if __name__ == "__main__":
    main()
