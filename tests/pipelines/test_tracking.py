"""The tracker: what it tells its sinks, and when they fail or block."""

import threading
from dataclasses import replace

import pytest

from pipelines.config import TrackingConfig
from pipelines.journal import JournalWriter
from pipelines.sink import PipelineRun
from pipelines.storage import Storage
from pipelines.tracking import Tracker, make_sinks, viewing_commands
from tests.pipelines.tracked import train, wait_for, write


@pytest.fixture(autouse=True)
def _no_tracking_uri(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture
def run(tmp_path):
    """A pipeline whose sinks a test chooses."""
    config = TrackingConfig(mlflow=False)
    return PipelineRun(Storage.from_uri(tmp_path), "sentiment", config)


class Recorder:
    """A sink that notes what it is told, and fails when it is told to."""

    name = "Recorder"

    def __init__(self, failures=0):
        self.calls = []
        self.failures = failures

    def _note(self, *call):
        if self.failures:
            self.failures -= 1
            raise OSError("the sink\nis full")
        self.calls.append(call)

    def begin(self, stage):
        self._note("begin", stage.name)
        return stage.name != "unwanted"

    def log(self, stage, records):
        self._note("log", stage.name, [record["step"] for record in records])

    def end(self, stage):
        self._note("end", stage.name, stage.status)

    def finish(self, status, summary, end_time):
        self._note("finish", status, dict(summary))


def test_sinks_are_told_of_stages_in_order_while_the_journal_grows(run):
    recorder = Recorder()
    tracker = Tracker(run, sinks=[recorder], poll_seconds=0.01)
    writer = JournalWriter(run.folder / "mlm")
    tracker.begin_stage("mlm", run.folder / "mlm")
    writer.write(train(1))
    wait_for(lambda: ("log", "mlm", [1]) in recorder.calls)
    writer.write(train(2))
    writer.close()
    tracker.end_stage("FINISHED")
    tracker.skip_stage("unwanted", run.folder / "unwanted")
    tracker.begin_stage("frozen", run.folder / "frozen")
    assert tracker.close("FAILED", {"x": 1.0})
    assert recorder.calls == [
        ("begin", "mlm"),
        ("log", "mlm", [1]),
        ("log", "mlm", [2]),
        ("end", "mlm", "FINISHED"),
        ("begin", "unwanted"),
        ("begin", "frozen"),
        ("end", "frozen", "FAILED"),
        ("finish", "FAILED", {"x": 1.0}),
    ]


def test_failed_calls_are_made_again(run):
    recorder = Recorder(failures=4)
    warnings = []
    tracker = Tracker(run, warnings.append, sinks=[recorder], poll_seconds=0.001)
    write(run, [train(1)])
    tracker.begin_stage("mlm", run.folder / "mlm")
    wait_for(lambda: recorder.calls)
    assert tracker.close()
    assert [call[0] for call in recorder.calls] == ["begin", "log", "end", "finish"]
    assert len(warnings) == 1
    assert "(the sink)" in warnings[0]


def test_blocked_sink_does_not_hold_up_the_other(run):
    released = threading.Event()

    class Blocked(Recorder):
        def begin(self, stage):
            released.wait(30)
            return super().begin(stage)

    blocked, free = Blocked(), Recorder()
    tracker = Tracker(run, sinks=[blocked, free], poll_seconds=0.01)
    write(run, [train(1)])
    tracker.begin_stage("mlm", run.folder / "mlm")
    wait_for(lambda: ("log", "mlm", [1]) in free.calls)
    assert blocked.calls == []
    released.set()
    assert tracker.close()


def test_sinks_are_those_of_the_configuration(run):
    assert [sink.name for sink in make_sinks(run)] == ["TensorBoard"]
    both = replace(run, config=TrackingConfig())
    assert [sink.name for sink in make_sinks(both)] == ["MLflow", "TensorBoard"]


def test_commands_open_what_was_tracked(run, monkeypatch):
    own = replace(run, name="a b", config=TrackingConfig())
    root = run.storage.uri
    assert viewing_commands(own) == {
        "MLflow": f"mlflow ui --workers 1 --backend-store-uri sqlite:///{root}/mlflow.db",
        "TensorBoard": f"tensorboard --logdir '{root}/a b'",
    }
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:secret@host")
    server = replace(run, config=TrackingConfig(tensorboard=False))
    assert viewing_commands(server) == {"MLflow": "https://host"}
