"""A run as its folder tells it: what tracking would have been told while it ran."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import yaml

from perceiver.errors import UserError
from pipelines.config import RunConfig, SentimentConfig, TrackingConfig
from pipelines.journal import Record, read_journal
from pipelines.mlflow_run import noted_end
from pipelines.sink import PICTURES, REPORT, PipelineRun, StageRun, Status, TrackingFile, summary_of
from pipelines.stage_folder import CONFIG, ERROR, STAGE, StageFolder
from pipelines.storage import Storage

_NAMES_OF_RUN = {field.name for field in fields(RunConfig)}


@dataclass(frozen=True)
class PastStage:
    """A stage that ended.

    Attributes:
        run: What tracking is told of it.
        records: Its journal.
        result: What it came to; empty unless it was finished.
        synthetic: Whether its data is made up.
    """

    run: StageRun
    records: list[Record]
    result: Mapping[str, Any]
    synthetic: bool


@dataclass(frozen=True)
class PastRun:
    """A run that ended.

    Attributes:
        run: What tracking is told of it.
        stages: Its stages, in the order in which they ran.
        status: How it ended.
        end_time: When, in unix seconds.
        summary: Metrics that the run itself shows.
    """

    run: PipelineRun
    stages: list[PastStage]
    status: Status
    end_time: float
    summary: Mapping[str, float]


def read_run(folder: Storage) -> PastRun:
    """Read the folder of a run in which nobody trains any more.

    Raises:
        UserError: If it is none, or is damaged.
    """
    config = _read_config(folder)
    if not config.keys() >= _NAMES_OF_RUN:
        raise UserError(
            f"{folder} is no run, for it has no {CONFIG} of a pipeline: name the folder of a run, or a run in "
            "--storage_path"
        )
    stages = list(_read_stages(folder))
    tags = {"synthetic_data": "true"} if any(stage.synthetic for stage in stages) else {}
    begun = min((stage.run.start_time for stage in stages), default=None)
    run = PipelineRun(folder.parent, folder.name, _tracking(folder, config), config, tags, (REPORT, PICTURES), begun)
    status = _status_of_run(config, stages)
    ended = max((stage.run.end_time or 0.0 for stage in stages), default=time.time())
    summary = summary_of({stage.run.name: stage.result for stage in stages})
    return PastRun(run, stages, _unless_noted(status, folder), ended, summary)


def _tracking(folder: Storage, config: Mapping[str, Any]) -> TrackingConfig:
    try:
        return TrackingConfig(**config["tracking"])
    except (TypeError, ValueError) as error:
        raise UserError(f"{folder / CONFIG} can't be used: {error}") from None


def _read_config(folder: Storage) -> dict[str, Any]:
    """Return the settings in a folder; empty where there are none, or none that can be read."""
    try:
        config = yaml.safe_load((folder / CONFIG).read_bytes())
    except (FileNotFoundError, yaml.YAMLError, UnicodeDecodeError):
        return {}
    return config if isinstance(config, dict) else {}


def stage_names(folder: Storage) -> list[str]:
    """Return the names of the stages of a run, in the order in which they ran."""
    order = list(SentimentConfig().stages())  # the only pipeline with several
    names = [name for name in folder.names() if (folder / name / STAGE).exists()]
    return sorted(names, key=lambda name: order.index(name) if name in order else len(order))


def _read_stages(folder: Storage) -> Iterator[PastStage]:
    for name in stage_names(folder):
        yield _read_stage(StageFolder(folder, name))


def _read_stage(stage: StageFolder) -> PastStage:
    state = stage.read_state()
    assert state is not None, "stage.json is there"
    config = _read_config(stage.storage)
    parameters = {name: value for name, value in config.items() if name not in _NAMES_OF_RUN}
    run = StageRun(stage.name, stage.storage, parameters, {"data_fingerprint": state["data_fingerprint"]})
    records = read_journal(stage.storage).records
    if records:
        run.start_time = records[0]["time"]
    run.end_time = records[-1]["time"] if records else run.start_time
    status: Status = "FINISHED"
    if state["status"] != "finished":
        status = "FAILED" if (stage.storage / ERROR).exists() else "KILLED"
    run.status = _unless_noted(status, stage.storage)
    return PastStage(run, records, state["result"], state["synthetic"])


def _status_of_run(config: Mapping[str, Any], stages: Sequence[PastStage]) -> Status:
    found = {stage.run.name: stage.run.status for stage in stages}
    chain = list(SentimentConfig().stages())
    expected = chain if config.keys() >= set(chain) else list(found)
    if "FAILED" in found.values():
        return "FAILED"
    return "FINISHED" if expected and all(found.get(name) == "FINISHED" for name in expected) else "KILLED"


def _unless_noted(status: Status, folder: Storage) -> Status:
    """Return how something ended: if it didn't come to its end, who followed it may have noted why."""
    noted = noted_end(TrackingFile(folder))
    return noted if status != "FINISHED" and noted in ("FAILED", "KILLED") else status
