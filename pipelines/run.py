"""From a parsed command to a finished pipeline and the table that sums it up."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from perceiver.data.text import split_text
from pipelines.cli import Command
from pipelines.config import MLMStageConfig, SentimentConfig, StageConfig, TextClassifierStageConfig, stages_of
from pipelines.pipeline import Pipeline, StageFailedError, StageOutcome
from pipelines.progress import Progress, SummaryRow, print_summary
from pipelines.sentiment import BASELINE_NAMES, baselines
from pipelines.sink import REPORT, PipelineRun
from pipelines.storage import Storage
from pipelines.tracking import viewing_commands


def run(command: Command) -> list[StageOutcome]:
    """Run a pipeline and print what came out.

    Raises:
        UserError: If the user made a mistake.
        StageFailedError: If training failed.
    """
    storage = Storage.from_uri(command.run.storage_path)
    folder = storage / command.run.run_name
    pipeline = Pipeline(command.config, stages_of(command.verb, command.config, folder.uri), command.run, storage)
    progress = Progress()
    rows: list[SummaryRow] = []
    try:
        pipeline.check()
        if isinstance(command.config, SentimentConfig):
            split_text(command.config.data)  # finds a wrong label before the pretraining, which needs none
        outcomes = pipeline.execute(progress)
        if isinstance(command.config, SentimentConfig) and command.config.baselines:
            figures = baselines(command.config.data, folder, progress.message)
            rows = [
                SummaryRow(f"baseline: {BASELINE_NAMES[name]}", test_accuracy=value) for name, value in figures.items()
            ]
        _report(command, folder, outcomes, progress)
    except StageFailedError:
        _report(command, folder, [], progress)
        raise
    finally:
        progress.close()
    print_summary(str(folder), [*map(_row, outcomes), *rows], _commands(pipeline, outcomes))
    if command.run.tracking.register is not None:
        from pipelines.models.register import register_outcome

        register_outcome(outcomes[-1].folder, command.run, storage)
    return outcomes


def _report(command: Command, folder: Storage, outcomes: Sequence[StageOutcome], progress: Progress) -> None:
    """Draw the run, unless nothing has changed since it was drawn last."""
    is_old = bool(outcomes) and all(outcome.skipped for outcome in outcomes)
    if command.run.tracking.report and not (is_old and (folder / REPORT).exists()):
        from pipelines.report.write import report_run

        report_run(folder, progress.message)


def _row(outcome: StageOutcome) -> SummaryRow:
    result = outcome.result
    notes = ["synthetic data"] if outcome.synthetic else []
    return SummaryRow(
        outcome.name,
        epochs=result["epochs"],
        val_loss=result.get("val_loss"),
        val_accuracy=result.get("val_accuracy"),
        test_accuracy=result.get("test_accuracy"),
        seconds=result["seconds"],
        note=", ".join([*notes, *(["finished before"] if outcome.skipped else [])]),
    )


def _commands(pipeline: Pipeline, outcomes: list[StageOutcome]) -> dict[str, str]:
    """Return how to open the results, by what is opened."""
    page = pipeline.folder / REPORT
    commands = {"Report": str(page)} if page.exists() else {}
    commands |= viewing_commands(PipelineRun(pipeline.storage, pipeline.run.run_name, pipeline.run.tracking))
    last = outcomes[-1]
    if last.folder.is_local:
        use = _use(pipeline.stages[last.name], f"{last.folder}/model")
        commands["Use it"] = f"python -c {shlex.quote(use)}"
    return commands


def _use(config: StageConfig, folder: str) -> str:
    start = f'from perceiver.inference import load; model = load("{folder}"); '
    match config:
        case MLMStageConfig():
            return start + f'print(model.fill(["{config.samples[0] if config.samples else "a [MASK] film"}"]))'
        case TextClassifierStageConfig():
            return start + 'print(model.classify(["what a wonderful film", "what a mess"]))'
        case _:
            return start + "help(model.classify)"
