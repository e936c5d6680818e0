"""`python -m pipelines sync-mlflow`: MLflow gets what it lacks of a run, from the run's folder alone."""

from __future__ import annotations

import difflib
from dataclasses import replace

from perceiver.errors import UserError
from pipelines.cli import SyncCommand
from pipelines.lock import run_lock
from pipelines.mlflow_client import without_secrets
from pipelines.mlflow_sink import MlflowSink
from pipelines.past_run import PastRun, PastStage, read_run
from pipelines.sink import root_cause
from pipelines.stage_folder import STAGE
from pipelines.storage import Storage

_SEARCH = "search.json"  # the settings of a search, which tune writes


class SyncFailedError(RuntimeError):
    """MLflow does not take a run; its text is one line."""


def sync(command: SyncCommand) -> None:
    """Send what MLflow lacks of a run, and say how much that was.

    Raises:
        UserError: If there is no such run.
        SyncFailedError: If MLflow does not take it.
    """
    try:
        folder = find_run(command.run, Storage.from_uri(command.storage_path))
        if (folder / _SEARCH).exists():
            raise UserError(f"{folder} is a search: its own command with --resume true sends what MLflow lacks")
        with run_lock(folder):  # who trains the run notes in the same tracking.json what was sent
            _sync(command, read_run(folder))
    except OSError as error:
        reason = error.strerror or str(error).splitlines()[0]
        raise UserError(f"{command.run} cannot be used ({reason}): check its name and its permissions") from None


def _sync(command: SyncCommand, past: PastRun) -> None:
    experiment = command.tracking.experiment or past.run.config.experiment
    past = replace(past, run=replace(past.run, config=replace(past.run.config, experiment=experiment)))
    sink = MlflowSink(past.run, command.tracking.uri, is_past=True)
    place = f"experiment {experiment} of {without_secrets(sink.uri)}"
    try:
        points = send(sink, past)
    except Exception as error:  # MLflow's client raises all kinds
        reason = without_secrets(root_cause(error))
        raise SyncFailedError(f"MLflow does not take {past.run.name} ({reason}): try again when it does") from error
    print(f"{place}: nothing was missing" if points is None else f"{place}: {points:,} points sent")


def find_run(name: str, storage: Storage) -> Storage:
    """Return the folder of the run that is meant.

    Args:
        name: Path or URI of the folder, or its name in the storage path.
        storage: The storage path.

    Raises:
        UserError: If there is none, or it is no run's.
    """
    is_name = "/" not in name
    places = [*([storage / name] if is_name else []), Storage.from_uri(name, "RUN")]
    folder = next((place for place in places if place.is_dir()), None)
    if folder is None:
        close = difflib.get_close_matches(name, storage.names(), n=1) if is_name else []
        hint = f"did you mean {close[0]}?" if close else "name the folder of a run, or a run in --storage_path"
        raise UserError(f"there is no run {places[0]}: {hint}")
    if (folder / STAGE).exists():
        raise UserError(f"{folder} is a stage: name its run, {folder.parent}")
    return folder


def send(sink: MlflowSink, past: PastRun) -> int | None:
    """Send what MLflow lacks, print a line per stage, and return the number of points (None: nothing was missing)."""
    sent = [_send_stage(sink, stage) for stage in past.stages]
    had_ended = sink.has_ended(past.status)
    sink.finish(past.status, past.summary, past.end_time)
    if had_ended and all(points is None for points in sent):
        return None
    return sum(points or 0 for points in sent)


def _send_stage(sink: MlflowSink, stage: PastStage) -> int | None:
    name, status = stage.run.name, (stage.run.status or "").lower()
    if sink.has_all(stage.run, stage.records):
        print(f"{name} ({status}): nothing was missing")
        return None
    sink.begin(stage.run)
    sink.log(stage.run, stage.records)
    points = sink.points_sent(stage.run)
    sink.end(stage.run)
    print(f"{name} ({status}): {points:,} points sent")
    return points
