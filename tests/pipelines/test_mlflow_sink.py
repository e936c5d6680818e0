"""Runs in MLflow: in a database of their own, and on servers that are down, slow or lose answers."""

import json
import math
import socket
import sqlite3
import time
from dataclasses import replace
from pathlib import Path

import pytest

from pipelines.config import TrackingConfig
from pipelines.journal import encode_record
from pipelines.mlflow_client import tracking_uri, without_secrets
from pipelines.mlflow_run import flatten
from pipelines.mlflow_tables import fills_table
from pipelines.sink import PipelineRun
from pipelines.storage import Storage
from pipelines.tracking import Tracker
from tests.pipelines.tracked import fills, follow, train, validation, wait_for, write


@pytest.fixture(autouse=True)
def _no_tracking_uri(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    """The URI of one database for all tests, because making one takes seconds."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}"


@pytest.fixture
def run(tmp_path, database):
    """A pipeline in an experiment of its own."""
    config = TrackingConfig(experiment=tmp_path.name, uri=database, tensorboard=False)
    return PipelineRun(Storage.from_uri(tmp_path), "sentiment", config, {"seed": 1}, {"synthetic_data": "true"})


@pytest.fixture
def client(run):
    from mlflow import MlflowClient

    return MlflowClient(run.config.uri)


@pytest.fixture
def closed_port():
    """The address of a server that is not there."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    return f"http://127.0.0.1:{port}"


def runs_of(client, run):
    experiment = client.get_experiment_by_name(run.config.experiment)
    return {found.info.run_name: found for found in client.search_runs([experiment.experiment_id])}


def points(client, run, key, stage="mlm"):
    history = client.get_metric_history(runs_of(client, run)[stage].info.run_id, key)
    return [(metric.step, metric.value) for metric in sorted(history, key=lambda metric: metric.step)]


def fill_steps(client, run):
    table = json.loads(
        Path(client.download_artifacts(runs_of(client, run)["mlm"].info.run_id, "fills.json")).read_text()
    )
    return [row[table["columns"].index("step")] for row in table["data"]]


def test_runs_hold_points_parameters_tags_and_artifacts(run, client):
    write(run, [train(1, 2.0), train(2, math.nan), validation(2), fills(2), train(3)])
    (run.folder / "mlm" / "config.yaml").write_bytes(b"seed: 1\n")
    (run.folder / "mlm" / "model" / "config.json").write_bytes(b"{}")
    assert follow(run, summary={"test_accuracy": 0.75})

    parent, child = runs_of(client, run)["sentiment"], runs_of(client, run)["mlm"]
    assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert child.data.params == {"trainer.batch_size": "4"}
    assert parent.data.params == {"seed": "1"}
    assert (child.data.tags["stage"], child.data.tags["data_fingerprint"]) == ("mlm", "abc")
    assert parent.data.tags["synthetic_data"] == "true"
    assert {parent.info.status, child.info.status} == {"FINISHED"}
    assert parent.data.metrics == {"test_accuracy": 0.75}

    loss = client.get_metric_history(child.info.run_id, "loss")
    assert [(metric.step, metric.timestamp) for metric in loss] == [(1, 1001000), (2, 1002000), (3, 1003000)]
    assert loss[0].value == 2.0
    assert math.isnan(loss[1].value)
    assert points(client, run, "epoch") == [(1, 0.0), (2, 0.0), (3, 0.0)]
    assert points(client, run, "val_loss") == [(2, 0.5)]
    assert points(client, run, "val_num_samples") == [(2, 9.0)]

    artifacts = {file.path for file in client.list_artifacts(child.info.run_id)}
    assert artifacts == {"config.yaml", "fills.json", "model"}
    assert [file.path for file in client.list_artifacts(child.info.run_id, "model")] == ["model/config.json"]


def test_restarted_driver_goes_on_in_the_same_runs_without_repeating_points(run, client):
    write(run, [train(1), train(2), validation(2), fills(2), train(3)])
    assert follow(run, status="KILLED")
    first = runs_of(client, run)
    assert {found.info.status for found in first.values()} == {"KILLED"}

    write(run, [train(3, 7.0), train(4), validation(4), fills(4)], after_step=2)
    assert follow(run)
    second = runs_of(client, run)
    assert {name: found.info.run_id for name, found in second.items()} == {
        name: found.info.run_id for name, found in first.items()
    }
    assert {found.info.status for found in second.values()} == {"FINISHED"}
    assert [step for step, _ in points(client, run, "loss")] == [1, 2, 3, 4]
    assert [step for step, _ in points(client, run, "val_loss")] == [2, 4]
    assert fill_steps(client, run) == [2, 4]


def test_points_that_mlflow_took_before_that_was_noted_are_not_repeated(run, client):
    """As if the driver was killed in between, and the resumed training recorded the same steps at later times."""
    write(run, [train(1), validation(1), fills(1)])
    assert follow(run)
    place = run.folder / "mlm" / "tracking.json"
    noted = place.read_json()
    noted["mlflow"] |= {"marks": {}, "sending": True}
    place.write_json(noted)
    write(run, [{**record, "time": 2000.0} for record in (train(1), validation(1), fills(1), train(2))])
    assert follow(run)
    assert points(client, run, "loss") == [(1, 1.0), (2, 1.0)]
    assert points(client, run, "val_loss") == [(1, 0.5)]
    assert fill_steps(client, run) == [1]


def test_points_whose_answer_was_lost_are_not_repeated(run, client, monkeypatch):
    from mlflow import MlflowClient

    log_batch = MlflowClient.log_batch
    lost = []

    def log_and_lose(self, run_id, metrics=(), **options):
        log_batch(self, run_id, metrics=metrics, **options)
        if metrics and not lost:
            lost.append(metrics)
            write(run, [{**train(1), "time": 2000.0}, train(2)])  # the journal is cut and written again meanwhile
            raise TimeoutError("no answer")

    monkeypatch.setattr(MlflowClient, "log_batch", log_and_lose)
    write(run, [train(1)])
    tracker = Tracker(run, poll_seconds=0.01, warn=lambda line: None)
    tracker.begin_stage("mlm", run.folder / "mlm")
    wait_for(lambda: lost)
    wait_for(lambda: len(points(client, run, "loss")) == 2)
    assert tracker.close()
    assert points(client, run, "loss") == [(1, 1.0), (2, 1.0)]


def test_run_that_was_made_without_an_answer_is_found_again(run, client):
    write(run, [train(1)])
    assert follow(run)
    place = run.folder / "mlm" / "tracking.json"
    noted = place.read_json()
    run_id = noted["mlflow"].pop("run_id")
    place.write_json(noted)
    assert follow(run)
    assert place.read_json()["mlflow"]["run_id"] == run_id
    assert len(runs_of(client, run)) == 2


def test_deleted_run_is_replaced_with_all_its_points(run, client):
    write(run, [train(1), train(2)])
    assert follow(run)
    old = runs_of(client, run)["mlm"].info.run_id
    client.delete_run(old)
    assert follow(run)
    assert runs_of(client, run)["mlm"].info.run_id != old
    assert [step for step, _ in points(client, run, "loss")] == [1, 2]


def test_finished_stage_of_a_rerun_is_left_alone(run, client):
    write(run, [train(1)])
    assert follow(run)
    before = runs_of(client, run)["mlm"].info
    tracker = Tracker(run, poll_seconds=0.05)
    tracker.skip_stage("mlm", run.folder / "mlm")
    write(run, [train(1)], stage="frozen")
    tracker.begin_stage("frozen", run.folder / "frozen")
    assert tracker.close()
    after = runs_of(client, run)
    assert set(after) == {"sentiment", "mlm", "frozen"}
    assert after["mlm"].info.end_time == before.end_time
    parent_id = after["sentiment"].info.run_id
    assert {after[name].data.tags["mlflow.parentRunId"] for name in ("mlm", "frozen")} == {parent_id}


def test_rerun_without_anything_new_does_not_even_ask_mlflow(run, monkeypatch):
    write(run, [train(1)])
    assert follow(run)
    monkeypatch.setattr("pipelines.mlflow_sink.make_client", lambda uri: pytest.fail("MLflow was asked"))
    tracker = Tracker(run, poll_seconds=0.05)
    tracker.skip_stage("mlm", run.folder / "mlm")
    assert tracker.close()


def test_server_that_is_down_is_reported_once_and_gets_everything_later(run, client, closed_port):
    write(run, [train(1), validation(1)])
    down = replace(run, config=replace(run.config, uri=closed_port))
    warnings = []
    started = time.monotonic()
    tracker = Tracker(down, warnings.append, poll_seconds=0.01)
    tracker.begin_stage("mlm", run.folder / "mlm")
    wait_for(lambda: warnings)
    write(run, [train(1), validation(1)], stage="frozen")
    tracker.end_stage()
    tracker.begin_stage("frozen", run.folder / "frozen")
    assert not tracker.close(timeout=20)
    assert time.monotonic() - started < 25
    assert len(warnings) == 2
    assert "MLflow does not answer" in warnings[0]
    assert "refused" in warnings[0]
    assert f"sent by python -m pipelines sync-mlflow {run.folder}" in warnings[1]
    assert all("\n" not in line for line in warnings)

    tracker = Tracker(run, warnings.append, poll_seconds=0.05)
    for stage in ("mlm", "frozen"):
        tracker.skip_stage(stage, run.folder / stage)
    assert tracker.close()
    assert len(warnings) == 2
    for stage in ("mlm", "frozen"):
        assert [step for step, _ in points(client, run, "loss", stage)] == [1]
        assert runs_of(client, run)[stage].info.status == "FINISHED"


def test_server_that_never_answers_holds_up_nobody(run):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        slow = replace(run, config=replace(run.config, uri=f"http://127.0.0.1:{silent.getsockname()[1]}"))
        warnings = []
        started = time.monotonic()
        tracker = Tracker(slow, warnings.append)
        write(run, [train(1)])
        tracker.begin_stage("mlm", run.folder / "mlm")
        tracker.end_stage()
        assert time.monotonic() - started < 1
        assert not tracker.close(timeout=0.5)
        assert time.monotonic() - started < 5
        assert "did not take every point" in warnings[-1]


def test_locked_database_delays_points_but_loses_none(run, client):
    write(run, [train(1)])
    assert follow(run)
    lock = sqlite3.connect(run.config.uri.removeprefix("sqlite:///"), isolation_level=None)
    lock.execute("BEGIN EXCLUSIVE")
    write(run, [train(2)], after_step=1)
    tracker = Tracker(run, poll_seconds=0.05)
    tracker.begin_stage("mlm", run.folder / "mlm")
    time.sleep(0.3)
    lock.execute("ROLLBACK")
    lock.close()
    assert tracker.close()
    assert [step for step, _ in points(client, run, "loss")] == [1, 2]


def test_more_points_than_a_call_takes(run, client):
    lines = b"".join(encode_record(train(step)) for step in range(1, 1001))
    (run.folder / "mlm" / "metrics.jsonl").write_bytes(lines)
    assert follow(run)
    assert len(client.get_metric_history(runs_of(client, run)["mlm"].info.run_id, "loss")) == 1000


def test_tracking_uri_is_that_of_the_environment_then_of_the_config_then_a_database(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    local, remote = Storage.from_uri(tmp_path / "runs"), Storage.from_uri("memory://runs")
    assert tracking_uri(TrackingConfig(), local) == f"sqlite:///{tmp_path}/runs/mlflow.db"
    assert tracking_uri(TrackingConfig(), remote) == f"sqlite:///{tmp_path}/mlflow.db"
    assert tracking_uri(TrackingConfig(uri="http://a"), local) == "http://a"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://b")
    assert tracking_uri(TrackingConfig(uri="http://a"), local) == "http://b"


def test_default_database_keeps_its_artifacts_beside_it(run, client):
    write(run, [train(1)])
    assert follow(run)
    folder = run.config.uri.removeprefix("sqlite:///").removesuffix("/mlflow.db")
    assert runs_of(client, run)["mlm"].info.artifact_uri.startswith(f"file://{folder}/mlartifacts/")


def test_secrets_are_left_out_of_what_is_shown():
    assert without_secrets("postgresql://me:secret@host/db") == "postgresql://host/db"
    assert without_secrets("http://me:p@ss@host: no") == "http://host: no"
    assert without_secrets("http://host/path is not me@home") == "http://host/path is not me@home"


@pytest.mark.parametrize("uri", ["https://me:hunter2@host", "postgresql://me:hunter2@host/db"])
def test_uri_with_a_password_is_refused_as_a_setting(uri):
    with pytest.raises(ValueError, match="tracking.uri holds a password") as refusal:
        TrackingConfig(uri=uri)
    assert "hunter2" not in str(refusal.value)


def event(step, what="restart", **facts):
    return {"kind": "event", "time": 1000.7 + step, "epoch": 0, "step": step, "event": what, **facts}


def test_events_make_a_table_and_count_restarts_once(run, client):
    write(run, [train(1), event(1, reason="a worker died", rank=1), event(1, "pause")])
    assert follow(run)
    write(run, [{**event(2, reason="node lost"), "time": 1005.0}], after_step=1)
    assert follow(run)
    assert follow(run)
    found = runs_of(client, run)["mlm"]
    assert found.data.tags["restarts"] == "2"
    table = json.loads(Path(client.download_artifacts(found.info.run_id, "events.json")).read_text())
    assert table["columns"] == ["time", "event", "epoch", "step", "reason", "details"]
    assert table["data"] == [
        ["1970-01-01 00:16:41.700 UTC", "restart", 0, 1, "a worker died", "rank=1"],
        ["1970-01-01 00:16:41.700 UTC", "pause", 0, 1, "", ""],
        ["1970-01-01 00:16:45.000 UTC", "restart", 0, 2, "node lost", ""],
    ]


def test_flatten_names_nested_settings_with_dots():
    config = {"a": {"b": 1, "c": None}, "d": (1, 2), "e": TrackingConfig(), "f": "x" * 7000}
    flat = flatten(config)
    assert (flat["a.b"], flat["a.c"], flat["d"], flat["e.experiment"]) == ("1", "None", "(1, 2)", "perceiver")
    assert len(flat["f"]) == 6000


def test_fills_as_a_table():
    assert fills_table([fills(2)]) == {
        "epoch": [0],
        "step": [2],
        "text": ["i saw this [MASK]"],
        "mask": [1],
        "prediction": ["movie"],
        "probability": [0.31],
        "others": ["film 0.280"],
    }
