"""Whole pipelines in this process: what they leave behind, what a second start does, and how they fail."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from perceiver.files import read_manifest
from perceiver.saving import load_model
from perceiver.tasks.base import Task
from pipelines import train as train_module
from pipelines.__main__ import main
from pipelines.cli import Command, parse
from pipelines.config import SentimentConfig
from pipelines.storage import Storage

STAGES = ("mlm", "frozen", "finetune")
STEPS = 7  # ceil(200 / 32)

Options = dict[str, Any]

ENCODER: Options = {
    "encoder.num_latents": 4,
    "encoder.num_latent_channels": 16,
    "encoder.num_layers": 2,
    "encoder.num_self_attention_layers_per_block": 1,
}
TRAINER: Options = {"trainer.max_epochs": 1, "trainer.batch_size": 32}
IN_PROCESS: Options = {
    "scaling.num_workers": 0,
    "tracking.mlflow": "false",
    "tracking.tensorboard": "false",
    "tracking.report": "false",
}


def chain(storage: Path, cache: Path, options: Options | None = None) -> list[str]:
    """Return the command line of a tiny chain on made-up reviews."""
    data = {"path": "toy_reviews", "limit": 200, "max_seq_len": 24, "vocab_size": 300, "cache_dir": cache}
    settings: Options = {f"data.{name}": value for name, value in data.items()}
    settings |= {f"{stage}.{name}": value for stage in STAGES for name, value in TRAINER.items()}
    return _command_line("sentiment", settings, storage, options)


def digits(storage: Path | str, cache: Path, options: Options | None = None) -> list[str]:
    """Return the command line of a tiny image classifier."""
    settings: Options = {
        "data.path": "digits",
        "data.limit": 48,
        "data.cache_dir": cache,
        "num_frequency_bands": 2,
        **TRAINER,
    }
    return _command_line("image-classifier", settings, storage, options)


def _command_line(verb: str, settings: Options, storage: Path | str, options: Options | None) -> list[str]:
    chosen = settings | ENCODER | IN_PROCESS | {"storage_path": storage} | (options or {})
    return [verb, *(f"--{name}={value}" for name, value in chosen.items())]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def finished(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The storage path of a chain that ran once."""
    storage = tmp_path_factory.mktemp("finished")
    main(chain(storage, cache))
    return storage


@pytest.fixture
def storage(finished: Path, tmp_path: Path) -> Path:
    """A copy of it, to run again in."""
    shutil.copytree(finished, tmp_path / "runs")
    return tmp_path / "runs"


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the stages that are trained, as they come."""
    names: list[str] = []
    train = train_module.train

    def note(plan: Any, *arguments: Any) -> dict[str, Any]:
        names.append(plan.name)
        return train(plan, *arguments)

    monkeypatch.setattr(train_module, "train", note)
    return names


def written(folder: Path) -> dict[str, int]:
    """Return when each file was written."""
    return {path.relative_to(folder).as_posix(): path.stat().st_mtime_ns for path in folder.rglob("*")}


def weights(folder: Path) -> bytes:
    return (folder / "model" / "model.safetensors").read_bytes()


def test_chain_leaves_a_whole_result_per_stage(finished: Path) -> None:
    for name in STAGES:
        folder = finished / "sentiment" / name
        contents = {"checkpoints", "config.yaml", "metrics.jsonl", "model", "stage.json", "system-0.jsonl"}
        tested = "token_accuracy.parquet" if name == "mlm" else "predictions.parquet"
        assert {path.name for path in folder.iterdir()} == {*contents, tested}
        files = {"model.safetensors", "config.json", "tokenizer.json", "README.md"}
        assert read_manifest(folder / "model")["files"].keys() == files
        assert load_model(folder / "model").tokenizer is not None
        assert json.loads((folder / "stage.json").read_text())["status"] == "finished"
        kinds = [json.loads(line)["kind"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
        assert kinds == ["train"] * STEPS + ["validation"] + ["fills"] * (name == "mlm") + ["test"]
        assert [path.name for path in (folder / "checkpoints").iterdir()] == [f"step-{STEPS:09d}"]


def test_configs_say_what_was_asked_for(finished: Path, cache: Path) -> None:
    asked = parse(chain(finished, cache))
    assert isinstance(asked, Command)
    assert isinstance(asked.config, SentimentConfig)
    assert parse(["sentiment", "--config", str(finished / "sentiment" / "config.yaml")]) == asked
    stages = asked.config.stages(str(finished / "sentiment"))
    for name, verb in {"mlm": "mlm", "frozen": "text-classifier", "finetune": "text-classifier"}.items():
        again = parse([verb, "--config", str(finished / "sentiment" / name / "config.yaml")])
        assert again == Command(verb, stages[name], asked.run)


def test_second_start_skips_every_stage(
    storage: Path, cache: Path, trained: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """The folder is another one, and so is a setting without effect on the result."""
    before = written(storage / "sentiment")
    main(chain(storage, cache, {"scaling.max_failures": 5, "mlm.trainer.checkpoint_every_n_steps": 3}))
    captured = capsys.readouterr()
    assert captured.err.splitlines() == [
        f"{name}: finished before, skipped (its settings, data and input model are unchanged)" for name in STAGES
    ]
    assert all(f"| {name} (synthetic data, finished before)" in captured.out for name in STAGES)
    assert "baseline: TF-IDF + logistic regression" in captured.out
    assert trained == []
    after = written(storage / "sentiment")
    assert {name for name in before | after if before.get(name) != after.get(name)} == {"config.yaml"}


@pytest.mark.parametrize(
    ("option", "value", "expected", "reason"),
    [
        ("frozen.trainer.max_epochs", 2, ["frozen", "finetune"], "frozen: changed (trainer.max_epochs 1 -> 2), runs"),
        ("mlm.masking.mask_p", 0.3, list(STAGES), "mlm: changed (masking.mask_p 0.15 -> 0.3), runs"),
    ],
)
def test_change_runs_its_stage_and_the_later_ones_again(
    storage: Path,
    cache: Path,
    trained: list[str],
    capsys: pytest.CaptureFixture[str],
    option: str,
    value: object,
    expected: list[str],
    reason: str,
) -> None:
    run = storage / "sentiment"
    before = {name: weights(run / name) for name in STAGES}
    main(chain(storage, cache, {option: value}))
    err = capsys.readouterr().err
    assert trained == expected
    assert reason in err
    assert "finetune: changed (another input model), runs again" in err
    assert {path.name for path in (run / "superseded").iterdir()} == {f"{name}-1" for name in expected}
    for name in STAGES:
        assert (weights(run / name) != before[name]) == (name in expected)
        if name in expected:
            assert weights(run / "superseded" / f"{name}-1") == before[name]


def test_stage_whose_model_was_lost_makes_the_same_again(storage: Path, cache: Path, trained: list[str]) -> None:
    run = storage / "sentiment"
    before = weights(run / "mlm")
    shutil.rmtree(run / "mlm" / "model")
    main(chain(storage, cache))
    assert trained == ["mlm"], "the model is the same, so that the later stages keep their input"
    assert weights(run / "mlm") == before


def fail(*_: Any) -> None:
    raise RuntimeError("many words\nthe disk is on fire")


def stop(*_: Any) -> None:
    raise KeyboardInterrupt


def run_broken(
    monkeypatch: pytest.MonkeyPatch, how: Callable[..., None], command: list[str], capsys: pytest.CaptureFixture[str]
) -> tuple[object, list[str]]:
    """Run a command whose training is interrupted; return its exit status and what it said."""
    with monkeypatch.context() as patch:
        patch.setattr(Task, "training_step", how)
        with pytest.raises(SystemExit) as exit_info:
            main(command)
    return exit_info.value.code, capsys.readouterr().err.splitlines()


def test_failure_is_one_line_and_its_story_a_file(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = digits(tmp_path, cache)
    error = tmp_path / "image-classifier" / "image-classifier" / "error.txt"
    status, lines = run_broken(monkeypatch, fail, command, capsys)
    assert status == 1
    message = "stage image-classifier failed: RuntimeError: the disk is on fire; the whole story is in"
    assert [line for line in lines if "starting" not in line] == [f"error: {message} {error}"]
    assert error.read_text().startswith("Traceback")
    assert "many words\nthe disk is on fire" in error.read_text()

    main(command)
    assert "image-classifier: it was interrupted, starts anew, for it has no checkpoint" in capsys.readouterr().err
    assert not error.exists()


def test_ctrl_c_ends_with_130_and_a_word(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    status, lines = run_broken(monkeypatch, stop, digits(tmp_path, cache), capsys)
    assert [line for line in lines if "starting" not in line] == [
        "stopped; the same command goes on from the newest checkpoint"
    ]
    assert status == 130


def test_result_is_the_same_wherever_it_lies(
    tmp_path: Path, cache: Path, trained: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    places = {"path": str(tmp_path / "a"), "file": (tmp_path / "b").as_uri(), "object store": "memory://bucket/c"}
    for uri in places.values():
        main(digits(uri, cache))
    stages = [Storage.from_uri(uri) / "image-classifier" / "image-classifier" for uri in places.values()]
    one, *others = [(stage / "model" / "model.safetensors").read_bytes() for stage in stages]
    assert all(other == one for other in others)
    assert stages[2].names() == stages[0].names()
    assert len(trained) == len(places)
    for uri in places.values():
        main(digits(uri, cache))
    assert len(trained) == len(places)
    assert capsys.readouterr().err.count("finished before, skipped") == len(places)


@pytest.fixture(scope="module")
def tracked(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The storage path of a chain that MLflow knows."""
    storage = tmp_path_factory.mktemp("tracked")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        main(chain(storage, cache, {"tracking.mlflow": "true", "tracking.report": "true", "baselines": "false"}))
    return storage


def mlflow_runs(client: MlflowClient, name: str) -> tuple[Run, dict[str, Run]]:
    """Return the run of a pipeline and those of its stages."""
    experiment = client.get_experiment_by_name("perceiver")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    (parent,) = [run for run in runs if run.info.run_name == name and "mlflow.parentRunId" not in run.data.tags]
    children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    return parent, {run.data.tags["stage"]: run for run in children}


@pytest.fixture
def client(tracked: Path) -> MlflowClient:
    return MlflowClient(f"sqlite:///{tracked / 'mlflow.db'}")


def test_mlflow_has_a_run_per_pipeline_and_stage(tracked: Path, client: MlflowClient) -> None:
    parent, stages = mlflow_runs(client, "sentiment")
    assert stages.keys() == set(STAGES)
    git = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    commit = git.stdout.strip() if git.returncode == 0 else None
    for name, run in {"": parent, **stages}.items():
        assert run.info.status == "FINISHED"
        assert run.data.tags.get("git_commit") == commit
        if name:
            stage = json.loads((tracked / "sentiment" / name / "stage.json").read_text())
            assert run.data.tags["data_fingerprint"] == stage["data_fingerprint"]
            assert parent.data.metrics[f"{name}_val_loss"] == stage["result"]["val_loss"]
            assert parent.data.metrics[f"{name}_test_accuracy"] == stage["result"]["test_accuracy"]
    assert parent.data.tags["synthetic_data"] == "true"
    assert parent.info.start_time <= stages["mlm"].info.start_time
    assert parent.info.end_time >= stages["finetune"].info.end_time
    assert f"/runs/{parent.info.run_id}/artifacts/report.html)" in parent.data.tags["mlflow.note.content"]
    assert parent.data.params["frozen.trainer.batch_size"] == "32"
    assert stages["frozen"].data.params["trainer.batch_size"] == "32"


def test_mlflow_has_every_point(tracked: Path, client: MlflowClient) -> None:
    _, stages = mlflow_runs(client, "sentiment")
    for name, run in stages.items():
        lines = (tracked / "sentiment" / name / "metrics.jsonl").read_text().splitlines()
        records = [json.loads(line) for line in lines]
        for kind, metric in {"train": "loss", "validation": "val_loss", "test": "test_accuracy"}.items():
            points = [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, metric)]
            assert points == [(record["step"], record[metric]) for record in records if record["kind"] == kind]


def test_mlflow_has_model_config_fills_and_report(tracked: Path, client: MlflowClient) -> None:
    parent, stages = mlflow_runs(client, "sentiment")
    for name, run in stages.items():
        names = {file.path for file in client.list_artifacts(run.info.run_id)}
        assert names == {"model", "config.yaml", "pictures"} | ({"fills.json"} if name == "mlm" else set())
        assert "pictures/loss.png" in {file.path for file in client.list_artifacts(run.info.run_id, "pictures")}
        folder = Path(client.download_artifacts(run.info.run_id, "model"))
        load_model(folder)
        assert (folder / "model.safetensors").read_bytes() == weights(tracked / "sentiment" / name)
    assert {file.path for file in client.list_artifacts(parent.info.run_id)} == {"report.html", "pictures"}
    page = Path(client.download_artifacts(parent.info.run_id, "report.html"))
    assert page.read_bytes() == (tracked / "sentiment" / "report.html").read_bytes()
    table = json.loads(Path(client.download_artifacts(stages["mlm"].info.run_id, "fills.json")).read_text())
    assert {"step", "text", "prediction"} <= set(table["columns"])
    assert len(table["data"]) == 3, "a row per mask of the two default samples"


@pytest.mark.parametrize(("how", "status"), [(fail, "FAILED"), (stop, "KILLED")])
def test_mlflow_knows_how_a_run_ended(
    tracked: Path,
    client: MlflowClient,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    how: Callable[..., None],
    status: str,
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    command = digits(tracked, cache, {"run_name": status, "tracking.mlflow": "true"})
    run_broken(monkeypatch, how, command, capsys)
    parent, stages = mlflow_runs(client, status)
    assert (parent.info.status, stages["image-classifier"].info.status) == (status, status)

    main(command)
    parent, stages = mlflow_runs(client, status)
    assert (parent.info.status, stages["image-classifier"].info.status) == ("FINISHED", "FINISHED")
