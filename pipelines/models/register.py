"""`python -m pipelines register`, and the registration at the end of a pipeline."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from perceiver.errors import UserError
from pipelines.cli import SyncCommand, SyncTarget
from pipelines.config import RunConfig
from pipelines.mlflow_client import tracking_uri, without_secrets
from pipelines.models.registry import Origin, Registered, add_candidate, origin_of_run, origin_of_stage
from pipelines.models.registry_options import RegisterOptions
from pipelines.models.where import find_model, mlflow_uri, model_folder
from pipelines.past_run import read_run
from pipelines.sink import root_cause
from pipelines.stage_folder import CONFIG, MODEL, STAGE
from pipelines.storage import Storage
from pipelines.sync import SyncFailedError, sync

_MODELS, _RUNS = "models:/", "runs:/"


def register(options: RegisterOptions) -> int:
    """Give a model to the registry, say which version it is, and return the exit status.

    Raises:
        UserError: If there is no such model.
    """
    if options.model.startswith(_MODELS):
        raise UserError(f"model {options.model} is in the registry: name a run's folder, or runs:/RUN_ID/model")
    try:
        done = _register_run(options) if options.model.startswith(_RUNS) else _register_folder(options)
    except UserError:
        raise
    except SyncFailedError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except Exception as error:  # MLflow's client raises all kinds
        print(f"error: {options.name} was not registered ({_reason(error)}): try again", file=sys.stderr)
        return 1
    print(done)
    return 0


def register_outcome(stage: Storage, run: RunConfig, storage: Storage) -> None:
    """Give the model of a pipeline's last stage to the registry, if that is wanted; a failure is a warning.

    Args:
        stage: The stage's folder.
        run: Where the pipeline ran.
        storage: The storage path.
    """
    name = run.tracking.register
    if name is None:
        return
    uri = tracking_uri(run.tracking, storage)
    try:
        origin = origin_of_stage(stage, uri)
        if origin.run_id is None:
            raise ConnectionError("MLflow lacks the run")
        with (stage / MODEL).as_local_folder() as model:
            print(add_candidate(uri, name, Path(model), origin))
    except Exception as error:  # whatever MLflow raises: the run is done
        command = f"python -m pipelines register {shlex.quote(str(stage.parent))} --name {name}"
        print(f"warning: {name} was not registered ({_reason(error)}): {command} does it later", file=sys.stderr)


def _register_run(options: RegisterOptions) -> Registered:
    uri = mlflow_uri(options.tracking_uri)
    with model_folder(options.model, uri) as model:
        run_id = options.model.removeprefix(_RUNS).lstrip("/").partition("/")[0]
        return add_candidate(uri, options.name, model, origin_of_run(uri, run_id))


def _register_folder(options: RegisterOptions) -> Registered:
    folder = find_model(options.model)
    stage = folder.parent
    if (stage / STAGE).exists() and (stage.parent / CONFIG).exists():
        uri = _synced(stage.parent, options.tracking_uri)
        origin = origin_of_stage(stage, uri)
    else:
        uri, origin = mlflow_uri(options.tracking_uri), Origin()
    with folder.as_local_folder() as model:
        return add_candidate(uri, options.name, Path(model), origin)


def _synced(run: Storage, uri: str | None) -> str:
    """Let MLflow have what it lacks of a run, and return where MLflow is."""
    sync(SyncCommand(str(run), tracking=SyncTarget(uri=uri)))
    past = read_run(run)
    return uri or tracking_uri(past.run.config, past.run.storage)


def _reason(error: BaseException) -> str:
    return without_secrets(root_cause(error))
