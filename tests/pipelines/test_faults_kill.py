"""A command that dies at any step or byte goes on as if it had not, and two never train one run."""

from __future__ import annotations

import os
import random
import shutil
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient

from pipelines.checkpoint import CheckpointStore, Position
from pipelines.storage import Storage
from tests.pipelines import tiny
from tests.pipelines.faults import (
    STEPS,
    Run,
    assert_same_end,
    before_step,
    die,
    die_after_bytes,
    lineage,
    save_and_die,
    state_of,
    tree,
    wait_for,
)


def test_a_run_killed_again_and_again_ends_like_the_whole_one(undisturbed: Run, tmp_path: Path) -> None:
    run = Run(tmp_path)
    for step in (2, 11, 16):
        assert run.run(partial(before_step, step, die)).status == -9
    assert run.run().status == 0
    assert_same_end(run, undisturbed)


@pytest.mark.slow
def test_mlflow_has_one_run_with_every_step_once_after_a_kill(undisturbed: Run, tmp_path: Path) -> None:
    run = Run(tmp_path, **{"tracking.mlflow": "true"})
    for step in (7, 14):
        assert run.run(partial(before_step, step, partial(die, run.storage / "mlflow.db"))).status == -9
    assert run.run().status == 0
    assert_same_end(run, undisturbed)

    client = MlflowClient(f"sqlite:///{run.storage}/mlflow.db")
    experiment = client.get_experiment_by_name("perceiver")
    assert experiment is not None
    runs = {found.info.run_name: found.info for found in client.search_runs([experiment.experiment_id])}
    assert len(client.search_runs([experiment.experiment_id])) == 2, "the run and its stage"
    assert {name: info.status for name, info in runs.items()} == {"run": "FINISHED", "image-classifier": "FINISHED"}
    points = client.get_metric_history(runs["image-classifier"].run_id, "loss")
    losses = {record["step"]: record["loss"] for record in tiny.journal(run.folder) if record["kind"] == "train"}
    assert sorted(point.step for point in points) == list(range(1, STEPS + 1))
    assert {point.step: point.value for point in points} == losses


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def test_a_writer_that_dies_at_any_byte_leaves_the_newest_whole_checkpoint(tmp_path: Path) -> None:
    assert save_and_die(tmp_path, 1, 10**9) == 0
    store, newest, deaths = CheckpointStore(Storage.from_uri(tmp_path)), 1, 0
    size = size_of(tmp_path / Position(1).name)
    counts = random.Random(0)
    while deaths < 100:
        step = newest + 1
        status = save_and_die(tmp_path, step, counts.randrange(round(1.1 * size)))
        assert status in (0, -9)
        deaths += status == -9
        newest = step if status == 0 else newest
        assert store.newest() == Position(newest)
        state = store.load(Position(newest))
        assert torch.equal(state["state_dict"]["weight"], state_of(newest)["state_dict"]["weight"])
    assert newest > 1, "some writers come to an end"


def test_a_run_that_dies_while_it_writes_checkpoints_ends_like_the_whole_one(undisturbed: Run, tmp_path: Path) -> None:
    run, counts = Run(tmp_path), random.Random(1)
    size = size_of(undisturbed.checkpoint(STEPS))
    for _ in range(4):
        assert run.run(partial(die_after_bytes, counts.randrange(2 * size))).status == -9
    assert run.run().status == 0
    assert_same_end(run, undisturbed)


@pytest.mark.slow
def test_runs_that_die_at_any_byte_of_any_checkpoint_end_like_the_whole_one(undisturbed: Run, tmp_path: Path) -> None:
    counts, size = random.Random(2), size_of(undisturbed.checkpoint(STEPS))
    for number in range(12):
        root = tmp_path / str(number)
        root.mkdir()
        run = Run(root)
        assert run.run(partial(die_after_bytes, counts.randrange(6 * size))).status == -9
        assert run.run().status == 0
        assert_same_end(run, undisturbed)
        shutil.rmtree(root)


def test_a_second_command_is_refused_within_five_seconds_and_writes_nothing(undisturbed: Run, tmp_path: Path) -> None:
    first, second, go_on = Run(tmp_path), Run(tmp_path), tmp_path / "go on"
    second.log = tmp_path / "second.txt"
    process = first.start(partial(before_step, 11, partial(wait_for, go_on.exists)))
    try:
        wait_for(lambda: first.checkpoint(9).exists())
        wait_for(lambda: list(lineage(first)) == list(range(1, 11)))
        before = tree(first.storage)
        started = time.monotonic()
        refused = second.run()
        assert time.monotonic() - started < 5
        assert refused.status == 2
        assert refused.said.count("\n") == 1
        assert f"run is in use by process {process.pid} of " in refused.said
        assert f" on {os.uname().nodename} since 2" in refused.said
        assert tree(first.storage) == before
    finally:
        go_on.touch()
    assert first.end(process).status == 0
    assert_same_end(first, undisturbed)
