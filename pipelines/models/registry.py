"""MLflow's model registry: trained models as numbered versions of a name, one of them the candidate."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perceiver.files import folder_digest
from perceiver.saving import read_config, task_name
from pipelines.config import TrackingConfig
from pipelines.mlflow_client import artifact_location, default_mlflow, make_client, without_secrets
from pipelines.mlflow_run import SECTION
from pipelines.sink import TrackingFile
from pipelines.stage_folder import StageFolder
from pipelines.storage import Storage

if TYPE_CHECKING:
    from mlflow import MlflowClient

CANDIDATE, CHAMPION = "candidate", "champion"
_DIGEST_TAG = "perceiver.model"


@dataclass(frozen=True)
class Origin:
    """What a version says of its model's training.

    Attributes:
        run_id: The stage's run in MLflow; None where there is none.
        metrics: Metrics of the test, by name.
        tags: Short facts, such as the fingerprint of the data.
    """

    run_id: str | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Registered:
    """A version of a name.

    Attributes:
        name: Name in the registry.
        version: Its number.
        is_new: Whether the registry did not have the model before.
    """

    name: str
    version: str
    is_new: bool

    def __str__(self) -> str:
        done = "is now" if self.is_new else "was registered before as"
        return (
            f"the model {done} version {self.version} of {self.name}, alias {CANDIDATE}: "
            f"python -m pipelines promote {self.name} makes it the {CHAMPION} if it is better"
        )


def origin_of_stage(stage: Storage, uri: str) -> Origin:
    """Return what a finished stage's folder says of its model.

    Args:
        stage: The stage's folder.
        uri: MLflow, for which the folder may have noted a run.
    """
    state = StageFolder(stage.parent, stage.name).read_state() or {}
    note = TrackingFile(stage).read(SECTION)
    run_id = note.get("run_id") if note.get("uri") == without_secrets(uri) else None
    tags = {"run_name": stage.parent.name, "stage": stage.name}
    if "data_fingerprint" in state:
        tags["data_fingerprint"] = state["data_fingerprint"]
    return Origin(run_id, _test_metrics(state.get("result", {})), tags)


def origin_of_run(uri: str, run_id: str) -> Origin:
    """Return what a stage's run in MLflow says of its model."""
    run = make_client(uri).get_run(run_id)
    names = ("stage", "data_fingerprint")
    return Origin(run_id, _test_metrics(run.data.metrics), {k: run.data.tags[k] for k in names if k in run.data.tags})


def _test_metrics(values: Mapping[str, Any]) -> dict[str, float]:
    return {
        name: float(value)
        for name, value in values.items()
        if name.startswith("test_") and isinstance(value, int | float)
    }


def add_candidate(uri: str, name: str, model: Path, origin: Origin) -> Registered:
    """Make a model the candidate of a name, as a new version unless the registry has it.

    Args:
        uri: MLflow's tracking URI.
        name: Name in the registry; it need not exist.
        model: Model folder.
        origin: What is known of its training.

    Raises:
        ConnectionError: If nobody answers.
        MlflowException: If MLflow refuses.
    """
    digest = folder_digest(model)
    client = make_client(uri)
    version = _find_version(client, name, digest)
    is_new = version is None
    if version is None:
        version = _create_version(client, uri, name, model, origin, digest)
    client.set_registered_model_alias(name, CANDIDATE, version)
    return Registered(name, version, is_new)


def _find_version(client: MlflowClient, name: str, digest: str) -> str | None:
    found = client.search_model_versions(f"name = '{name}' and tags.`{_DIGEST_TAG}` = '{digest}'")
    return str(found[0].version) if found else None


def _create_version(client: MlflowClient, uri: str, name: str, model: Path, origin: Origin, digest: str) -> str:
    model_id = _log_model(client, uri, name, model, origin)
    _ensure_name(client, name)
    tags = {
        **origin.tags,
        **{key: repr(value) for key, value in origin.metrics.items()},
        **({"run_id": origin.run_id} if origin.run_id else {}),
        "task": task_name(read_config(model)),
        _DIGEST_TAG: digest,
    }
    with default_mlflow(uri):
        made = client.create_model_version(name, f"models:/{model_id}", origin.run_id, tags, model_id=model_id)
    return str(made.version)


def _log_model(client: MlflowClient, uri: str, name: str, model: Path, origin: Origin) -> str:
    """Send a model to MLflow, with the metrics of its test, and return its id."""
    from pipelines.models.flavor import write_pyfunc

    experiment = _experiment(client, uri, origin.run_id)
    with tempfile.TemporaryDirectory(prefix="perceiver-pyfunc-") as folder:
        write_pyfunc(model, Path(folder) / "model")
        logged = client.create_logged_model(experiment, name, origin.run_id, dict(origin.tags), model_type="pyfunc")
        try:
            client.log_model_artifacts(logged.model_id, f"{folder}/model")
        except BaseException:
            client.finalize_logged_model(logged.model_id, "FAILED")
            raise
    client.finalize_logged_model(logged.model_id, "READY")
    if origin.run_id is not None:
        _link_metrics(client, origin.run_id, logged.model_id, origin.metrics)
    return str(logged.model_id)


def _link_metrics(client: MlflowClient, run_id: str, model_id: str, names: Mapping[str, float]) -> None:
    """Let a model show the last point of each of its run's metrics; a point that MLflow has is not added to the run."""
    from mlflow.entities import Metric

    last = [point for name in names for point in client.get_metric_history(run_id, name)[-1:]]
    metrics = [Metric(p.key, p.value, p.timestamp, p.step, model_id=model_id, run_id=run_id) for p in last]
    client.log_batch(run_id, metrics=metrics)


def _experiment(client: MlflowClient, uri: str, run_id: str | None) -> str:
    """Return the id of the run's experiment, or of the usual one."""
    if run_id is not None:
        return str(client.get_run(run_id).info.experiment_id)
    name = TrackingConfig().experiment
    experiment = client.get_experiment_by_name(name)
    return experiment.experiment_id if experiment else str(client.create_experiment(name, artifact_location(uri)))


def _ensure_name(client: MlflowClient, name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
