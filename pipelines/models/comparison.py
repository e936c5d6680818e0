"""How runs of one task differ, as their folders tell it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from perceiver.errors import UserError
from perceiver.saving import CONFIG
from pipelines.models.changed_predictions import ComparedPredictions, compare_predictions
from pipelines.past_run import PastRun, PastStage, read_run
from pipelines.stage_folder import MODEL, flat
from pipelines.storage import Storage
from pipelines.sync import find_run

_NAMES = ("run_name", "storage_path")  # differ, and say nothing


@dataclass(frozen=True)
class Comparison:
    """How runs differ; each list has one value per run.

    Attributes:
        runs: What the runs are called.
        task: What their models do.
        settings: Settings that are not the same, by their dotted names; None where a run has no such setting.
        stages: Results of the stages that all runs have, and of their last ones, by stage and name.
        predictions: What they predict on the test split; None for a masked language model.
    """

    runs: list[str]
    task: str
    settings: dict[str, list[Any]]
    stages: dict[str, dict[str, list[Any]]]
    predictions: ComparedPredictions | None


def compare_runs(names: Sequence[str], storage_path: str, num_samples: int) -> Comparison:
    """Compare runs.

    Args:
        names: Folders, URIs or names of two runs or more.
        storage_path: Folder or URI in which the names are looked up.
        num_samples: Samples with different predictions at most.

    Raises:
        UserError: If there is no such run, it has finished no stage, or the runs are of different tasks.
    """
    folders = [find_run(name, Storage.from_uri(storage_path)) for name in names]
    if len({str(folder) for folder in folders}) < len(folders):
        raise UserError(f"runs {', '.join(names)} are not all different: name each once")
    runs = [read_run(folder) for folder in folders]
    finished = [_finished(run) for run in runs]
    lasts = [list(stages.values())[-1] for stages in finished]
    tasks = [_task(stage) for stage in lasts]
    if len(set(tasks)) > 1:
        raise UserError(f"runs {', '.join(names)} are of different tasks ({', '.join(tasks)}): name runs of one task")
    labels = [run.run.name for run in runs]
    if len(set(labels)) < len(labels):
        labels = [str(folder) for folder in folders]
    return Comparison(
        runs=labels,
        task=tasks[0],
        settings=_different_settings(runs, lasts),
        stages=_results(finished, lasts),
        predictions=None if tasks[0] == "masked_language_model" else compare_predictions(labels, lasts, num_samples),
    )


def _finished(run: PastRun) -> dict[str, PastStage]:
    stages = {stage.run.name: stage for stage in run.stages if stage.result}
    if not stages:
        raise UserError(f"run {run.run.folder} has finished no stage: let it come to its end first")
    return stages


def _task(stage: PastStage) -> str:
    try:
        return str((stage.run.folder / MODEL / CONFIG).read_json()["task"])
    except (ValueError, TypeError, KeyError):
        raise UserError(f"{stage.run.folder / MODEL} holds no model: run the stage again") from None


def _different_settings(runs: Sequence[PastRun], lasts: Sequence[PastStage]) -> dict[str, list[Any]]:
    """Return what differs in the runs' settings or, if they are of several kinds, in those of their last stages."""
    of_runs = [run.run.parameters for run in runs]
    is_one_kind = len({frozenset(parameters) for parameters in of_runs}) == 1
    settings = [flat(chosen) for chosen in (of_runs if is_one_kind else [stage.run.parameters for stage in lasts])]
    names = dict.fromkeys(name for one in settings for name in one if name not in _NAMES)
    columns = {name: [one.get(name) for one in settings] for name in names}
    return {name: values for name, values in columns.items() if any(value != values[0] for value in values)}


def _results(
    finished: Sequence[Mapping[str, PastStage]], lasts: Sequence[PastStage]
) -> dict[str, dict[str, list[Any]]]:
    common = [name for name in finished[0] if all(name in stages for stages in finished)]
    rows = {name: [stages[name] for stages in finished] for name in common}
    last_names = dict.fromkeys(stage.run.name for stage in lasts)
    if len(last_names) > 1:
        rows[" / ".join(last_names)] = list(lasts)
    return {name: _numbers([stage.result for stage in stages]) for name, stages in rows.items()}


def _numbers(results: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    names = dict.fromkeys(
        name for result in results for name, value in result.items() if isinstance(value, int | float)
    )
    return {name: [result.get(name) for result in results] for name in names}
