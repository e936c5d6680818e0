"""A search in MLflow: one run, its trials its children; what MLflow did not take comes when the search is resumed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from pipelines.cli import Command
from pipelines.config import ImageClassifierStageConfig, RunConfig, TrackingConfig
from pipelines.storage import Storage
from tests.mlflow_server import free_port
from tune.config import Goal, SearchConfig
from tune.record import State, TrialRecord
from tune.search import Search
from tune.tracking import SearchTracker


@pytest.fixture
def search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Search:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    command = Command("image-classifier", ImageClassifierStageConfig(), RunConfig("search", str(tmp_path)))
    goal = Goal("val_accuracy", "max")
    storage = Storage.from_uri(tmp_path)
    return Search(command.verb, command.config, command.run, SearchConfig(), goal, {}, storage)


def run_trial(tracker: SearchTracker, search: Search, number: int, state: State) -> None:
    record = TrialRecord(number, {"dropout": 0.1 * number})
    tracker.begin(record)
    for epoch in (1, 2):
        metrics: dict[str, Any] = {"val_loss": 1.0 / epoch, "val_accuracy": 0.4 * epoch}
        record.epochs.append({"epoch": epoch, "step": 10 * epoch, "time": 1000.0 + epoch, **metrics})
        tracker.epoch(record)
    record.state = state
    record.write(search.folder)
    tracker.end(record)


def children(search: Search) -> dict[str, Run]:
    client = MlflowClient(f"sqlite:///{search.storage}/mlflow.db")
    experiment = client.get_experiment_by_name("perceiver")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    (parent,) = [run for run in runs if run.info.run_name == "search"]
    assert parent.data.metrics == {"trials": 2.0}
    found = {run.info.run_name: run for run in runs if run.info.run_id != parent.info.run_id}
    assert len(runs) == len(found) + 1
    assert {run.data.tags["mlflow.parentRunId"] for run in found.values()} == {parent.info.run_id}
    for run in found.values():
        history = client.get_metric_history(run.info.run_id, "val_loss")
        assert [(metric.step, metric.value) for metric in history] == [(10, 1.0), (20, 0.5)]
    return found


@pytest.mark.parametrize("trials_are_left", [True, False])
def test_trials_that_mlflow_did_not_take_are_sent_when_the_search_goes_on(
    trials_are_left: bool, search: Search
) -> None:
    down = TrackingConfig(uri=f"http://127.0.0.1:{free_port()}")
    lines: list[str] = []
    with SearchTracker(replace(search, run=replace(search.run, tracking=down)), lines.append) as tracker:
        run_trial(tracker, search, 0, "finished")
        if not trials_are_left:
            run_trial(tracker, search, 1, "failed")
        tracker.conclude({"trials": 2.0})
    assert "does not answer" in lines[0]
    assert "sent by the same command with --resume true" in lines[1]

    for _ in range(2):
        with SearchTracker(search, lines.append) as tracker:
            if trials_are_left:
                run_trial(tracker, search, 1, "failed")
                trials_are_left = False
            tracker.conclude({"trials": 2.0})
        assert len(lines) == 2, lines
        statuses = {name: (run.info.status, run.data.tags["state"]) for name, run in children(search).items()}
        assert statuses == {"trial 0000": ("FINISHED", "finished"), "trial 0001": ("FAILED", "failed")}
