"""MLflow is never in the way: down, slow, dying or locked, training is the same, and no point is lost or doubled."""

from __future__ import annotations

import json
import math
import socket
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from perceiver.config import TrainerConfig
from pipelines import mlflow_client
from pipelines.__main__ import main
from pipelines.config import RunConfig, ScalingConfig, TrackingConfig
from pipelines.mlflow_client import make_client
from pipelines.pipeline import Pipeline
from pipelines.sink import PipelineRun
from pipelines.storage import Storage
from pipelines.tracking import Tracker
from tests.mlflow_server import Proxy, free_port, mlflow_server
from tests.pipelines import tiny
from tests.pipelines.tracked import train, wait_for, write

SECRET, TOKEN = "planted-secret", "planted-token"  # noqa: S105


@pytest.fixture(autouse=True)
def _no_tracking_uri(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


# --- is anybody there? ---


@pytest.fixture
def refused() -> str:
    return f"http://127.0.0.1:{free_port()}"


@pytest.fixture
def silent() -> Iterator[str]:
    """A server that accepts connections, but never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def swallowing() -> Iterator[str]:
    """A host that answers no connection: Linux drops packets to a server whose queue is full."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as server:
        waiting = []
        for _ in range(3):
            client = socket.socket()
            client.setblocking(False)
            client.connect_ex(server.getsockname())
            waiting.append(client)
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        for client in waiting:
            client.close()


@pytest.fixture
def unresolvable(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A name whose look-up does not come back."""
    done = threading.Event()
    look_up = socket.getaddrinfo

    def slow(host: Any, *arguments: Any, **options: Any) -> Any:
        if host == "mlflow.invalid":
            done.wait(60)
        return look_up(host, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    yield "http://mlflow.invalid:5000"
    done.set()


@pytest.mark.parametrize(
    ("server", "reason"),
    [
        ("refused", "Connection refused"),
        ("silent", "no answer within 1 s|timed out"),
        ("swallowing", "no answer within 1 s|timed out"),
        ("unresolvable", "no answer within 1 s"),
    ],
)
def test_warning_says_why_nobody_answers(
    server: str, reason: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert mlflow_client._ANSWER_SECONDS <= 8, "the warning has to come within 10 s"
    monkeypatch.setattr(mlflow_client, "_ANSWER_SECONDS", 1.0)
    uri = request.getfixturevalue(server)
    run = PipelineRun(Storage.from_uri(tmp_path), "run", TrackingConfig(uri=uri, tensorboard=False))
    write(run, [train(1)])
    warnings: list[str] = []
    tracker = Tracker(run, warnings.append)
    tracker.begin_stage("mlm", run.folder / "mlm")
    wait_for(lambda: bool(warnings), 10)
    assert not tracker.close(timeout=0)
    assert len(warnings) == 2
    assert all(uri in warnings[0] and "\n" not in line for line in warnings)
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(warnings[0])


def test_name_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConnectionError, match=r"^http://mlflow.invalid: .*[Nn]ame"):
        make_client("http://me:secret@mlflow.invalid")


@pytest.mark.parametrize(("status", "is_there"), [(200, True), (401, True), (404, True), (503, False)])
def test_whoever_answers_is_there_unless_it_is_a_proxy_of_somebody_who_is_not(status: int, is_there: bool) -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:  # noqa: N802
            assert "Authorization" not in self.headers
            time.sleep(0.2)
            self.send_error(status)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        try:
            if is_there:
                make_client(f"http://me:secret@127.0.0.1:{server.server_port}")
            else:
                with pytest.raises(ConnectionError, match="503 Service Unavailable"):
                    make_client(f"http://127.0.0.1:{server.server_port}")
        finally:
            server.shutdown()


# --- a real training before a real server ---


@pytest.fixture(scope="module")
def server_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("mlflow-server")


@pytest.fixture(scope="module")
def server(server_folder: Path) -> Iterator[str]:
    with mlflow_server(server_folder) as address:
        yield address


@pytest.fixture
def proxy(server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """A proxy that is down at first; the environment names it, with a password."""
    proxy = Proxy(server)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", proxy.address.replace("//", f"//me:{SECRET}@"))
    yield proxy
    proxy.down()


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


class Listener:
    """Notes the lines that a user would see, and lets a test act on what it hears."""

    def __init__(self, on_step: Callable[[int], None] = lambda step: None) -> None:
        self.lines: list[tuple[float, str]] = []
        self.on_step = on_step
        self.on_message: Callable[[str], None] = lambda text: None

    def update(self, state: dict[str, Any]) -> None:
        self.on_step(int(state.get("step", 0)))

    def message(self, text: str) -> None:
        self.lines.append((time.monotonic(), text))
        self.on_message(text)


STAGE = "mlm"


def train_stage(root: Path, cache: Path, name: str, listener: Listener, mlflow: bool = True) -> Path:
    """Train a tiny stage in this process, and return its folder."""
    trainer = TrainerConfig(max_epochs=12, batch_size=16, checkpoint_every_n_steps=2)
    config = tiny.mlm_config(cache, trainer=trainer)
    tracking = TrackingConfig(mlflow, experiment=name, tensorboard=False)
    run = RunConfig(name, str(root), ScalingConfig(num_workers=0), tracking)
    Pipeline(config, {STAGE: config}, run, Storage.from_uri(root)).execute(listener)
    return root / name / STAGE


@pytest.fixture(scope="module")
def losses(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The journal of a run without MLflow."""
    return tiny.journal(train_stage(tmp_path_factory.mktemp("alone"), cache, "alone", Listener(), mlflow=False))


def journal_points(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Return step and value of every metric in a journal, by the names that they have in MLflow."""
    points: dict[str, list[tuple[int, float]]] = {}
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        prefix = {"validation": "val_", "test": "test_", "train": ""}.get(record.pop("kind"))
        if prefix is None:
            continue
        step, epoch = record.pop("step"), record.pop("epoch")
        del record["time"]
        metrics = {key if key.startswith(prefix) else prefix + key: value for key, value in record.items()}
        for key, value in (metrics | ({"epoch": epoch} if prefix == "" else {})).items():
            points.setdefault(key, []).append((step, value))
    return points


def assert_complete(server: str, folder: Path, status: str = "FINISHED") -> None:
    """Assert that MLflow has one run of the pipeline and one of its stage, with all points of the journal, once."""
    from mlflow import MlflowClient

    client = MlflowClient(server)
    name = folder.parent.name
    experiment = client.get_experiment_by_name(name)
    assert experiment is not None
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert sorted(runs) == sorted([name, STAGE])
    assert len(client.search_runs([experiment.experiment_id])) == 2
    stage = runs[STAGE]
    assert stage.data.tags["mlflow.parentRunId"] == runs[name].info.run_id
    assert {run.info.status for run in runs.values()} == {status}
    assert all(run.data.tags["mlflow.user"] and run.data.params for run in runs.values())
    expected = journal_points(folder)
    assert sorted(stage.data.metrics) == sorted(expected)
    for key, points in expected.items():
        history = client.get_metric_history(stage.info.run_id, key)
        stored = sorted((metric.step, metric.value) for metric in history)
        assert [step for step, _ in stored] == [step for step, _ in points], key
        assert all(math.isclose(a, b) for (_, a), (_, b) in zip(stored, points, strict=True)), key
    artifacts = {file.path for file in client.list_artifacts(stage.info.run_id)}
    assert artifacts == {"config.yaml", "fills.json", "model"}
    table = json.loads(Path(client.download_artifacts(stage.info.run_id, "fills.json")).read_text())
    column = table["columns"].index("epoch")
    assert [row[column] for row in table["data"]] == [epoch for epoch in range(12) for _ in range(2)]


def sync(folder: Path, capsys: pytest.CaptureFixture[str], *options: str) -> str:
    """Let the command send what is missing, and return what it prints."""
    capsys.readouterr()
    main(["sync-mlflow", folder.parent.name, f"--storage_path={folder.parent.parent}", *options])
    return capsys.readouterr().out


@pytest.mark.slow
def test_down_at_start_and_up_later(
    proxy: Proxy, server: str, cache: Path, tmp_path: Path, losses: list[dict[str, Any]]
) -> None:
    listener = Listener()
    listener.on_message = lambda text: proxy.up() if "does not answer" in text else None
    started = time.monotonic()
    folder = train_stage(tmp_path, cache, "up-later", listener)
    (when, warning), *others = listener.lines
    assert "MLflow does not answer" in warning
    assert "Connection refused" in warning
    assert when - started < 10
    assert not others
    assert tiny.journal(folder) == losses
    assert_complete(server, folder)


@pytest.mark.slow
def test_down_all_the_time_and_sent_afterwards(
    proxy: Proxy,
    server: str,
    server_folder: Path,
    cache: Path,
    tmp_path: Path,
    losses: list[dict[str, Any]],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    listener = Listener()
    folder = train_stage(tmp_path, cache, "down", listener)
    assert tiny.journal(folder) == losses
    lines = [line for _, line in listener.lines]
    assert f"sent by python -m pipelines sync-mlflow {folder.parent}" in lines[-1]

    with pytest.raises(SystemExit) as end:
        sync(folder, capsys)
    assert end.value.code == 1
    refusal = capsys.readouterr().err
    assert "error: MLflow does not take down" in refusal
    assert "Connection refused" in refusal

    proxy.up()
    said = sync(folder, capsys)
    points = sum(map(len, journal_points(folder).values()))
    assert f"mlm (finished): {points:,} points sent" in said
    assert_complete(server, folder)
    requests = proxy.requests
    again = sync(folder, capsys)
    assert "mlm (finished): nothing was missing" in again
    assert proxy.requests - requests < 20, "it only asks"
    assert_complete(server, folder)

    monkeypatch.setenv("MLFLOW_TRACKING_URI", proxy.address)
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "me")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", SECRET)
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", TOKEN)
    copied = sync(folder, capsys, "--tracking.experiment=elsewhere")
    assert f"{points:,} points sent" in copied
    for text in (*lines, refusal, said, again, copied, *everything_in(tmp_path), *everything_in(server_folder)):
        assert SECRET not in text
        assert TOKEN not in text


def everything_in(folder: Path) -> Iterator[str]:
    """Yield the content of every file, a database among them."""
    for path in folder.rglob("*"):
        if path.is_file():
            yield path.read_bytes().decode("latin-1")


@pytest.mark.slow
def test_dying_in_the_middle_and_coming_back(
    proxy: Proxy, server: str, cache: Path, tmp_path: Path, losses: list[dict[str, Any]]
) -> None:
    proxy.up()

    def on_step(step: int) -> None:
        if step == 8:  # training waits here until MLflow has points, to have a middle
            wait_for(lambda: stored_steps(server, "dying") > 0, 60)
            proxy.loses_answers = True
        elif step == 16:
            wait_for(lambda: bool(listener.lines), 60)
            proxy.down()
            proxy.loses_answers = False
        elif step == 40:
            proxy.up()

    listener = Listener(on_step)
    folder = train_stage(tmp_path, cache, "dying", listener)
    assert "MLflow does not answer" in listener.lines[0][1]
    assert len(listener.lines) == 1
    assert tiny.journal(folder) == losses
    assert_complete(server, folder)


def stored_steps(server: str, name: str) -> int:
    from mlflow import MlflowClient

    client = MlflowClient(server)
    experiment = client.get_experiment_by_name(name)
    runs = client.search_runs([experiment.experiment_id]) if experiment else []
    return sum(len(client.get_metric_history(run.info.run_id, "loss")) for run in runs)


@pytest.mark.slow
def test_server_that_takes_five_seconds_for_everything(
    proxy: Proxy,
    server: str,
    cache: Path,
    tmp_path: Path,
    losses: list[dict[str, Any]],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pipelines.pipeline._DRAIN_SECONDS", 20.0)
    proxy.up()
    proxy.delay = 5.0
    listener = Listener()
    folder = train_stage(tmp_path, cache, "slow", listener)
    assert tiny.journal(folder) == losses
    assert all("does not answer" not in line for _, line in listener.lines), "it is slow, not down"
    assert "did not take every point" in listener.lines[-1][1]
    assert proxy.requests > 2
    proxy.delay = 0.0
    proxy.down()  # the thread that was left behind ends, as it does when the program does
    wait_for(lambda: all(thread.name != "tracking-MLflow" for thread in threading.enumerate()))
    proxy.up()
    sync(folder, capsys)
    assert_complete(server, folder)


@pytest.mark.slow
def test_database_that_is_locked_for_longer_than_mlflow_waits(tmp_path: Path) -> None:
    from mlflow import MlflowClient

    uri = f"sqlite:///{tmp_path}/mlflow.db"
    run = PipelineRun(Storage.from_uri(tmp_path), "locked", TrackingConfig(uri=uri, tensorboard=False))
    warnings: list[str] = []
    tracker = Tracker(run, warnings.append, poll_seconds=0.05)
    write(run, [train(1)])
    tracker.begin_stage("mlm", run.folder / "mlm")
    client = MlflowClient(uri)
    wait_for(lambda: (run.folder / "mlm" / "tracking.json").exists())
    place = run.folder / "mlm" / "tracking.json"
    wait_for(lambda: place.read_json()["mlflow"].get("marks") == {"train": 1})
    lock = sqlite3.connect(tmp_path / "mlflow.db", isolation_level=None)
    lock.execute("BEGIN EXCLUSIVE")
    write(run, [train(2)], after_step=1)
    wait_for(lambda: bool(warnings), 60)
    assert "database is locked" in warnings[0]
    lock.execute("ROLLBACK")
    lock.close()
    assert tracker.close()
    history = client.get_metric_history(place.read_json()["mlflow"]["run_id"], "loss")
    assert [metric.step for metric in history] == [1, 2]
