"""Models are found by folder, by run and in MLflow."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import mlflow
import pytest

from perceiver.errors import UserError
from perceiver.saving import CONFIG, WEIGHTS
from pipelines.models.where import find_model, model_folder
from pipelines.stage_folder import STAGE
from tests.pipelines.tiny import image_config, train


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a finished stage."""
    root = tmp_path_factory.mktemp("run")
    config = image_config(root / "cache")
    train(replace(config, trainer=replace(config.trainer, max_epochs=1)), root / "digits" / "image-classifier")
    (root / "digits" / "image-classifier" / STAGE).write_text("{}")
    return root / "digits"


@pytest.mark.parametrize("place", ["", "image-classifier", "image-classifier/model"])
def test_a_run_a_stage_and_a_folder_lead_to_the_model(run: Path, place: str) -> None:
    assert find_model(str(run / place)).local_path == run / "image-classifier" / "model"
    with model_folder(str(run / place)) as folder:
        assert (folder / WEIGHTS).is_file()


def test_the_last_stage_of_a_chain_counts(run: Path, tmp_path: Path) -> None:
    for name in ("mlm", "frozen", "finetune"):
        shutil.copytree(run / "image-classifier", tmp_path / name)
    assert find_model(str(tmp_path)).local_path == tmp_path / "finetune" / "model"
    shutil.rmtree(tmp_path / "finetune" / "model")
    assert find_model(str(tmp_path)).local_path == tmp_path / "frozen" / "model"


def test_what_mlflow_has_is_fetched(run: Path, tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    client = mlflow.MlflowClient(uri)
    experiment = client.create_experiment("x", (tmp_path / "artifacts").as_uri())
    run_id = client.create_run(experiment).info.run_id
    client.log_artifacts(run_id, str(run / "image-classifier" / "model"), "model")
    with model_folder(f"runs:/{run_id}/model", uri) as folder:
        assert (folder / CONFIG).is_file()
    assert not folder.exists()


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("nowhere", "does not exist"),
        ("empty", "holds no model"),
        ("runs:/0123456789abcdef0123456789abcdef/model", "there is no MLflow"),
    ],
)
def test_where_there_is_none(where: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=expected), model_folder(where):
        pass


def test_a_run_that_mlflow_does_not_know(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    mlflow.MlflowClient(uri).search_experiments()
    with pytest.raises(UserError, match="is not in MLflow"), model_folder("models:/none@champion", uri):
        pass
