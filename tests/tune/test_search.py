"""Searches through Ray Tune: they end, they stop, they die, and they go on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from pipelines.storage import Storage
from tests.commands import commands
from tests.tune.options import options
from tune.record import TrialRecord, read_records

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

Start = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log.txt"


@pytest.fixture
def start(tmp_path: Path, log: Path) -> Iterator[Start]:
    """Start searches, whose output goes to the log; none outlives the test."""
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    with commands(log, environment) as start_command:

        def start(verb: str = "image-classifier", **changes: Any) -> subprocess.Popen[bytes]:
            return start_command([sys.executable, "-m", "tune", verb, *options(tmp_path, **changes)])

        yield start


def records(tmp_path: Path) -> list[TrialRecord]:
    return list(read_records(Storage.from_uri(tmp_path / "runs" / "search")))


def wait_for(
    condition: Callable[[], bool], process: subprocess.Popen[bytes], log: Path, seconds: float = 200.0
) -> None:
    """Look again and again until a condition holds, or the process ends, or the time is over."""
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < end, log.read_text()
        time.sleep(0.02)


def test_a_search_from_the_command_to_the_retrained_best(tmp_path: Path, start: Start, log: Path) -> None:
    tracking = {"tracking.mlflow": "true"}
    assert start(num_samples=6, keep_trials=2, search="random", **tracking).wait(400) == 0, log.read_text()
    found = records(tmp_path)
    assert [record.number for record in found] == list(range(6))
    assert {record.state for record in found} <= {"finished", "stopped"}
    assert found[0].values["encoder.num_latents"] == 2
    assert all(record.parameters and record.seconds > 0 and record.epochs for record in found)

    folder = tmp_path / "runs" / "search"
    with_checkpoints = [path for path in (folder / "trials").iterdir() if any(path.glob("*/checkpoints/step-*"))]
    assert len(with_checkpoints) == 2
    table = pq.read_table(folder / "trials.parquet")
    assert table.column("trial").to_pylist() == list(range(6))
    assert {"encoder.num_latents", "val_accuracy", "parameters", "seconds"} <= set(table.column_names)
    page = (folder / "tune.html").read_text()
    assert "Trial" in page
    assert "https://cdn" not in page.split("<h1>")[0]
    assert len(list((folder / "pictures").glob("*.png"))) >= 5
    assert not (folder / ".ray").exists()

    best = max(found, key=lambda record: (max(e["val_accuracy"] for e in record.epochs), -record.number))
    config = yaml.safe_load((folder / "best.yaml").read_text())
    assert config["encoder"]["num_latents"] == best.values["encoder.num_latents"]
    assert config["optimizer"]["learning_rate"] == best.values["optimizer.learning_rate"]
    command = [sys.executable, "-m", "pipelines", "image-classifier", f"--config={folder / 'best.yaml'}"]
    subprocess.run(command, check=True, capture_output=True, timeout=200)
    stage = json.loads((tmp_path / "runs" / "search-best" / "image-classifier" / "stage.json").read_text())
    assert stage["status"] == "finished"
    assert_tracked(tmp_path, found)

    assert start(num_samples=6).wait(100) == 2
    assert "holds a search already" in log.read_text()


def assert_tracked(tmp_path: Path, found: list[TrialRecord]) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{tmp_path / 'runs' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("perceiver")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    (parent,) = [run for run in runs if run.info.run_name == "search"]
    assert {artifact.path for artifact in client.list_artifacts(parent.info.run_id)} >= {
        "best.yaml", "trials.parquet", "tune.html", "pictures"
    }  # fmt: skip
    assert parent.data.metrics["trials"] == len(found)
    assert parent.data.tags["mlflow.note.content"].endswith("artifacts/tune.html)")
    assert parent.info.start_time <= min(record.start_time for record in found) * 1000
    children = {run.info.run_name: run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id}
    assert sorted(children) == [f"trial {record.name}" for record in found]
    for record in found:
        child = children[f"trial {record.name}"]
        assert child.info.status == "FINISHED"
        assert child.data.tags["state"] == record.state
        assert child.data.params["encoder.num_latents"] == str(record.values["encoder.num_latents"])
        history = client.get_metric_history(child.info.run_id, "val_accuracy")
        assert [point.value for point in history] == [epoch["val_accuracy"] for epoch in record.epochs]


def test_killed_search_goes_on(tmp_path: Path, start: Start, log: Path) -> None:
    settings = {"num_samples": 5, "scheduler": "none", "max_concurrent": 1, "trainer.max_epochs": 12, "data.limit": 400}
    process = start(**settings)
    wait_for(lambda: any(len(r.epochs) >= 3 and r.number == 2 for r in records(tmp_path)), process, log)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait(30)
    before = {record.number: record for record in records(tmp_path)}
    assert [before[number].state for number in (0, 1)] == ["finished", "finished"]

    assert start(**settings).wait(60) == 2
    assert start(**settings, resume="true").wait(400) == 0, log.read_text()
    after = {record.number: record for record in records(tmp_path)}
    assert sorted(after) == [0, 1, 2, 3, 4]
    assert {record.state for record in after.values()} == {"finished"}
    for number in (0, 1):
        assert after[number].end_time == before[number].end_time
    assert after[2].values == before[2].values
    assert after[2].epochs[:3] == before[2].epochs[:3]
    assert [epoch["epoch"] for epoch in after[2].epochs] == list(range(1, 13))
    trial_log = (tmp_path / "runs" / "search" / "trials" / "0002" / "log.txt").read_text()
    assert "goes on from its newest checkpoint" in trial_log


def test_ctrl_c_keeps_what_there_is(tmp_path: Path, start: Start, log: Path) -> None:
    from mlflow import MlflowClient

    process = start(**{"num_samples": 50, "scheduler": "none", "trainer.max_epochs": 30, "tracking.mlflow": "true"})
    wait_for(lambda: any(record.state == "finished" for record in records(tmp_path)), process, log)
    process.send_signal(signal.SIGINT)
    assert process.wait(100) == 130, log.read_text()
    assert "stopped; the same command with --resume true goes on" in log.read_text()
    assert "Traceback" not in log.read_text()
    states = [record.state for record in records(tmp_path)]
    assert set(states) == {"finished", "killed"}
    assert (tmp_path / "runs" / "search" / "best.yaml").exists()
    client = MlflowClient(f"sqlite:///{tmp_path / 'runs' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("perceiver")
    assert experiment is not None
    statuses = {run.info.run_name: run.info.status for run in client.search_runs([experiment.experiment_id])}
    assert statuses["search"] == "KILLED"
    for record in records(tmp_path):
        assert statuses[f"trial {record.name}"] == ("KILLED" if record.state == "killed" else "FINISHED")


def test_a_trial_that_fails_does_not_end_the_others(tmp_path: Path, start: Start, log: Path) -> None:
    space = tmp_path / "bad.yaml"
    space.write_text("optimizer.learning_rate: {choice: [1.0e-3, 1.0e+30]}\nencoder.num_latents: {choice: [0, 2]}")
    assert start(num_samples=6, space=space, search="random").wait(300) == 0, log.read_text()
    found = records(tmp_path)
    failed = [record for record in found if record.state == "failed"]
    refused = [record for record in found if record.state == "refused"]
    assert failed
    assert refused
    assert all("training diverged" in record.reason for record in failed)
    assert all("num_latents is 0" in record.reason for record in refused)
    assert sum(record.state in ("finished", "stopped", "failed") for record in found) == 6
    assert found[0].state == "finished"


def trial_processes(search: subprocess.Popen[bytes]) -> list[int]:
    """Return the ids of the processes in which trials of a search train."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            is_trial = (folder / "cmdline").read_bytes().startswith(b"ray::ResourceTrainable")
            if is_trial and os.getsid(int(folder.name)) == search.pid:
                found.append(int(folder.name))
        except OSError:  # it has ended
            continue
    return found


def test_a_process_that_dies_takes_only_its_trial_along(tmp_path: Path, start: Start, log: Path) -> None:
    settings = {"num_samples": 3, "scheduler": "none", "max_concurrent": 1, "trainer.max_epochs": 15, "data.limit": 400}
    process = start(**settings)
    wait_for(lambda: any(r.number == 0 and len(r.epochs) >= 2 for r in records(tmp_path)), process, log)
    (trial,) = trial_processes(process)
    os.kill(trial, signal.SIGKILL)
    assert process.wait(300) == 0, log.read_text()
    first, *others = records(tmp_path)
    assert first.state == "failed"
    assert "its process died" in first.reason
    assert [record.state for record in others] == ["finished", "finished"]


def test_population_based_training_takes_over_weights(tmp_path: Path, start: Start, log: Path) -> None:
    space = tmp_path / "rates.yaml"
    space.write_text("optimizer.learning_rate: {choice: [1.0e-7, 2.0e-2]}")
    settings = {"num_samples": 4, "scheduler": "pbt", "space": space, "trainer.max_epochs": 8, "seed": 3}
    assert start(**settings, search="random").wait(400) == 0, log.read_text()
    found = records(tmp_path)
    assert [record.state for record in found] == ["finished"] * 4
    assert any(record.exploited for record in found)


def test_trials_of_several_workers(tmp_path: Path, start: Start, log: Path) -> None:
    assert start(num_samples=2, workers_per_trial=2).wait(500) == 0, log.read_text()
    assert [record.state for record in records(tmp_path)] == ["finished", "finished"]


def test_two_searches_with_one_name(tmp_path: Path, start: Start, log: Path) -> None:
    settings = {"num_samples": 50, "trainer.max_epochs": 30, "scheduler": "none"}
    process = start(**settings)
    wait_for(lambda: any(record.epochs for record in records(tmp_path)), process, log)
    assert start(**settings, resume="true").wait(60) == 2
    assert "is in use by process" in log.read_text()
    process.send_signal(signal.SIGINT)
    assert process.wait(100) == 130


def test_time_budget(tmp_path: Path, start: Start, log: Path) -> None:
    assert start(**{"num_samples": 1000, "time_budget": 40, "trainer.max_epochs": 20}).wait(300) == 0, log.read_text()
    found = records(tmp_path)
    assert 1 < len(found) < 1000
    assert any(record.reason == "the time budget was spent" for record in found)
