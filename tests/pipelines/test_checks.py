"""Each check tells what goes well from what would not, says how to mend it, and never raises."""

from __future__ import annotations

import shutil
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from perceiver.config import ImageDataConfig, TextDataConfig
from pipelines import checks, cluster_checks
from pipelines.checks import Check
from pipelines.cluster_checks import _check_node_versions, _check_nodes, _check_shared, check_answers, judge_workers
from pipelines.config import ImageClassifierStageConfig, MLMStageConfig, ScalingConfig, TrackingConfig
from pipelines.ray_token import check_token, find_token
from pipelines.storage import Storage


@pytest.fixture(autouse=True)
def _nothing_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


def assert_status(check: Check, status: str, *parts: str) -> None:
    assert check.status == status, check
    assert all(part in f"{check.found} -> {check.advice}" for part in parts), check
    assert "\n" not in check.found + check.advice
    assert status == "ok" or check.advice


def test_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    assert_status(checks.check_versions(), "ok", f"torch {torch.__version__.partition('+')[0]}", "ray 2.")
    monkeypatch.setattr(checks, "PACKAGES", ("ray", "no-such-package"))
    assert_status(checks.check_versions(), "failure", "no no-such-package", "pip install no-such-package")
    monkeypatch.setattr(checks, "_OLDEST_PYTHON", (4, 0))
    assert_status(checks.check_versions(), "failure", "install Python")


def test_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(checks, "has_nvidia_driver", lambda: False)
    assert_status(checks.check_gpus(), "ok", "none")
    monkeypatch.setattr(checks, "has_nvidia_driver", lambda: True)
    assert_status(checks.check_gpus(), "warning", "an NVIDIA driver, but PyTorch", "install a build of PyTorch")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "Big GPU")
    assert_status(checks.check_gpus(), "ok", "2 x Big GPU")


def has_space(monkeypatch: pytest.MonkeyPatch, gigabytes: float) -> None:
    usage = SimpleNamespace(total=gigabytes * 1e9, free=gigabytes * 1e9)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)


@pytest.mark.parametrize(
    ("gigabytes", "starts_cluster", "status"),
    [(0.06, False, "warning"), (2.0, False, "ok"), (2.0, True, "warning"), (4.0, True, "ok")],
)
def test_shared_memory(gigabytes: float, starts_cluster: bool, status: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sysconf", {"SC_PHYS_PAGES": 2_500_000, "SC_PAGE_SIZE": 4000}.__getitem__)  # 10 GB
    has_space(monkeypatch, gigabytes)
    assert_status(checks.check_shared_memory(starts_cluster), status, f"{gigabytes:.1f} GB")


@pytest.mark.parametrize(("gigabytes", "status"), [(0.5, "failure"), (5.0, "warning"), (50.0, "ok")])
def test_disk(gigabytes: float, status: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    has_space(monkeypatch, gigabytes)
    check = checks.check_disk("cache", tmp_path / "not" / "yet")
    assert check.name == "disk: cache"
    assert_status(check, status, f"{gigabytes:.1f} GB free at {tmp_path}/not/yet")


def test_storage_is_tried_without_a_trace(tmp_path: Path) -> None:
    assert_status(checks.check_storage(str(tmp_path / "a" / "b")), "ok", f"{tmp_path}/a/b: writable")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    below_file = checks.check_storage(str(tmp_path / "file" / "runs"))
    assert_status(below_file, "failure", "cannot be written", "choose another")
    assert_status(checks.check_storage("nope://x"), "failure", "cannot be opened")


@pytest.fixture
def server() -> Iterator[HTTPServer]:
    """A server that is healthy at /health alone, as MLflow's is."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:  # noqa: N802
            self.send_response(200 if self.path == "/health" else 404)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.shutdown()


def test_mlflow_server(server: HTTPServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = Storage.from_uri(tmp_path)
    address = f"127.0.0.1:{server.server_port}"
    with monkeypatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"http://me:hidden@{address}")
        check = checks.check_mlflow(TrackingConfig(), storage)
    assert_status(check, "ok", f"http://{address}")
    assert "hidden" not in check.found
    elsewhere = checks.check_mlflow(TrackingConfig(uri=f"http://{address}/x"), storage)
    assert_status(elsewhere, "warning", "HTTP status 404", "metrics wait")
    assert_status(checks.check_mlflow(TrackingConfig(mlflow=False), storage), "ok", "not wanted")


def test_mlflow_where_nobody_listens(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{probe.getsockname()[1]}"
        check = checks.check_mlflow(TrackingConfig(uri=uri), Storage.from_uri(tmp_path))
    assert_status(check, "warning", f"{uri}: no answer", "refused", "start the server")


def test_mlflow_database(tmp_path: Path) -> None:
    assert_status(checks.check_mlflow(TrackingConfig(), Storage.from_uri(tmp_path / "new")), "ok", "new/mlflow.db")
    (tmp_path / "file").touch()
    below = checks.check_mlflow(TrackingConfig(uri=f"sqlite:///{tmp_path}/file/m.db"), Storage.from_uri(tmp_path))
    assert_status(below, "warning", "file is no folder", "mend its folder")


def test_data(tmp_path: Path) -> None:
    def check_texts(path: Any, **options: Any) -> Check:
        return checks.check_data(MLMStageConfig(data=TextDataConfig(path=str(path), **options)))

    (tmp_path / "empty").mkdir()
    (tmp_path / "empty.csv").touch()
    (tmp_path / "good.csv").write_text("text,label\n")
    assert_status(check_texts("toy_reviews"), "ok", "built in, synthetic")
    assert_status(check_texts(tmp_path / "good.csv"), "ok", "a file")
    assert_status(check_texts(tmp_path), "ok", "a folder")
    assert_status(check_texts(tmp_path / "none.csv"), "failure", "none.csv does not exist", "correct the path")
    assert_status(check_texts(tmp_path / "empty"), "failure", "empty folder", "correct the path")
    assert_status(check_texts(tmp_path / "empty.csv"), "failure", "is empty", "correct the path")
    tokenizer = {"tokenizer": str(tmp_path / "none.json")}
    assert_status(check_texts("toy_reviews", **tokenizer), "failure", "tokenizer", "cannot be read", "correct the path")
    assert_status(check_texts("some/texts"), "failure", "nor in the cache, and the hub cannot be reached", "go online")
    images = ImageClassifierStageConfig(data=ImageDataConfig(path="digits"))
    assert_status(checks.check_data(images), "ok", "built in")


def test_token_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert_status(check_token(joins=True), "ok", "none")
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    assert_status(check_token(joins=False), "ok", "none")
    assert_status(check_token(joins=True), "failure", "none, but RAY_AUTH_MODE is token", "RAY_AUTH_TOKEN_PATH")
    file = tmp_path / "token"
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(file))
    assert_status(check_token(joins=True), "failure", f"{file} cannot be read (No such file", "mode 0600")
    file.touch(mode=0o600)
    assert_status(check_token(joins=True), "failure", "is empty", "mode 0600")
    file.write_text("hidden\n")
    assert_status(check_token(joins=True), "ok", str(file))
    file.chmod(0o644)
    assert_status(check_token(joins=True), "warning", "mode 0644", f"chmod 600 {file}")


def test_token_is_the_one_that_ray_takes_and_is_never_shown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    default = tmp_path / "home" / ".ray" / "auth_token"
    default.parent.mkdir(parents=True)
    for name, value in (("default", "hidden1"), ("named", "hidden2")):
        (default.parent / name).write_text(value)
    (default.parent / "default").rename(default)
    values = [find_token()]
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(default.parent / "named"))
    values.append(find_token())
    monkeypatch.setenv("RAY_AUTH_TOKEN", "hidden3")
    values.append(find_token())
    assert [token and token.value for token in values] == ["hidden1", "hidden2", "hidden3"]
    assert "hidden" not in repr(values)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert find_token() is None


def test_cluster_that_is_none_or_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    assert_status(check_answers(ScalingConfig()), "ok", "RAY_ADDRESS is not set", "CPU")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{probe.getsockname()[1]}")
        assert_status(check_answers(ScalingConfig()), "failure", "no Ray cluster answers", "unset or mend it")


def test_cluster_that_is_something_else(monkeypatch: pytest.MonkeyPatch, server: HTTPServer) -> None:
    monkeypatch.setattr(cluster_checks, "_ANSWER_SECONDS", 1.0)
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{server.server_port}")
    assert_status(check_answers(ScalingConfig()), "failure", "no Ray cluster answers", "RAY_ADDRESS")


def report(node: str = "a", **fields: Any) -> dict[str, Any]:
    return {"node": node, "CPU": 2.0, "GPU": 0.0, "versions": checks.installed_versions(), "sees": True} | fields


def test_nodes() -> None:
    assert_status(_check_nodes([report(), report("b")]), "ok", "2, with 4 CPU, 0 GPU")
    assert_status(_check_nodes([report(), report("b", silent="no answer")]), "failure", "b (no answer)", "ray status")


def test_versions_on_nodes() -> None:
    ours = checks.installed_versions()
    build = {**ours, "torch": f"{ours['torch'].partition('+')[0]}+cu130"}
    assert_status(_check_node_versions([report(), report("b", versions=build)]), "ok", "the same")
    lacks = {name: version for name, version in ours.items() if name != "mlflow"}
    assert_status(_check_node_versions([report("b", versions=lacks)]), "warning", "b has mlflow (none)", "install")
    old = {**ours, "ray": "2.9.0"}
    assert_status(_check_node_versions([report("b", versions=old)]), "failure", "b has ray 2.9.0, not ", "install")


def test_storage_on_nodes(tmp_path: Path) -> None:
    storage = Storage.from_uri(tmp_path)
    assert_status(_check_shared(storage, [report(), report("b")]), "ok", "writable from 2 of 2")
    alone = _check_shared(storage, [report(), report("b", sees=False)])
    assert_status(alone, "failure", f"b does not see what is written to {tmp_path} here", "a bucket")
    denied = _check_shared(storage, [report("b", trouble="no permission")])
    assert_status(denied, "failure", "b cannot write", "no permission", "mend permissions")


def test_workers() -> None:
    each = {"CPU": 2.0, "GPU": 1.0}
    assert_status(judge_workers(ScalingConfig(2), each, {"CPU": 4.0, "GPU": 2.0}), "ok", "each with 2 CPU and 1 GPU")
    lacking = judge_workers(ScalingConfig((2, 4)), each, {"CPU": 4.0})
    assert_status(lacking, "warning", "but the cluster has 0 GPU", "waits until it grows")


def test_what_a_check_raises_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(folder: str) -> None:
        raise RuntimeError("two\nlines")

    monkeypatch.setattr(shutil, "disk_usage", broken)
    check = checks.check_shared_memory(starts_cluster=True)
    assert check == Check("shared memory", "failure", "RuntimeError: two lines")
