"""A run in MLflow, and the note in tracking.json of what it has accepted."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.journal import Record, StepMarks
from pipelines.mlflow_tables import EVENTS, FILLS, RESTART, EventKey, event_key, events_table, fills_table, row_keys
from pipelines.sink import Status, TrackingFile, metric_items
from pipelines.storage import Storage

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric

SECTION = "mlflow"
_DESCRIPTION = "mlflow.note.content"  # Markdown

_METRICS_PER_CALL = 1000
_PARAMETERS_PER_CALL = 100
_LONGEST_PARAMETER = 6000
_TELLING_METRICS = {
    "train": "epoch",
    "validation": "val_loss",
    "test": "test_loss",
    "trial": "val_loss",
}  # each record of the kind has it


def noted_end(state: TrackingFile) -> Status | None:
    """Return the status with which a run was ended, as far as it was; None if it wasn't, or goes on."""
    status: Status | None = state.read(SECTION).get("ended")
    return status


class MlflowRun:
    """A run in MLflow, with the note of what it has.

    Args:
        client: MLflow's client.
        state: The tracking.json that the note is kept in.
        section: The note: `run_id`, `marks`, and what identifies the run.
    """

    def __init__(self, client: MlflowClient, state: TrackingFile, section: dict[str, Any]) -> None:
        self.client = client
        self.run_id: str = section["run_id"]
        self.points_sent = 0
        self.marks = StepMarks(section["marks"])
        self._state = state
        self._section = section

    def _note(self, **facts: Any) -> None:
        self._section = {**self._section, "marks": self.marks.steps, **facts}
        self._state.write(SECTION, self._section)

    def log_parameters(self, parameters: Mapping[str, Any]) -> None:
        """Send the parameters that the run does not have; those that it has cannot be changed."""
        from mlflow.entities import Param

        known = self.client.get_run(self.run_id).data.params
        missing = [Param(key, value) for key, value in flatten(parameters).items() if key not in known]
        for start in range(0, len(missing), _PARAMETERS_PER_CALL):
            self.client.log_batch(self.run_id, params=missing[start : start + _PARAMETERS_PER_CALL])

    def settle(self) -> None:
        """Ask MLflow how far it came, if a call was made whose outcome is not known."""
        if not self._section.get("sending"):
            return
        for kind, key in _TELLING_METRICS.items():
            for metric in self.client.get_metric_history(self.run_id, key):
                self.marks.advance({"kind": kind, "step": metric.step})
        for step in self._logged_fill_steps():
            self.marks.advance({"kind": "fills", "step": step})
        self._note(sending=False)

    def missing(self, records: list[Record]) -> list[Record]:
        """Return the records that MLflow does not have."""
        known = self._logged_events() if any(record["kind"] == "event" for record in records) else set()
        return [
            record
            for record in records
            if (event_key(record) not in known if record["kind"] == "event" else self.marks.is_new(record))
        ]

    def log_summary(self, metrics: Mapping[str, float], seconds: float) -> None:
        """Send metrics that have no step, with the time they are of, unless they are there."""
        known = self.client.get_run(self.run_id).data.metrics
        new = [_metric(key, value, seconds, 0) for key, value in metrics.items() if known.get(key) != value]
        self.client.log_batch(self.run_id, metrics=new)

    def log_points(self, records: list[Record]) -> None:
        """Send the metrics of some records, in as many calls as it takes, and note each call that succeeded."""
        for chunk in _chunks(records):
            self._log_chunk(chunk)

    def _log_chunk(self, records: list[Record]) -> None:
        self._note(sending=True)
        metrics = [
            _metric(key, value, record["time"], record["step"]) for record in records for key, value in _points(record)
        ]
        self.client.log_batch(self.run_id, metrics=metrics)
        for record in records:
            self.marks.advance(record)
        self.points_sent += len(metrics)
        self._note(sending=False)

    def log_fills(self, records: list[Record]) -> None:
        """Append to the table of fills, but for the rows that are there although the answer never came."""
        known = self._logged_fill_steps()
        if new := [record for record in records if record["step"] not in known]:
            self.client.log_table(self.run_id, fills_table(new), FILLS)
        for record in records:
            self.marks.advance(record)
        self._note()

    def log_events(self, new: list[Record]) -> None:
        """Append to the table of events, and count all restarts in a tag."""
        if new:
            self.client.log_table(self.run_id, events_table(new), EVENTS)
        restarts = sum(event == RESTART for _, event, _ in self._logged_events())
        self.set_tags({"restarts": str(restarts)} if restarts else {})

    def _logged_fill_steps(self) -> set[int]:
        table = self._table(FILLS)
        if table is None:
            return set()
        column = table["columns"].index("step")
        return {row[column] for row in table["data"]}

    def _logged_events(self) -> set[EventKey]:
        table = self._table(EVENTS)
        return set() if table is None else set(row_keys(table))

    def _table(self, name: str) -> dict[str, Any] | None:
        """Return a table as MLflow keeps it; None if there is none."""
        if all(file.path != name for file in self.client.list_artifacts(self.run_id)):
            return None
        with tempfile.TemporaryDirectory() as folder:
            path = self.client.download_artifacts(self.run_id, name, folder)
            table: dict[str, Any] = json.loads(Path(path).read_bytes())
        return table

    def log_folder(self, folder: Storage) -> None:
        """Send a folder as an artifact of the same name, if it is there."""
        if not folder.is_dir():
            return
        with folder.as_local_folder() as local:
            self.client.log_artifacts(self.run_id, str(local), folder.name)

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags that the run doesn't have yet, or that have changed."""
        known = self.client.get_run(self.run_id).data.tags
        for key, value in tags.items():
            if known.get(key) != value:
                self.client.set_tag(self.run_id, key, value)

    def log_artifact(self, place: Storage) -> None:
        """Send a file or folder as an artifact of the same name, if it is there; a page is described as well."""
        if place.is_dir():
            self.log_folder(place)
        elif place.exists():
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder) / place.name
                file.write_bytes(place.read_bytes())
                self.client.log_artifact(self.run_id, str(file))
            if place.name.endswith(".html"):
                self._describe(place.name)

    def _describe(self, page: str) -> None:
        """Let the run's description lead to a page, unless somebody wrote another description."""
        run = self.client.get_run(self.run_id)
        if _DESCRIPTION not in run.data.tags:
            place = f"#/experiments/{run.info.experiment_id}/runs/{self.run_id}/artifacts/{page}"
            self.client.set_tag(self.run_id, _DESCRIPTION, f"All pictures on one page: [{page}]({place})")

    def terminate(self, status: Status, end_time: float | None) -> None:
        """End the run at a time in unix seconds (none: now)."""
        milliseconds = None if end_time is None else int(end_time * 1000)
        self.client.set_terminated(self.run_id, status, milliseconds)
        self._note(ended=status)


def _points(record: Record) -> Iterator[tuple[str, float]]:
    """Yield a record's metrics under names that no other kind of record uses."""
    prefix = {"validation": "val_", "test": "test_"}.get(record["kind"], "")
    for key, value in metric_items(record).items():
        yield key if key.startswith(prefix) else prefix + key, value
    if record["kind"] == "train":
        yield "epoch", float(record["epoch"])


def _metric(key: str, value: float, seconds: float, step: int) -> Metric:
    from mlflow.entities import Metric

    return Metric(key, value, int(seconds * 1000), step)


def _chunks(records: Iterable[Record]) -> Iterator[list[Record]]:
    """Yield the records in groups that one call can take."""
    chunk: list[Record] = []
    size = 0
    for record in records:
        points = sum(1 for _ in _points(record))
        if chunk and size + points > _METRICS_PER_CALL:
            yield chunk
            chunk, size = [], 0
        chunk.append(record)
        size += points
    if chunk:
        yield chunk


def flatten(parameters: Any, prefix: str = "") -> dict[str, str]:
    """Return nested mappings or dataclasses as one mapping from dotted names to texts that MLflow accepts."""
    if is_dataclass(parameters) and not isinstance(parameters, type):
        parameters = asdict(parameters)
    flat: dict[str, str] = {}
    for key, value in parameters.items():
        if isinstance(value, Mapping) or is_dataclass(value):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = str(value)[:_LONGEST_PARAMETER]
    return flat
