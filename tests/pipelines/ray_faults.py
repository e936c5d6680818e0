"""Runs on Ray workers that note which samples they train, and what such a run has to be like after a fault.

`main` is `python -m pipelines` with workers that take their time for each step, so that a test can hit them in the
middle, one of which falls asleep if a test wants it to.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tests.commands import commands

STEPS_PER_EPOCH, EPOCHS = 7, 4
STEPS = STEPS_PER_EPOCH * EPOCHS
CHECKPOINT_STEPS = 3
VERB = "image-classifier"
OPTIONS = {
    "data.path": "digits",
    "data.limit": 104,  # the last batch of an epoch has half the samples
    "encoder.num_latents": 4,
    "encoder.num_latent_channels": 16,
    "encoder.num_layers": 2,
    "encoder.num_self_attention_layers_per_block": 1,
    "num_frequency_bands": 4,
    "dropout": 0.1,
    "optimizer.schedule": "cosine",
    "trainer.max_epochs": EPOCHS,
    "trainer.batch_size": 16,
    "trainer.checkpoint_every_n_steps": CHECKPOINT_STEPS,
    "scaling.num_workers": 2,
    "scaling.cpus_per_worker": 1,
    "tracking.tensorboard": "false",
}
_STEP_SECONDS = 0.1
_PATIENCE_SECONDS = 8.0

Note = dict[str, Any]
Ids = dict[int, list[int]]


def wait_for(condition: Callable[[], Any], deadline: float = 150.0) -> Any:
    end = time.monotonic() + deadline
    while time.monotonic() < end:
        if result := condition():
            return result
        time.sleep(0.05)
    raise AssertionError(f"not within {deadline} s")


@dataclass(frozen=True)
class Run:
    """A run's command and what it leaves.

    Attributes:
        root: Folder of everything, shared by the runs that are compared.
        name: Name of the run.
        environment: Variables of the command.
        options: What is set otherwise than in OPTIONS.
        log_name: What the log is called (empty: like the run).
        sleeps_at: Step after which rank 0 once sleeps for longer than any test waits (0: never).
    """

    root: Path
    name: str
    environment: Mapping[str, str]
    options: Mapping[str, Any]
    log_name: str = ""
    sleeps_at: int = 0

    @property
    def folder(self) -> Path:
        return self.root / "runs" / self.name / VERB

    @property
    def log(self) -> str:
        return self._log.read_text()

    @property
    def _log(self) -> Path:
        return self.root / f"{self.log_name or self.name}.log"

    @property
    def _notes(self) -> Path:
        return self.root / "notes" / self.name

    @contextmanager
    def started(self) -> Iterator[subprocess.Popen[bytes]]:
        """Start the command, which does not outlive the context."""
        self._notes.mkdir(parents=True, exist_ok=True)
        names = {"run_name": self.name, "storage_path": self.root / "runs", "data.cache_dir": self.root / "cache"}
        options = [f"--{name}={value}" for name, value in {**OPTIONS, **names, **self.options}.items()]
        program = "from tests.pipelines.ray_faults import main; main()"
        arguments = [sys.executable, "-c", program, str(self._notes), str(self.sleeps_at), VERB, *options]
        environment = {**self.environment, "OMP_NUM_THREADS": "1"}
        with commands(self._log, environment) as start:
            yield start(arguments)

    def end(self) -> int:
        """Run the command to its end and return its status."""
        with self.started() as process:
            return process.wait(200)

    def notes(self) -> list[Note]:
        lines = [line for file in self._notes.glob("*.jsonl") for line in file.read_text().splitlines()]
        return sorted((json.loads(line) for line in lines), key=lambda note: note["time"])

    def wait_for_step(self, process: subprocess.Popen[bytes], step: int, attempts: int = 1) -> dict[int, int]:
        """Wait until an attempt trains a step; return the processes of the workers by their rank."""

        def workers() -> dict[int, int]:
            assert process.poll() is None, self.log
            notes = self.notes()
            reached = sorted({tuple(note["attempt"]) for note in notes})
            if len(reached) < attempts or max(note["step"] for note in notes if _is_of(note, reached[-1])) < step:
                return {}
            return {note["rank"]: note["pid"] for note in notes if _is_of(note, reached[-1])}

        found: dict[int, int] = wait_for(workers)
        return found

    def trained(self) -> Ids:
        """Return the samples of each step of the training that counts, those of steps that were lost left out."""
        notes = self.notes()
        starts = {}
        for note in notes:
            attempt = tuple(note["attempt"])
            starts[attempt] = min(note["step"], starts.get(attempt, note["step"]))
        trained: Ids = {}
        for attempt, start in sorted(starts.items()):
            trained = {step: ids for step, ids in trained.items() if step < start}
            assert len(trained) == start - 1, f"steps before {start} are missing"
            own = [note for note in notes if _is_of(note, attempt)]
            for step in range(start, max(note["step"] for note in own) + 1):
                trained[step] = sorted(sum((note["ids"] for note in own if note["step"] == step), []))
        return trained

    def worlds(self) -> list[int]:
        """Return how many workers each attempt had."""
        worlds = {tuple(note["attempt"]): note["world"] for note in self.notes()}
        return [world for _, world in sorted(worlds.items())]

    def records(self, *kinds: str) -> list[dict[str, Any]]:
        records = [json.loads(line) for line in (self.folder / "metrics.jsonl").read_text().splitlines()]
        return [record for record in records if record["kind"] in kinds]

    def reasons(self) -> list[str]:
        """Return why attempts ended, as the journal has it."""
        return [event["reason"] for event in self.records("event") if event["event"] == "restart"]

    def result(self) -> dict[str, Any]:
        result: dict[str, Any] = json.loads((self.folder / "stage.json").read_text())["result"]
        return result

    def mlflow(self) -> dict[str, Any]:
        """Return what MLflow has of the run and its stage; there must be one of each."""
        from mlflow import MlflowClient

        client = MlflowClient(f"sqlite:///{self.root}/runs/mlflow.db")
        experiment = client.get_experiment_by_name("perceiver")
        assert experiment is not None
        runs = client.search_runs([experiment.experiment_id])
        (parent,) = [run for run in runs if run.info.run_name == self.name]
        (stage,) = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
        history = client.get_metric_history(stage.info.run_id, "loss")
        return {
            "status": [parent.info.status, stage.info.status],
            "steps": sorted(point.step for point in history),
            "restarts": int(stage.data.tags.get("restarts", "0")),
        }


def _is_of(note: Note, attempt: tuple[Any, ...]) -> bool:
    return tuple(note["attempt"]) == attempt


def assert_as_if_undisturbed(run: Run, whole: Run) -> None:
    """Compare a run that went through faults with one that went through none."""
    trained = run.trained()
    assert trained == whole.trained()
    for epoch in range(EPOCHS):
        steps = range(epoch * STEPS_PER_EPOCH + 1, (epoch + 1) * STEPS_PER_EPOCH + 1)
        samples = sum((trained[step] for step in steps), [])
        assert len(samples) == len(set(samples)) == 104
    assert [record["step"] for record in run.records("train")] == list(range(1, STEPS + 1))
    assert_in_mlflow(run, "FINISHED", STEPS)
    assert greatest_difference(run, whole) <= 1e-6


def assert_in_mlflow(run: Run, status: str, steps: int) -> None:
    """Check that MLflow has one run, with each step once, and counts its restarts."""
    expected = {"status": [status, status], "steps": list(range(1, steps + 1)), "restarts": len(run.reasons())}
    assert run.mlflow() == expected


def newest_checkpoint(run: Run) -> int:
    return max(int(folder.name.removeprefix("step-")) for folder in (run.folder / "checkpoints").glob("step-*"))


def greatest_difference(run: Run, whole: Run) -> float:
    from safetensors.torch import load_file

    ours, theirs = (load_file(one.folder / "model" / "model.safetensors") for one in (run, whole))
    assert ours.keys() == theirs.keys()
    return max((ours[name] - theirs[name]).abs().max().item() for name in ours)


def main() -> None:
    """Do what `python -m pipelines` does, with workers that a test watches."""
    from pipelines import mailbox, ray_train
    from pipelines.__main__ import main
    from pipelines.program import run_program

    notes, sleeps_at, *arguments = sys.argv[1:]
    mailbox._PATIENCE_SECONDS = _PATIENCE_SECONDS
    watch = partial(_watch, Path(notes), int(sleeps_at), time.time())
    watch()  # for training in this process
    ray_train._worker = partial(_watched, ray_train._worker, watch)
    run_program(partial(main, arguments))


def _watched(worker: Callable[[Any], Any], watch: Callable[[], None], config: Any) -> Any:
    watch()
    return worker(config)


def _watch(folder: Path, sleeps_at: int, start: float) -> None:
    """Let this process note each step."""
    from pipelines.callback import StageCallback

    original = StageCallback.on_train_batch_end

    def on_train_batch_end(self: Any, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        note = {
            "time": time.time(),
            "attempt": [start, len(self.link.reasons)],
            "pid": os.getpid(),
            "rank": self.link.rank,
            "world": self.link.world_size,
            "step": trainer.global_step,
            "ids": [sample for sample in batch["sample_ids"].tolist() if sample >= 0],
        }
        with (folder / f"{os.getpid()}.jsonl").open("a") as file:
            file.write(json.dumps(note) + "\n")
        time.sleep(_STEP_SECONDS)
        if trainer.global_step == sleeps_at and self.link.rank == 0 and not (folder / "asleep").exists():
            (folder / "asleep").touch()
            time.sleep(3600)
        original(self, trainer, module, outputs, batch, batch_idx)

    StageCallback.on_train_batch_end = on_train_batch_end  # type: ignore[method-assign]
