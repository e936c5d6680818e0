"""MLflow, fed from the journals: one run per pipeline, one child run per stage, every point once.

What MLflow has accepted is noted in tracking.json beside the results, so that a pipeline that is started again goes on
in the same runs where it was. The points carry the times at which they were measured, by which MLflow itself tells a
point that arrives twice.
"""

from __future__ import annotations

import getpass
import logging
import os
import re
import subprocess
import sys
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.journal import Record
from pipelines.mlflow_run import SECTION, MlflowRun
from pipelines.sink import PipelineRun, StageRun, Status, TrackingFile

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from pipelines.config import TrackingConfig
    from pipelines.storage import Storage

_KEY_TAG = "perceiver.key"
_ENVIRONMENT = {
    "GIT_PYTHON_REFRESH": "quiet",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",  # the tracker itself tries again, without blocking for minutes
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}


def tracking_uri(config: TrackingConfig, storage: Storage) -> str:
    """Return where MLflow keeps its runs: MLFLOW_TRACKING_URI, else the configured URI, else a database of our own.

    Args:
        config: The tracking configuration.
        storage: The storage path; the database lies in it if it is local, else in the working directory.
    """
    folder = storage.local_path if storage.is_local else Path.cwd()
    return os.environ.get("MLFLOW_TRACKING_URI") or config.uri or f"sqlite:///{folder / 'mlflow.db'}"


def without_secrets(uri: str) -> str:
    """Return a URI without the user and password in it."""
    return re.sub(r"//[^/@]*@", "//", uri)


class MlflowSink:
    """Keeps the runs of one pipeline in MLflow.

    Args:
        run: The pipeline. Its folder and its stages' folders hold a tracking.json each.
    """

    name = "MLflow"

    def __init__(self, run: PipelineRun) -> None:
        self._run = run
        self._uri = tracking_uri(run.config, run.storage)
        self._connection: tuple[MlflowClient, str] | None = None
        self._parent: MlflowRun | None = None
        self._stages: dict[str, MlflowRun] = {}

    def begin(self, stage: StageRun) -> bool:
        """Open the stage's run, unless an earlier start of the pipeline sent everything."""
        if stage.skipped and _was_completed(stage.state.read(SECTION), self._identity()):
            return False
        parent = self._open_parent()
        tags = {"stage": stage.name, "mlflow.parentRunId": parent.run_id, **stage.tags}
        run = self._open(stage.state, {"parent": parent.run_id}, stage.name, tags, stage.start_time)
        run.log_parameters(stage.parameters)
        self._stages[stage.folder.uri] = run
        return True

    def log(self, stage: StageRun, records: list[Record]) -> None:
        """Send the records beyond the marks."""
        run = self._stages[stage.folder.uri]
        run.settle()
        new = [record for record in records if record["kind"] != "event" and run.marks.is_new(record)]
        run.log_points([record for record in new if record["kind"] != "fills"])
        for record in new:
            if record["kind"] == "fills":
                run.log_fills(record)

    def end(self, stage: StageRun) -> None:
        """Send the configuration and the model, and end the stage's run."""
        run = self._stages[stage.folder.uri]
        if (stage.folder / "config.yaml").exists():
            run.client.log_text(run.run_id, (stage.folder / "config.yaml").read_bytes().decode(), "config.yaml")
        run.set_tags(stage.tags)
        if stage.status == "FINISHED":
            run.log_folder(stage.folder / "model")
        run.terminate(stage.status or "FAILED", stage.end_time)
        del self._stages[stage.folder.uri]

    def finish(self, status: Status, summary: Mapping[str, float], end_time: float) -> None:
        """Send the summary to the pipeline's run and end it; nothing if all was sent by an earlier start."""
        if self._parent is None:
            section = TrackingFile(self._run.folder).read(SECTION)
            if _was_completed(section, self._identity()) and section["ended"] == status:
                return
        parent = self._open_parent()
        for name in self._run.artifacts:
            parent.log_artifact(self._run.folder / name)
        parent.log_summary(summary, end_time)
        parent.terminate(status, end_time)

    def _identity(self) -> dict[str, str]:
        return {"uri": without_secrets(self._uri), "experiment": self._run.config.experiment}

    def _open_parent(self) -> MlflowRun:
        if self._parent is None:
            state = TrackingFile(self._run.folder)
            parent = self._open(state, {}, self._run.name, {**_origin_tags(), **self._run.tags}, None)
            parent.log_parameters(self._run.parameters)
            self._parent = parent
        return self._parent

    def _open(
        self, state: TrackingFile, identity: Mapping[str, str], name: str, tags: dict[str, str], start: float | None
    ) -> MlflowRun:
        """Return the run that a tracking.json speaks of, or a new one if it speaks of none that is there."""
        client, experiment_id = self._connect()
        wanted = {**self._identity(), **identity}
        section = state.read(SECTION)
        if not _has_identity(section, wanted) or not _is_alive(client, section.get("run_id")):
            section = {**wanted, "marks": {}}
        if "run_id" in section:
            client.update_run(section["run_id"], status="RUNNING")
        elif "key" in section:  # a run may have been made although the answer never came
            section["run_id"] = _find(client, experiment_id, section["key"])
        if section.get("run_id") is None:
            section["key"] = uuid.uuid4().hex
            state.write(SECTION, {key: value for key, value in section.items() if key != "run_id"})
            tags = {**_origin_tags(), **tags, _KEY_TAG: section["key"]}
            milliseconds = None if start is None else int(start * 1000)
            run = client.create_run(experiment_id, milliseconds, tags, name)
            section["run_id"] = run.info.run_id
        section.pop("ended", None)
        state.write(SECTION, section)
        return MlflowRun(client, state, section)

    def _connect(self) -> tuple[MlflowClient, str]:
        """Return the client and the experiment's id; the first call takes seconds."""
        if self._connection is None:
            client = _make_client(self._uri)
            name = self._run.config.experiment
            experiment = client.get_experiment_by_name(name)
            if experiment is None:
                experiment_id = client.create_experiment(name, _artifact_location(self._uri))
            else:
                experiment_id = experiment.experiment_id
            self._connection = client, experiment_id
        return self._connection


def _has_identity(section: Mapping[str, Any], identity: Mapping[str, str]) -> bool:
    return all(section.get(key) == value for key, value in identity.items())


def _was_completed(section: Mapping[str, Any], identity: Mapping[str, str]) -> bool:
    return _has_identity(section, identity) and section.get("ended") == "FINISHED"


def _make_client(uri: str) -> MlflowClient:
    """Return a client that neither prints nor blocks for long."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if (database := _database(uri)) is not None:
        database.parent.mkdir(parents=True, exist_ok=True)
    from mlflow import MlflowClient

    for logger in ("alembic", "mlflow", "urllib3.connectionpool"):
        logging.getLogger(logger).setLevel(logging.ERROR)
    return MlflowClient(uri)


def _database(uri: str) -> Path | None:
    """Return the file of an SQLite URI."""
    return Path(uri.removeprefix("sqlite:///")).absolute() if uri.startswith("sqlite:///") else None


def _artifact_location(uri: str) -> str | None:
    """Return where a new experiment keeps artifacts: beside an SQLite database; a server decides by itself."""
    database = _database(uri)
    return None if database is None else (database.parent / "mlartifacts").as_uri()


def _is_alive(client: MlflowClient, run_id: str | None) -> bool:
    """Return whether a run can be gone on with; no id at all is as good, a run that was deleted is not."""
    from mlflow.exceptions import MlflowException

    if run_id is None:
        return True
    try:
        return bool(client.get_run(run_id).info.lifecycle_stage == "active")
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return False
        raise


def _find(client: MlflowClient, experiment_id: str, key: str) -> str | None:
    runs = client.search_runs([experiment_id], f"tags.`{_KEY_TAG}` = '{key}'")
    return runs[0].info.run_id if runs else None


def _origin_tags() -> dict[str, str]:
    """Return who runs what: the tags that MLflow's own runs have, and the commit of the checkout in use, if any."""
    script = Path(sys.argv[0])
    name = f"-m {script.parent.name}" if script.name == "__main__.py" else str(script)
    tags = {"mlflow.source.name": name, "mlflow.source.type": "LOCAL"}
    try:
        tags["mlflow.user"] = getpass.getuser()
    except (KeyError, OSError):  # a container may run as a user without a name
        tags["mlflow.user"] = "unknown"
    commit = _git("rev-parse", "HEAD")
    if commit:
        tags |= {"git_commit": commit, "mlflow.source.git.commit": commit}
        tags["git_dirty"] = str(bool(_git("status", "--porcelain", "--untracked-files=no"))).lower()
    return tags


def _git(*arguments: str) -> str:
    try:
        run = subprocess.run(["git", *arguments], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return run.stdout.strip() if run.returncode == 0 else ""
