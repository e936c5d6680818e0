"""What tracking is told about a pipeline and its stages, and what a program that shows metrics has to provide."""

from __future__ import annotations

import shlex
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

from pipelines.journal import Record
from pipelines.storage import Storage

if TYPE_CHECKING:
    from pipelines.config import TrackingConfig

Status = Literal["FINISHED", "FAILED", "KILLED"]

REPORT, PICTURES = "report.html", "pictures"
"""The page of a run, and the pictures of a run or stage, in the folder of either."""


class TrackingFile:
    """tracking.json in a folder: what each sink has to remember there, one section per sink. Safe between threads."""

    def __init__(self, folder: Storage) -> None:
        self._file = folder / "tracking.json"
        self._lock = threading.Lock()

    def read(self, section: str) -> dict[str, Any]:
        """Return a section; empty where there is none."""
        return dict((self._file.read_json() or {}).get(section, {}))

    def write(self, section: str, value: Mapping[str, Any]) -> None:
        """Replace a section."""
        with self._lock:
            self._file.write_json({**(self._file.read_json() or {}), section: dict(value)})


@dataclass(frozen=True)
class PipelineRun:
    """A pipeline that is tracked: the parent run."""

    storage: Storage
    """The storage path, in which the run has its folder."""
    name: str
    """The run's name, which is also its folder's."""
    config: TrackingConfig
    """Which sinks there are, and where."""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    """The pipeline's configuration; mappings in it may be nested."""
    tags: Mapping[str, str] = field(default_factory=dict)
    """Short facts, such as that the data is synthetic."""
    artifacts: tuple[str, ...] = ()
    """Files and folders in the run's folder that belong to the run itself, once it has ended."""
    start_time: float | None = None
    """When the pipeline began, in unix seconds (none: now)."""
    repair: str = ""
    """How the user lets MLflow have what it did not take (empty: see `sync_command`)."""

    @property
    def folder(self) -> Storage:
        """The run's folder."""
        return self.storage / self.name

    @property
    def sync_command(self) -> str:
        """The command that lets MLflow have what it did not take."""
        return self.repair or f"python -m pipelines sync-mlflow {shlex.quote(str(self.folder))}"


@dataclass
class StageRun:
    """A stage that is tracked: a child run."""

    name: str
    """The stage's name, such as "mlm"."""
    folder: Storage
    """The stage's folder, with its journal."""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    """The stage's configuration; mappings in it may be nested."""
    tags: Mapping[str, str] = field(default_factory=dict)
    """Short facts, such as the fingerprint of the data."""
    skipped: bool = False
    """Whether the stage ended in an earlier start of the pipeline, so that only what was not sent yet is sent."""
    status: Status | None = None
    """How the stage ended; set when its journal is complete."""
    start_time: float = field(default_factory=time.time)
    """When the stage began, in unix seconds."""
    end_time: float | None = None
    """When the stage ended, in unix seconds."""

    def __post_init__(self) -> None:
        self.state = TrackingFile(self.folder)


class Sink(Protocol):
    """Takes what stages measured. Each call may raise, and is then made again: what was taken must not count twice."""

    name: str
    """What the sink is called in messages."""

    def begin(self, stage: StageRun) -> bool:
        """Get ready for a stage's records; False if nothing of the stage is wanted any more."""
        ...

    def log(self, stage: StageRun, records: list[Record]) -> None:
        """Take records; among them may be some that were taken before."""
        ...

    def end(self, stage: StageRun) -> None:
        """Take a stage's end: `status` and `end_time` are set, and all its records were taken."""
        ...

    def finish(self, status: Status, summary: Mapping[str, float], end_time: float) -> None:
        """Take the pipeline's end, after that of its last stage."""
        ...


def metric_items(record: Record) -> dict[str, float]:
    """Return a record's metrics: its numbers without kind, time, epoch and step."""
    return {
        key: float(value)
        for key, value in record.items()
        if key not in ("time", "epoch", "step") and isinstance(value, int | float) and not isinstance(value, bool)
    }


def summary_of(results: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Return the metrics that a pipeline's own run shows, from the results of its stages by their names."""
    return {
        f"{name}_{metric}": float(value)
        for name, result in results.items()
        for metric, value in result.items()
        if metric.startswith(("val_", "test_")) and isinstance(value, int | float)
    }


def root_cause(error: BaseException) -> str:
    """Return the first line of the error at the bottom of a chain, which says what is wrong in the fewest words."""
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    text = str(error).strip().splitlines()
    return (text[0] if text else type(error).__name__)[:200]
