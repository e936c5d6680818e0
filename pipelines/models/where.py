"""Where a trained model lies: a folder, a run, MLflow's artifacts or its registry."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from perceiver.errors import UserError, one_line
from perceiver.saving import CONFIG, WEIGHTS
from pipelines.mlflow_client import database_of, default_mlflow, make_client, without_secrets
from pipelines.past_run import stage_names
from pipelines.stage_folder import MODEL
from pipelines.storage import Storage

if TYPE_CHECKING:
    from mlflow import MlflowClient

_SCHEMES = ("runs:/", "models:/", "mlflow-artifacts:/")


@contextmanager
def model_folder(where: str, tracking_uri: str | None = None) -> Iterator[Path]:
    """Make a model folder available on this machine.

    Args:
        where: A model/ folder; the folder of a stage, or of a run, whose last stage counts; a URI of one of these; or
            MLflow's runs:/RUN_ID/model, models:/NAME@ALIAS or models:/NAME/VERSION.
        tracking_uri: MLflow (none: MLFLOW_TRACKING_URI, else mlflow.db in ./runs).

    Yields:
        A folder that perceiver.inference.load can read.

    Raises:
        UserError: If there is no model.
    """
    if where.startswith(_SCHEMES):
        with tempfile.TemporaryDirectory(prefix="perceiver-model-") as folder:
            yield _download(where, tracking_uri, folder)
        return
    with find_model(where).as_local_folder() as folder:
        yield Path(folder)


def mlflow_uri(tracking_uri: str | None = None) -> str:
    """Return where MLflow is: as given, else MLFLOW_TRACKING_URI, else mlflow.db in ./runs."""
    return tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{Path('runs/mlflow.db').absolute()}"


def connect(uri: str, about: str = "") -> MlflowClient:
    """Return a client of an MLflow that is there.

    Args:
        uri: Where MLflow is.
        about: What the error begins with.

    Raises:
        UserError: If there is none, or it doesn't answer.
    """
    if (database := database_of(uri)) is not None and not database.exists():
        raise UserError(f"{about}there is no MLflow at {without_secrets(uri)}: set --tracking_uri")
    try:
        return make_client(uri)
    except ConnectionError as error:
        raise UserError(f"{about}MLflow does not answer ({error}): set --tracking_uri") from None


def find_model(where: str) -> Storage:
    """Return the model folder that a path or URI leads to.

    Raises:
        UserError: If there is none.
    """
    place = Storage.from_uri(where, "model")
    if not place.exists():
        raise UserError(f"model {where} does not exist: name a run's folder, runs:/... or models:/...")
    for folder in (place, place / MODEL, *(stage / MODEL for stage in reversed(_stages(place)))):
        if (folder / CONFIG).is_readable():
            return folder
    raise UserError(f"model {where} holds no model: name a run that finished a stage, or a model/ folder")


def _stages(run: Storage) -> list[Storage]:
    """Return the folders of a run's stages, in the order in which they ran."""
    if not run.is_dir():
        return []
    return [run / name for name in stage_names(run)]


def _download(where: str, tracking_uri: str | None, folder: str) -> Path:
    """Fetch what MLflow has, and return the model folder in it."""
    uri = mlflow_uri(tracking_uri)
    connect(uri, f"model is {where}, but ")
    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException

    try:
        with default_mlflow(uri):
            local = Path(download_artifacts(artifact_uri=where, dst_path=folder, tracking_uri=uri))
    except (MlflowException, OSError) as error:
        reason = without_secrets(one_line(error)[:200])
        raise UserError(
            f"model {where} is not in MLflow at {without_secrets(uri)} ({reason}): look at the name"
        ) from None
    found = next((file.parent for file in sorted(local.rglob(CONFIG)) if (file.parent / WEIGHTS).is_file()), None)
    if found is None:
        raise UserError(f"model {where} holds no {CONFIG} and {WEIGHTS}: name the model/ artifact of a stage")
    return found
