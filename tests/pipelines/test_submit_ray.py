"""On a real cluster that asks for a token: a job runs to its end, and nothing of it shows what is secret."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.pipelines.mistakes import IMAGES, OPTIONS
from tests.ray_head import Head, ray_head

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

REPOSITORY = Path(__file__).parents[2]
PLANTED = {"MLFLOW_TRACKING_PASSWORD": "planted-password-81", "AWS_SECRET_ACCESS_KEY": "planted-key-82"}


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    with ray_head(HF_HUB_OFFLINE="1") as head:
        yield head


def options(root: Path, **changes: Any) -> list[str]:
    settings = OPTIONS | IMAGES | {"scaling.num_workers": 0, "trainer.max_epochs": 1} | changes
    return [f"--{name}={value}".replace("{root}", str(root)) for name, value in settings.items()]


def start(head: Head, arguments: list[str], **variables: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "pipelines", *arguments],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**head.environment, "RAY_API_SERVER_ADDRESS": head.dashboard, **variables},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell in the background ignores it
    )


def run(head: Head, arguments: list[str], **variables: str) -> tuple[int, str, str]:
    process = start(head, arguments, **variables)
    out, err = process.communicate(timeout=200)
    return process.returncode, out, err


def ask(head: Head, path: str, method: str = "GET") -> Any:
    headers = {"Authorization": f"Bearer {head.token}"}
    request = urllib.request.Request(f"{head.dashboard}{path}", headers=headers, method=method)
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.load(answer)


def jobs(head: Head) -> dict[str, Any]:
    return {job["submission_id"]: job for job in ask(head, "/api/jobs/") if job["submission_id"]}


def wait_for(condition: Callable[[], Any], deadline: float = 100.0) -> None:
    end = time.monotonic() + deadline
    while time.monotonic() < end:
        if condition():
            return
        time.sleep(0.1)
    raise AssertionError(f"not within {deadline} s")


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"RAY_AUTH_MODE": "disabled"}, "asks for a token, and there is none: put the cluster's token into a file"),
        ({"RAY_AUTH_TOKEN": "another" * 5}, "refuses the token of RAY_AUTH_TOKEN: name a file with the cluster's own"),
    ],
    ids=["missing", "wrong"],
)
def test_without_the_token_nothing_runs(variables: dict[str, str], expected: str, head: Head, tmp_path: Path) -> None:
    arguments = ["submit", "image-classifier", *options(tmp_path, run_name="unwanted")]
    status, out, err = run(head, arguments, **variables)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"error: {head.dashboard} {expected}")
    assert "another" not in err
    assert "unwanted" not in jobs(head)
    assert list(tmp_path.iterdir()) == []


def test_a_job_runs_to_its_end_and_shows_nothing_secret(head: Head, tmp_path: Path) -> None:
    arguments = ["submit", "image-classifier", *options(tmp_path)]
    status, out, err = run(head, arguments, **PLANTED)
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert f"Dashboard  {head.dashboard}/#/jobs/images" in lines
    assert lines[3] == "image-classifier  starting", "what Ray adds is left out"
    assert any(line.startswith("image-classifier  epoch 1/1  val_loss") for line in lines)
    assert (tmp_path / "runs/images/image-classifier/model/model.safetensors").exists()
    job = jobs(head)["images"]
    assert (job["status"], job["metadata"]["verb"]) == ("SUCCEEDED", "image-classifier")

    status, again, err = run(head, arguments, **PLANTED)
    assert (status, err) == (0, "")
    assert "image-classifier: finished before, skipped" in again
    assert "val_loss" not in again, "the log of the first job is not repeated"

    told = [out, again, json.dumps(ask(head, "/api/jobs/")), ask(head, "/api/jobs/images/logs")["logs"]]
    folders = (tmp_path, head.folder / "session_latest" / "logs")
    written = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    for secret in (*PLANTED.values(), head.token):
        assert not any(secret in text for text in told)
        assert [path for path in written if secret.encode() in path.read_bytes()] == []


def test_status_of_a_job_that_fails(head: Head, tmp_path: Path) -> None:
    arguments = ["submit", "image-classifier", *options(tmp_path, run_name="bad", **{"data.path": "/no/such/folder"})]
    status, out, err = run(head, arguments)
    assert (status, err) == (2, "")
    assert "error: /no/such/folder does not exist" in out
    assert jobs(head)["bad"]["driver_exit_code"] == 2


def test_a_job_that_is_followed_no_more_is_stopped_and_goes_on(head: Head, tmp_path: Path) -> None:
    changes = {"run_name": "long", "data.limit": "null", "trainer.max_epochs": 10000}
    arguments = ["submit", "image-classifier", *options(tmp_path, **changes)]
    stage = tmp_path / "runs" / "long" / "image-classifier"
    process = start(head, arguments)
    wait_for(lambda: process.poll() is not None or list(stage.glob("checkpoints/step-*")))
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, err.strip()) == (130, "the job goes on without this command"), out
    assert f"ray job stop --address {head.dashboard} long" in out

    status, _, err = run(head, arguments)
    assert (status, err.count("\n")) == (2, 1)
    assert err.startswith("error: a job long is running already: follow it with `ray job logs")

    ask(head, "/api/jobs/long/stop", "POST")
    wait_for(lambda: jobs(head)["long"]["status"] == "STOPPED")
    log = ask(head, "/api/jobs/long/logs")["logs"]
    assert "stopped; the same command goes on from the newest checkpoint" in log
    process = start(head, arguments)
    assert process.stdout is not None
    assert any("goes on from its newest checkpoint" in line for line in process.stdout)
    ask(head, "/api/jobs/long/stop", "POST")
    process.communicate(timeout=60)
    assert process.returncode == 130


def test_doctor_of_a_cluster(head: Head, tmp_path: Path) -> None:
    arguments = ["doctor", "--json", "true", "--storage_path", str(tmp_path / "runs")]
    status, out, _ = run(head, arguments, RAY_ADDRESS=head.address)
    found = {record["name"]: record for record in map(json.loads, out.splitlines())}
    assert status == 0, out
    assert found["Ray nodes"]["found"] == "1, with 2 CPU, 0 GPU"
    assert {found[name]["status"] for name in ("token", "versions on nodes", "storage on nodes", "workers")} == {"ok"}
    assert os.listdir(tmp_path) == []
    for variables, reason in (
        ({"RAY_AUTH_TOKEN": "another" * 5}, f"{head.address} refuses the token in RAY_AUTH_TOKEN"),
        ({"RAY_AUTH_MODE": "disabled"}, f"{head.address} asks for a token"),
    ):
        status, out, err = run(head, arguments, RAY_ADDRESS=head.address, **variables)
        found = {record["name"]: record for record in map(json.loads, out.splitlines())}
        assert (status, err, found["Ray cluster"]["found"]) == (1, "", reason)
