"""What the tests of faults share: a tiny run whose command meets a fault, and how to tell that nothing came of it."""

from __future__ import annotations

import hashlib
import io
import json
import math
import multiprocessing
import os
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any, NamedTuple

import torch

from perceiver.tasks.base import Task
from pipelines.__main__ import main
from pipelines.checkpoint import CheckpointStore, Position
from pipelines.steps import StepReader
from pipelines.storage import Storage
from tests.pipelines import tiny

SAMPLES, STEPS_PER_EPOCH, STEPS = 120, 8, 16  # a checkpoint is taken after steps 3, 6, 8, 9, 12, 15 and 16
OPTIONS = {
    "data.limit": SAMPLES,
    "encoder.num_latents": 4,
    "encoder.num_latent_channels": 16,
    "encoder.num_layers": 2,
    "encoder.num_self_attention_layers_per_block": 1,
    "dropout": 0.2,
    "optimizer.learning_rate": 0.01,
    "optimizer.schedule": "cosine",
    "trainer.max_epochs": 2,
    "trainer.batch_size": 16,
    "trainer.checkpoint_every_n_steps": 3,
    "scaling.num_workers": 0,
    "tracking.mlflow": "false",
    "tracking.tensorboard": "false",
}
IMAGES = {"data.path": "digits", "data.random_crop": 6, "num_frequency_bands": 2}
TEXTS = {"data.path": "toy_reviews", "data.max_seq_len": 16, "data.vocab_size": 200}

Fault = Callable[[], object]

# Children are forked from a process that has imported what a command needs, but never used a GPU or a thread.
_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload(["pipelines.run", "pipelines.worker", "tests.pipelines.faults"])


class Outcome(NamedTuple):
    """How a command ended: its status (-9: it was killed), and all that it printed."""

    status: int
    said: str

    @property
    def errors(self) -> list[str]:
        """The lines that say what went wrong."""
        return [line for line in self.said.splitlines() if line.startswith("error: ")]


class Run:
    """A tiny run, the command for it, and what both leave in a folder: runs/, cache/, what was said and trained.

    Args:
        root: The folder.
        verb: The pipeline.
        name: Name of the run.
        storage: Storage path (none: runs/).
        options: Further options of the command.
    """

    def __init__(
        self,
        root: Path,
        verb: str = "image-classifier",
        name: str = "run",
        storage: Path | None = None,
        **options: Any,
    ) -> None:
        self.storage = storage or root / "runs"
        self.folder = self.storage / name / verb
        self.log, self.trained = root / "log.txt", root / "trained.jsonl"
        places = {"data.cache_dir": root / "cache", "storage_path": self.storage, "run_name": name}
        settings = OPTIONS | (IMAGES if verb == "image-classifier" else TEXTS) | places | options
        self.arguments = [verb, *(f"--{name}={value}" for name, value in settings.items())]

    def start(self, fault: Fault | None = None, environment: Mapping[str, str] | None = None) -> ForkServerProcess:
        """Start the command in a process of its own."""
        variables = {**os.environ, "RAY_ADDRESS": "", **(environment or {})}
        process = _processes.Process(target=_child, args=(self.arguments, variables, self.log, self.trained, fault))
        process.start()
        return process

    def run(self, fault: Fault | None = None, environment: Mapping[str, str] | None = None) -> Outcome:
        """Run the command and return how it ended."""
        self.log.unlink(missing_ok=True)
        return self.end(self.start(fault, environment))

    def end(self, process: ForkServerProcess, deadline: float = 120.0) -> Outcome:
        """Wait for the command."""
        try:
            process.join(deadline)
            assert process.exitcode is not None, f"not done within {deadline} s: {self.log.read_text()}"
        finally:
            process.kill()
        outcome = Outcome(process.exitcode, self.log.read_text())
        assert "Traceback" not in outcome.said, outcome.said
        return outcome

    @property
    def store(self) -> CheckpointStore:
        """The checkpoints."""
        return CheckpointStore(Storage.from_uri(self.folder / "checkpoints"))

    def checkpoint(self, step: int) -> Path:
        """Return the folder of a checkpoint."""
        return self.folder / "checkpoints" / Position(step).name

    def run_until(self, checkpoint: int) -> None:
        """Run the command and kill it when a checkpoint is there, a few steps later."""
        then = partial(die, self.checkpoint(checkpoint))
        assert self.run(partial(before_step, checkpoint + 2, then)).status == -9

    def copied_to(self, root: Path) -> Run:
        """Return the same run with a copy of all that it left."""
        copy = Run(root)
        shutil.copytree(self.storage, copy.storage)
        shutil.copy(self.trained, copy.trained)
        return copy


def _child(arguments: list[str], variables: Mapping[str, str], log: Path, trained: Path, fault: Fault | None) -> None:
    """Run a command in a process of its own, for whose whole life its streams are open and its methods replaced."""
    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stdout = open(1, "w", closefd=False, buffering=1)  # noqa: SIM115
    sys.stderr = open(2, "w", closefd=False, buffering=1)  # noqa: SIM115
    os.environ.clear()
    os.environ.update(variables)
    torch.set_num_threads(1)
    _note_samples(trained)
    if fault is not None:
        fault()
    main(arguments)


def _note_samples(file: Path) -> None:
    """Note step, epoch and samples of every step that is trained."""
    add = StepReader.add

    def note(self: StepReader, record: dict[str, Any], numbers: Any, sample_ids: Any) -> Any:
        with file.open("a") as out:
            out.write(json.dumps([record["step"], record["epoch"], sample_ids.tolist()]) + "\n")
        return add(self, record, numbers, sample_ids)

    StepReader.add = note  # type: ignore[method-assign]


def before_step(step: int, action: Fault) -> None:
    """Let an action happen when a step begins."""
    _with_task_before_step(step, lambda task: action())


def poison_before_step(step: int) -> None:
    """Let a weight be no number when a step begins."""

    def poison(task: Task) -> None:
        next(task.model.parameters()).data.view(-1)[0] = math.nan

    _with_task_before_step(step, poison)


def _with_task_before_step(step: int, action: Callable[[Task], None]) -> None:
    training_step = Task.training_step

    def acting(self: Task, *arguments: Any) -> Any:
        if self.trainer.global_step == step - 1:
            action(self)
        return training_step(self, *arguments)

    Task.training_step = acting  # type: ignore[method-assign]


def die(after: Path | None = None) -> None:
    """End this process as the kernel does when memory runs out; before that, wait until a file or folder is there."""
    if after is not None:
        wait_for(after.exists)
    os.kill(os.getpid(), signal.SIGKILL)


class _Counted(io.FileIO):
    """A file of a process that dies when it has written so many bytes to all files of this kind."""

    left = 0

    def write(self, data: Any) -> int:
        content = bytes(data)
        if len(content) > _Counted.left:
            super().write(content[: _Counted.left])
            die()
        _Counted.left -= len(content)
        return super().write(content)


def die_after_bytes(count: int) -> None:
    """Let this process die when it has written so many bytes to checkpoints, manifests and other files of ours."""
    save, open_path = torch.save, Path.open
    _Counted.left = count

    def counted_save(state: Any, file: Path) -> None:
        with _Counted(file, "wb") as counted:
            save(state, counted)

    def counted_open(path: Path, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        return _Counted(path, mode) if mode == "xb" else open_path(path, mode, *arguments, **options)

    torch.save = counted_save
    Path.open = counted_open  # type: ignore[method-assign]


def save_and_die(folder: Path, step: int, count: int) -> int:
    """Save a checkpoint in a process that dies after so many bytes; return how it ended."""
    process = _processes.Process(target=_save, args=(folder, step, count))
    process.start()
    process.join(60)
    process.kill()
    assert process.exitcode is not None
    return process.exitcode


def _save(folder: Path, step: int, count: int) -> None:
    die_after_bytes(count)
    CheckpointStore(Storage.from_uri(folder)).save(state_of(step), Position(step))


def state_of(step: int) -> dict[str, Any]:
    """Return a small state that differs from step to step."""
    return {"state_dict": {"weight": torch.arange(64.0) + step}, "step": step}


def fill_disk(file: Path, left: int) -> None:
    """Fill the disk that a file is to lie on, all but so many bytes."""
    with file.open("wb", buffering=0) as out:
        free = os.statvfs(file.parent)
        for size in (2**16, 2**12):
            while free.f_bavail * free.f_frsize - left >= size:
                out.write(bytes(size))
                free = os.statvfs(file.parent)


def limit_file_size(count: int) -> None:
    """Let writes beyond so many bytes of a file fail in this process."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (count, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def lineage(run: Run) -> dict[int, tuple[int, list[int]]]:
    """Return epoch and samples of each step of the training that the result stems from.

    A step that is trained again makes void what followed it; none may be passed over.
    """
    steps: dict[int, tuple[int, list[int]]] = {}
    for line in run.trained.read_text().splitlines():
        step, epoch, samples = json.loads(line)
        assert step <= len(steps) + 1, f"step {step} comes after step {len(steps)}"
        steps = {number: steps[number] for number in range(1, step)} | {step: (epoch, samples)}
    return steps


def assert_same_end(run: Run, whole: Run) -> None:
    """Check that a run ended as one did that nothing happened to.

    Weights are equal to the bit, every step has one record, and each epoch trained each sample once.
    """
    assert tiny.weights(run.folder) == tiny.weights(whole.folder)
    assert tiny.journal(run.folder) == tiny.journal(whole.folder)
    steps = [record["step"] for record in tiny.journal(run.folder) if record["kind"] == "train"]
    assert steps == list(range(1, STEPS + 1))
    assert lineage(run) == lineage(whole)
    assert list(lineage(run)) == steps
    for epoch in range(STEPS // STEPS_PER_EPOCH):
        samples = [sample for of_epoch, batch in lineage(run).values() for sample in batch if of_epoch == epoch]
        assert sorted(samples) == list(range(SAMPLES))


def wait_for(condition: Callable[[], Any], deadline: float = 60.0) -> None:
    """Wait until a condition holds."""
    end = time.monotonic() + deadline
    while not condition():
        assert time.monotonic() < end, f"not within {deadline} s"
        time.sleep(0.01)


def tree(folder: Path) -> dict[str, tuple[int, str]]:
    """Return time and checksum of every file; a file that is written again with the same content differs too."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path): (path.stat().st_mtime_ns, hashlib.sha256(path.read_bytes()).hexdigest()) for path in files}
