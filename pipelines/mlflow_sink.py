"""MLflow, fed from the journals: one run per pipeline, one child run per stage, every point once.

What MLflow has accepted is noted in tracking.json beside the results, so that a pipeline that is started again goes on
in the same runs where it was. The points carry the times at which they were measured, by which MLflow itself tells a
point that arrives twice.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pipelines.journal import Record
from pipelines.mlflow_client import artifact_location, make_client, tracking_uri, without_secrets
from pipelines.mlflow_run import SECTION, MlflowRun
from pipelines.origin import origin_tags
from pipelines.sink import PICTURES, PipelineRun, StageRun, Status, TrackingFile

if TYPE_CHECKING:
    from mlflow import MlflowClient

_KEY_TAG, _PARENT_TAG = "perceiver.key", "mlflow.parentRunId"
_ORIGIN, _ASIDE = "origin", "mlflow elsewhere"  # sections of tracking.json


class MlflowSink:
    """Keeps the runs of one pipeline in MLflow.

    Args:
        run: The pipeline. Its folder and its stages' folders hold a tracking.json each.
        uri: Where MLflow keeps its runs (none: see `tracking_uri`).
        is_past: Whether the pipeline ran earlier, so that the origin of this process is not the pipeline's.
    """

    name = "MLflow"

    def __init__(self, run: PipelineRun, uri: str | None = None, is_past: bool = False) -> None:
        self.uri = uri or tracking_uri(run.config, run.storage)
        self._run = run
        self._is_past = is_past
        self._origin: dict[str, str] | None = None
        self._connection: tuple[MlflowClient, str] | None = None
        self._parent: MlflowRun | None = None
        self._stages: dict[str, MlflowRun] = {}

    def begin(self, stage: StageRun) -> bool:
        """Open the stage's run, unless an earlier start of the pipeline sent everything."""
        if stage.skipped and _was_completed(self._note(stage.state), stage.status):
            return False
        self._find_origin()
        parent = self._open_parent()
        tags = {"stage": stage.name, _PARENT_TAG: parent.run_id, **stage.tags}
        run = self._open(stage.state, {"parent": parent.run_id}, stage.name, tags, stage.start_time)
        run.log_parameters(stage.parameters)
        self._stages[stage.folder.uri] = run
        return True

    def has_all(self, stage: StageRun, records: list[Record]) -> bool:
        """Ask MLflow itself, whatever was noted, whether it lacks nothing of a stage that ended.

        What MLflow turns out to have is noted, and will not be sent again.
        """
        client, _ = self._connect()
        parent, section = self._note(TrackingFile(self._run.folder)), self._note(stage.state)
        if "run_id" not in parent or "run_id" not in section or section.get("parent") != parent["run_id"]:
            return False
        if not all(_is_alive(client, run_id) for run_id in (parent["run_id"], section["run_id"])):
            return False
        run = MlflowRun(client, stage.state, {**section, "marks": {}, "sending": True})
        run.settle()
        return section.get("ended") == stage.status and not run.missing(records)

    def points_sent(self, stage: StageRun) -> int:
        """Return how many points of a stage that has begun were sent."""
        return self._stages[stage.folder.uri].points_sent

    def log(self, stage: StageRun, records: list[Record]) -> None:
        """Send the records beyond the marks."""
        run = self._stages[stage.folder.uri]
        run.settle()
        new = run.missing(records)
        run.log_points([record for record in new if record["kind"] not in ("fills", "event")])
        if fills := [record for record in new if record["kind"] == "fills"]:
            run.log_fills(fills)
        if any(record["kind"] == "event" for record in records):
            run.log_events([record for record in new if record["kind"] == "event"])

    def end(self, stage: StageRun) -> None:
        """Send the configuration, the pictures that are there and the model, and end the stage's run."""
        run = self._stages[stage.folder.uri]
        if (stage.folder / "config.yaml").exists():
            run.client.log_text(run.run_id, (stage.folder / "config.yaml").read_bytes().decode(), "config.yaml")
        run.set_tags(stage.tags)
        run.log_folder(stage.folder / PICTURES)
        if stage.status == "FINISHED":
            run.log_folder(stage.folder / "model")
        run.terminate(stage.status or "FAILED", stage.end_time)
        del self._stages[stage.folder.uri]

    def finish(self, status: Status, summary: Mapping[str, float], end_time: float) -> None:
        """Send the summary to the pipeline's run and end it; nothing if all was sent by an earlier start."""
        if self._parent is None and self.has_ended(status):
            return
        parent = self._open_parent()
        for name in self._run.artifacts:
            parent.log_artifact(self._run.folder / name)
        parent.log_summary(summary, end_time)
        parent.terminate(status, end_time)

    def has_ended(self, status: Status) -> bool:
        """Return whether it is noted that the pipeline's run was sent to its end."""
        return _was_completed(self._note(TrackingFile(self._run.folder)), status)

    def _identity(self) -> dict[str, str]:
        return {"uri": without_secrets(self.uri), "experiment": self._run.config.experiment}

    def _note(self, state: TrackingFile) -> dict[str, Any]:
        """Return what a tracking.json says about this MLflow and experiment; what it says about others is put aside."""
        section = state.read(SECTION)
        if section and not _has_identity(section, self._identity()):
            aside = {**state.read(_ASIDE), _place(section): section}
            state.write(_ASIDE, aside)
            section = aside.get(_place(self._identity()), {})
            state.write(SECTION, section)
        return section

    def _open_parent(self) -> MlflowRun:
        if self._parent is None:
            state = TrackingFile(self._run.folder)
            parent = self._open(state, {}, self._run.name, dict(self._run.tags), self._run.start_time)
            parent.log_parameters(self._run.parameters)
            self._parent = parent
        return self._parent

    def _open(
        self, state: TrackingFile, identity: Mapping[str, str], name: str, tags: dict[str, str], start: float | None
    ) -> MlflowRun:
        """Return the run that a tracking.json speaks of, or a new one if it speaks of none that is there."""
        client, experiment_id = self._connect()
        wanted = {**self._identity(), **identity}
        section = self._still_true(state, wanted) or {**wanted, "marks": {}}
        if "run_id" in section:
            client.update_run(section["run_id"], status="RUNNING")
        elif "key" in section:  # a run may have been made although the answer never came
            section["run_id"] = _find(client, experiment_id, section["key"])
        if section.get("run_id") is None:
            section["key"] = uuid.uuid4().hex
            state.write(SECTION, {key: value for key, value in section.items() if key != "run_id"})
            tags = {**self._find_origin(), **tags, _KEY_TAG: section["key"]}
            milliseconds = None if start is None else int(start * 1000)
            run = client.create_run(experiment_id, milliseconds, tags, name)
            section["run_id"] = run.info.run_id
        section.pop("ended", None)
        state.write(SECTION, section)
        return MlflowRun(client, state, section)

    def _still_true(self, state: TrackingFile, wanted: Mapping[str, str]) -> dict[str, Any]:
        """Return what a tracking.json says about the wanted run, unless that was deleted since."""
        client, _ = self._connect()
        section = self._note(state)
        if not _is_alive(client, section.get("run_id")):
            return {}
        parent = section.get("parent")
        if "run_id" in section and parent != wanted.get("parent") and not _is_alive(client, parent):
            client.set_tag(section["run_id"], _PARENT_TAG, wanted["parent"])  # in place of the one that was deleted
            section["parent"] = wanted["parent"]
        return section if _has_identity(section, wanted) else {}

    def _find_origin(self) -> dict[str, str]:
        """Return who runs the pipeline, or ran it; it is noted, in case MLflow hears of it from another process."""
        if self._origin is None:
            state = TrackingFile(self._run.folder)
            self._origin = state.read(_ORIGIN) if self._is_past else origin_tags()
            if not self._is_past:
                state.write(_ORIGIN, self._origin)
        return self._origin

    def _connect(self) -> tuple[MlflowClient, str]:
        """Return the client and the experiment's id; the first call takes seconds."""
        if self._connection is None:
            client = make_client(self.uri)
            name = self._run.config.experiment
            experiment = client.get_experiment_by_name(name)
            if experiment is None:
                experiment_id = client.create_experiment(name, artifact_location(self.uri))
            else:
                experiment_id = experiment.experiment_id
            self._connection = client, experiment_id
        return self._connection


def _has_identity(section: Mapping[str, Any], identity: Mapping[str, str]) -> bool:
    return all(section.get(key) == value for key, value in identity.items())


def _place(section: Mapping[str, Any]) -> str:
    return f"{section['experiment']} of {section['uri']}"


def _was_completed(section: Mapping[str, Any], status: Status | None) -> bool:
    return status is not None and section.get("ended") == status


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
