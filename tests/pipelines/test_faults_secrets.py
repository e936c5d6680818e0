"""Passwords and tokens of the environment are found nowhere: not in what is said, not in any file of a run."""

from __future__ import annotations

import base64
from functools import partial
from pathlib import Path

import pytest

from tests.mlflow_server import free_port
from tests.pipelines.faults import Outcome, Run, poison_before_step

NAMES = (
    "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_TOKEN",
    "RAY_AUTH_TOKEN",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "HF_TOKEN",
)
SECRETS = {name: f"planted-{number}-{name.lower()}" for number, name in enumerate(NAMES)}
PASSWORD = "planted-in-a-uri"  # noqa: S105


def environment(root: Path, **others: str) -> dict[str, str]:
    """Return variables with secrets, which also keep temporary files below a folder."""
    for name in ("home", "temporary"):
        (root / name).mkdir(exist_ok=True)
    places = {"HOME": str(root / "home"), "TMPDIR": str(root / "temporary")}
    return {**SECRETS, "MLFLOW_TRACKING_USERNAME": "me", **places, **others}


def files_with_secrets(root: Path) -> list[tuple[str, str]]:
    """Return the files that hold a secret, as it is or as HTTP sends it; the log is one of the files."""
    plain = [*SECRETS.values(), PASSWORD]
    sent = [base64.b64encode(f"me:{secret}".encode()).decode() for secret in plain]
    files = [path for path in root.rglob("*") if path.is_file()]
    assert files
    return [(str(path), secret) for path in files for secret in (*plain, *sent) if secret.encode() in path.read_bytes()]


def run_twice(run: Run, variables: dict[str, str]) -> Outcome:
    """Let a run fail, which leaves a traceback, and then come to its end."""
    assert run.run(partial(poison_before_step, 5), variables).status == 1
    assert (run.folder / "error.txt").exists()
    assert files_with_secrets(run.log.parent) == []
    return run.run(environment=variables)


@pytest.mark.slow
def test_no_secret_is_in_a_run_or_in_the_database_of_mlflow(tmp_path: Path) -> None:
    run = Run(tmp_path, **{"tracking.mlflow": "true", "tracking.tensorboard": "true"})
    outcome = run_twice(run, environment(tmp_path))
    assert outcome.status == 0
    assert (run.storage / "mlflow.db").exists()
    assert any(path.name.startswith("events.out") for path in run.storage.rglob("*"))
    assert files_with_secrets(tmp_path) == []


@pytest.mark.slow
def test_no_password_of_a_tracking_uri_is_shown_when_nobody_answers_there(tmp_path: Path) -> None:
    run = Run(tmp_path, **{"tracking.mlflow": "true"})
    server = f"127.0.0.1:{free_port()}"
    outcome = run_twice(run, environment(tmp_path, MLFLOW_TRACKING_URI=f"http://me:{PASSWORD}@{server}"))
    assert outcome.status == 0
    assert f"MLflow does not answer (http://{server}: Connection refused)" in outcome.said
    assert files_with_secrets(tmp_path) == []


def test_a_tracking_uri_with_a_password_is_refused_as_an_option(tmp_path: Path) -> None:
    run = Run(tmp_path, **{"tracking.mlflow": "true", "tracking.uri": f"http://me:{PASSWORD}@127.0.0.1:1"})
    outcome = run.run(environment=environment(tmp_path))
    assert outcome.status == 2
    assert outcome.said.count("\n") == 1
    assert outcome.errors[0].startswith("error: tracking.uri holds a password")
    assert files_with_secrets(tmp_path) == []
    assert not run.storage.exists()
