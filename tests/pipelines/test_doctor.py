"""The doctor's table fits a log, says in words what is wrong, and its exit status is that of what it found."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import ray

from pipelines.__main__ import main
from pipelines.checks import Check
from pipelines.doctor import print_checks

Doctor = Callable[..., tuple[int, str]]


@pytest.fixture
def doctor(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Doctor:
    """Run the doctor, which starts no cluster, and return its exit status and its output."""
    for name in ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(ray, "init", lambda **options: pytest.fail("Ray started"))
    usual = ("--storage_path", str(tmp_path / "runs"))

    def run(*options: str) -> tuple[int, str]:
        verb = [] if not options or options[0].startswith("-") else [options[0]]
        with pytest.raises(SystemExit) as exit_info:
            main(["doctor", *verb, *usual, *options[len(verb) :]])
        captured = capsys.readouterr()
        assert captured.err == ""
        assert isinstance(exit_info.value.code, int)
        return exit_info.value.code, captured.out

    return run


def test_without_a_verb_the_environment_alone(doctor: Doctor) -> None:
    status, out = doctor()
    assert status == 0
    assert "FAIL" not in out
    assert all(name in out for name in ("versions", "GPUs here", "shared memory", "token", "MLflow", "disk: cache"))
    assert not any(name in out for name in ("| data", "settings"))


def test_with_a_verb_its_data_and_its_settings(doctor: Doctor) -> None:
    status, out = doctor("image-classifier", "--data.path", "digits")
    assert status == 0
    assert "digits: built in" in out
    assert "image-classifier, run_name image-classifier" in out


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["mlm", "--data.path", "/no/such/folder"], "data"),
        (["mlm", "--data.path", "toy_reviews", "--storage_path", "/proc/x"], "storage"),
        (["mlm", "--data.path", "toy_reviews", "--trainer.batch_size", "3", "--scaling.num_workers", "2"], "settings"),
        (["mlm", "--data.path", "toy_reviews", "--run_name", "a/b"], "settings"),
        (["mlm", "--data.path", "toy_reviews", "--scaling.cpus_per_worker", "4096"], "workers"),
        (["text-classifier", "--data.path", "toy_reviews", "--init_from", "/no/model"], "input model"),
    ],
)
def test_what_would_fail(options: list[str], expected: str, doctor: Doctor) -> None:
    status, out = doctor(*options)
    rows = [[cell.strip() for cell in line.split("|")[1:4]] for line in out.splitlines() if line.startswith("| ")]
    assert status == 1
    assert [name for mark, name, _ in rows if mark == "FAIL"] == [expected]
    assert out.endswith(f"A run would fail: mend {expected}.\n")


def test_json_lines(doctor: Doctor) -> None:
    status, out = doctor("mlm", "--data.path", "/no/such/folder", "--json", "true")
    records = {record["name"]: record for record in map(json.loads, out.splitlines())}
    assert status == 1
    assert records["versions"]["status"] == "ok"
    assert records["data"]["status"] == "failure"
    assert records["data"]["found"] == "/no/such/folder does not exist"
    assert records["data"]["advice"].startswith("correct the path")


def test_bad_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["doctor", "mlm", "--trainer.epochs", "3"])
    assert "did you mean --trainer.max_epochs?" in capsys.readouterr().err


def test_table_fits_a_log_and_shows_brackets(capsys: pytest.CaptureFixture[str]) -> None:
    found = "x" * 200 + " [red]y[/red] " + "z " * 100
    print_checks([Check("a", "ok", "here"), Check("b", "warning", found, "mend it"), Check("c", "failure", "gone")])
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 100
    assert all(mark in out for mark in ("| ok ", "| warning ", "| FAIL ", "-> mend it", "[red]y[/red]"))
    print_checks([Check("b", "warning", "there")])
    assert "A run would start; look at b." in capsys.readouterr().out
