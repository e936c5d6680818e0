"""The registry: a model becomes the candidate once, and the champion if it is better; MLflow's absence fails no run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import mlflow
import pytest

from perceiver.errors import UserError
from pipelines.__main__ import main
from pipelines.config import TrackingConfig
from pipelines.models.promote import is_better, promote
from pipelines.models.registry import CANDIDATE, CHAMPION, Origin, add_candidate
from pipelines.models.registry_options import PromoteOptions, RegisterOptions
from pipelines.models.where import model_folder
from tests.mlflow_server import free_port
from tests.pipelines.models.kinds import TEXT, save

_RUN = {
    "data.path": "digits",
    "data.limit": 40,
    "encoder.num_latents": 4,
    "encoder.num_latent_channels": 16,
    "encoder.num_layers": 1,
    "encoder.num_self_attention_layers_per_block": 1,
    "num_frequency_bands": 2,
    "trainer.max_epochs": 1,
    "tracking.tensorboard": "false",
    "tracking.register": "digits",
}


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def train(storage: Path, run_name: str = "run", **options: Any) -> None:
    values = {**_RUN, "storage_path": storage, "run_name": run_name, "data.cache_dir": storage / "cache", **options}
    main(["image-classifier", *(f"--{name}={value}" for name, value in values.items())])


def run(*argv: str) -> int:
    """Run a tool, and return its exit status."""
    with pytest.raises(SystemExit) as end:
        main(argv)
    assert isinstance(end.value.code, int)
    return end.value.code


def versions(uri: str, name: str) -> list[Any]:
    return list(mlflow.MlflowClient(uri).search_model_versions(f"name = '{name}'"))


def test_a_run_registers_its_model_with_what_is_known_of_it_and_only_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    storage, uri = tmp_path / "runs", f"sqlite:///{tmp_path / 'runs' / 'mlflow.db'}"
    train(storage)
    assert "version 1 of digits, alias candidate" in capsys.readouterr().out
    assert run("register", str(storage / "run"), "--name", "digits") == 0
    assert "was registered before as version 1" in capsys.readouterr().out
    (version,) = versions(uri, "digits")
    client = mlflow.MlflowClient(uri)
    stage = client.get_run(version.run_id)
    assert stage.info.run_name == "image-classifier"
    assert float(version.tags["test_accuracy"]) == pytest.approx(stage.data.metrics["test_accuracy"])
    assert version.tags["data_fingerprint"] == stage.data.tags["data_fingerprint"]
    assert version.tags["run_id"] == version.run_id
    shown = {
        metric.key: metric.value for metric in client.get_logged_model(version.source.removeprefix("models:/")).metrics
    }
    assert shown["test_accuracy"] == stage.data.metrics["test_accuracy"]
    assert len(client.get_metric_history(version.run_id, "test_accuracy")) == 1
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    with model_folder(f"models:/digits@{CANDIDATE}", uri) as folder:
        assert (folder / "model.safetensors").is_file()
    assert list((tmp_path / "elsewhere").iterdir()) == [], "MLflow looked for a database of its own"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    loaded = mlflow.pyfunc.load_model(f"models:/digits@{CANDIDATE}")
    assert len(loaded.predict(loaded.input_example)) == 1
    assert run("register", f"runs:/{version.run_id}/model", "--name", "digits") == 0
    assert "was registered before as version 1" in capsys.readouterr().out


def test_without_mlflow_a_run_ends_well_and_says_how_to_register_later(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dead = f"http://127.0.0.1:{free_port()}"
    train(tmp_path / "runs", **{"tracking.uri": dead})
    warning = next(line for line in capsys.readouterr().err.splitlines() if "was not registered" in line)
    command = re.search(r"python -m pipelines (register .*) does it later", warning)
    assert command is not None
    uri = f"sqlite:///{tmp_path / 'later.db'}"
    assert run(*command[1].split(), "--tracking_uri", uri) == 0
    (version,) = versions(uri, "digits")
    assert "test_accuracy" in version.tags
    assert version.run_id


def test_registering_without_mlflow_is_refused_before_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        train(tmp_path / "runs", **{"tracking.mlflow": "false"})
    assert end.value.code == 2
    assert capsys.readouterr().err.startswith("error: tracking.register is digits, but mlflow is false")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("name", ["", "a/b", "a b", "x" * 201, "models:/x", "'"])
def test_names_that_the_registry_does_not_take_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="must be 1 to 200"):
        TrackingConfig(register=name)
    with pytest.raises(ValueError, match="must be 1 to 200"):
        RegisterOptions("runs/x", name)


def register(tmp_path: Path, number: int, **metrics: float) -> str:
    """Register a model with random weights, and return MLflow's address."""
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    add_candidate(uri, "name", save(TEXT, tmp_path / str(number)), Origin(metrics=metrics))
    return uri


def aliases(uri: str) -> dict[str, str]:
    return {alias: str(v) for alias, v in mlflow.MlflowClient(uri).get_registered_model("name").aliases.items()}


def test_only_a_better_candidate_becomes_the_champion(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    uri = register(tmp_path, 1, test_accuracy=0.8, test_loss=0.5)
    options = PromoteOptions("name", tracking_uri=uri)
    assert promote(options) == 0
    assert aliases(uri) == {CANDIDATE: "1", CHAMPION: "1"}
    register(tmp_path, 2, test_accuracy=0.7, test_loss=0.4)
    capsys.readouterr()
    assert promote(options) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "0.7000" in line
    assert "0.8000" in line
    assert aliases(uri)[CHAMPION] == "1"
    assert promote(PromoteOptions("name", "test_loss", tracking_uri=uri)) == 0
    assert aliases(uri)[CHAMPION] == "2"
    register(tmp_path, 3)
    assert promote(options) == 1
    assert "version 3 of name has no test_accuracy" in capsys.readouterr().err
    assert promote(PromoteOptions("name", force=True, tracking_uri=uri)) == 0
    assert aliases(uri) == {CANDIDATE: "3", CHAMPION: "3"}


def test_names_without_a_candidate_are_mistakes(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    with pytest.raises(UserError, match="there is no MLflow"):
        promote(PromoteOptions("name", tracking_uri=uri))
    register(tmp_path, 1)
    with pytest.raises(UserError, match="other is not in the registry"):
        promote(PromoteOptions("other", tracking_uri=uri))
    mlflow.MlflowClient(uri).delete_registered_model_alias("name", CANDIDATE)
    with pytest.raises(UserError, match="name has no candidate"):
        promote(PromoteOptions("name", tracking_uri=uri))


@pytest.mark.parametrize(
    ("metric", "value", "other", "better"),
    [
        ("test_accuracy", 0.9, 0.8, True),
        ("test_accuracy", 0.8, 0.8, False),
        ("test_loss", 0.4, 0.5, True),
        ("test_perplexity", 9.0, 8.0, False),
        ("test_accuracy", float("nan"), 0.1, False),
        ("test_loss", 3.0, float("nan"), True),
    ],
)
def test_the_direction_of_a_metric_is_known(metric: str, value: float, other: float, better: bool) -> None:
    assert is_better(metric, value, other) is better
