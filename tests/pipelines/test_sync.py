"""`python -m pipelines sync-mlflow`: what MLflow gets from a folder is what it would have got while the run went on."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from pipelines.__main__ import main
from tests.pipelines.test_pipeline import STAGES, chain

Sync = Callable[..., str]


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The storage path of a finished chain that MLflow followed; its database lies in it."""
    root = tmp_path_factory.mktemp("live")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        options = {"run_name": "chain", "tracking.mlflow": "true", "tracking.report": "true", "baselines": "false"}
        main(chain(root, root / "cache", options))
    return root


@pytest.fixture
def runs(live: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A storage path with a copy of the chain of which no MLflow knows."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    shutil.copytree(live / "chain", tmp_path / "runs" / "chain")
    for stage in STAGES:
        (tmp_path / "runs" / "chain" / stage / "tracking.json").unlink()
    note = tmp_path / "runs" / "chain" / "tracking.json"
    note.write_text(json.dumps({"origin": json.loads(note.read_text())["origin"]}))
    return tmp_path / "runs"


@pytest.fixture
def sync(runs: Path, live: Path, capsys: pytest.CaptureFixture[str]) -> Sync:
    """Run the command against the database of the live run, in an experiment of the test's own."""

    def run(*options: str) -> str:
        capsys.readouterr()
        target = [f"--tracking.uri=sqlite:///{live}/mlflow.db", f"--tracking.experiment={runs.parent.name}"]
        main(["sync-mlflow", "chain", f"--storage_path={runs}", *target, *options])
        return capsys.readouterr().out

    return run


def runs_in(live: Path, experiment: str) -> dict[str, Run]:
    client = MlflowClient(f"sqlite:///{live}/mlflow.db")
    found = client.get_experiment_by_name(experiment)
    assert found is not None
    runs = client.search_runs([found.experiment_id])
    by_name = {run.info.run_name: run for run in runs}
    assert len(by_name) == len(runs), "one run of each"
    return by_name


def facts(live: Path, experiment: str) -> dict[str, Any]:
    """Return what MLflow has of each run of an experiment, but for what only one of two equal runs can have."""
    client = MlflowClient(f"sqlite:///{live}/mlflow.db")
    result = {}
    for name, run in runs_in(live, experiment).items():
        run_id = run.info.run_id
        own = ("perceiver.key", "mlflow.parentRunId", "mlflow.loggedArtifacts", "mlflow.note.content")
        history = {key: client.get_metric_history(run_id, key) for key in run.data.metrics}
        result[name] = {
            "status": run.info.status,
            "parameters": run.data.params,
            "tags": {key: value for key, value in run.data.tags.items() if key not in own},
            "points": {key: [(m.step, m.value) for m in metrics] for key, metrics in history.items()},
            "artifacts": sorted(file.path for file in client.list_artifacts(run_id)),
        }
    return result


def test_what_is_sent_afterwards_is_what_is_sent_while_a_run_goes_on(live: Path, runs: Path, sync: Sync) -> None:
    said = sync().splitlines()
    assert [line.split(":")[0] for line in said] == [
        "mlm (finished)",
        "frozen (finished)",
        "finetune (finished)",
        f"experiment {runs.parent.name} of sqlite",
    ]
    assert facts(live, runs.parent.name) == facts(live, "perceiver")
    assert set(facts(live, "perceiver")) == {"chain", *STAGES}


def test_second_time_nothing_is_missing(live: Path, runs: Path, sync: Sync) -> None:
    sync()
    before = {name: (run.info.run_id, run.info.end_time) for name, run in runs_in(live, runs.parent.name).items()}
    said = sync().splitlines()
    assert len(said) == 4
    assert all(line.endswith(": nothing was missing") for line in said)
    after = {name: (run.info.run_id, run.info.end_time) for name, run in runs_in(live, runs.parent.name).items()}
    assert before == after


def test_points_that_an_older_backup_lacks_are_sent_again(live: Path, runs: Path, sync: Sync) -> None:
    sync()
    before = facts(live, runs.parent.name)
    run_id = runs_in(live, runs.parent.name)["frozen"].info.run_id
    with sqlite3.connect(live / "mlflow.db") as database:
        lost = database.execute("DELETE FROM metrics WHERE run_uuid = ? AND step > 3", [run_id]).rowcount
    database.close()
    assert lost
    said = sync()
    assert f"frozen (finished): {lost} points sent" in said
    assert said.count("nothing was missing") == 2
    assert facts(live, runs.parent.name)["frozen"]["points"] == before["frozen"]["points"]


def test_deleted_runs_are_made_again_and_those_that_are_left_belong_to_them(live: Path, runs: Path, sync: Sync) -> None:
    sync()
    before = facts(live, runs.parent.name)
    client = MlflowClient(f"sqlite:///{live}/mlflow.db")
    for name in ("chain", "mlm"):
        client.delete_run(runs_in(live, runs.parent.name)[name].info.run_id)
    sync()
    found = runs_in(live, runs.parent.name)
    parents = {found[stage].data.tags["mlflow.parentRunId"] for stage in STAGES}
    assert parents == {found["chain"].info.run_id}
    assert facts(live, runs.parent.name) == before


def test_sending_to_another_mlflow_doubles_nothing_in_the_first(live: Path, runs: Path, sync: Sync) -> None:
    sync()
    before = facts(live, runs.parent.name)
    other = f"--tracking.uri=sqlite:///{runs}/other.db"
    assert "nothing was missing" not in sync(other)
    assert sync().count("nothing was missing") == 4
    assert sync(other).count("nothing was missing") == 4
    assert facts(live, runs.parent.name) == before


def interrupt(folder: Path) -> None:
    """Make a stage one that was interrupted."""
    state = json.loads((folder / "stage.json").read_text())
    (folder / "stage.json").write_text(json.dumps({**state, "status": "running", "result": {}}))
    shutil.rmtree(folder / "model")


@pytest.mark.parametrize(("failed", "status"), [(True, "FAILED"), (False, "KILLED")])
def test_stage_that_did_not_end_well(failed: bool, status: str, live: Path, runs: Path, sync: Sync) -> None:
    folder = runs / "chain" / "frozen"
    interrupt(folder)
    if failed:
        (folder / "error.txt").write_text("Traceback")
    shutil.rmtree(runs / "chain" / "finetune")
    assert f"frozen ({status.lower()})" in sync()
    found = runs_in(live, runs.parent.name)
    expected = {"chain": status, "mlm": "FINISHED", "frozen": status}
    assert {name: run.info.status for name, run in found.items()} == expected
    assert "model" not in facts(live, runs.parent.name)["frozen"]["artifacts"]


def test_chain_of_which_a_stage_never_began_is_not_finished(live: Path, runs: Path, sync: Sync) -> None:
    shutil.rmtree(runs / "chain" / "finetune")
    sync()
    found = runs_in(live, runs.parent.name)
    assert {name: run.info.status for name, run in found.items()} == {
        "chain": "KILLED",
        "mlm": "FINISHED",
        "frozen": "FINISHED",
    }


def test_run_that_goes_on_after_it_was_sent_goes_on_in_the_same_runs(live: Path, runs: Path, sync: Sync) -> None:
    journal = runs / "chain" / "mlm" / "metrics.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    state = (runs / "chain" / "mlm" / "stage.json").read_bytes()
    shutil.copytree(runs / "chain" / "mlm" / "model", runs / "model")
    interrupt(runs / "chain" / "mlm")
    journal.write_bytes(b"".join(lines[:3]))
    sync()
    first = runs_in(live, runs.parent.name)
    journal.write_bytes(b"".join(lines))
    (runs / "chain" / "mlm" / "stage.json").write_bytes(state)
    (runs / "model").rename(runs / "chain" / "mlm" / "model")
    sync()
    assert {name: run.info.run_id for name, run in first.items()} == {
        name: run.info.run_id for name, run in runs_in(live, runs.parent.name).items()
    }
    assert facts(live, runs.parent.name) == facts(live, "perceiver")


@pytest.mark.parametrize(
    ("run", "expected"),
    [
        ("chian", "did you mean chain?"),
        ("{runs}/chain/mlm", "is a stage: name its run"),
        ("{runs}/search", "is a search: its own command with --resume true"),
        ("{runs}/empty", "is no run, for it has no config.yaml"),
        ("{runs}/damaged", "is no run, for it has no config.yaml"),
        ("{runs}/nothing", "there is no run"),
        ("nosuch://x/y", "cannot be opened"),
        ("{runs}/chain --tracking.uri=http://me:secret@host", "tracking.uri holds a password"),
    ],
)
def test_mistakes_are_one_line(
    run: str, expected: str, runs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("search", "empty", "damaged"):
        (runs / name).mkdir()
    (runs / "search" / "search.json").write_text("{}")
    (runs / "damaged" / "config.yaml").write_text("{")
    with pytest.raises(SystemExit) as end:
        main(["sync-mlflow", *run.format(runs=runs).split(), f"--storage_path={runs}"])
    assert end.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert expected in captured.err
    assert "secret" not in captured.err


def test_mlflow_that_does_not_take_a_run(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["sync-mlflow", str(runs / "chain"), "--tracking.uri=nosuch://host"])
    assert end.value.code == 1
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert "error: MLflow does not take chain (" in captured.err
