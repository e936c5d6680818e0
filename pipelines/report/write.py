"""Writes the page and the pictures of a run into its folder, and lets MLflow have them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from pipelines.mlflow_client import make_client, tracking_uri, without_secrets
from pipelines.mlflow_run import SECTION, MlflowRun
from pipelines.past_run import PastRun, read_run
from pipelines.report.comparison import comparison
from pipelines.report.page import StageSection, render
from pipelines.report.parts import Part, Picture, drawing_style
from pipelines.report.stage import draw_stage
from pipelines.sink import PICTURES, REPORT, TrackingFile, root_cause
from pipelines.storage import Storage

Warn = Callable[[str], None]


def report_run(folder: Storage, warn: Warn) -> bool:
    """Write the report of a run that has just ended, as `publish` does."""
    try:
        past = read_run(folder)
    except Exception as error:  # no report is worth a run
        warn(f"report: it could not be written ({root_cause(error)})")
        return False
    return publish(past, warn)


def publish(past: PastRun, warn: Warn) -> bool:
    """Write the report of a run and let MLflow have it; whatever fails becomes a warning of one line.

    Args:
        past: The run.
        warn: Shows the user a line.

    Returns:
        Whether the page was written.
    """
    try:
        write_report(past, warn)
    except Exception as error:  # no report is worth a run
        warn(f"report: it could not be written ({root_cause(error)})")
        return False
    if past.run.config.mlflow:
        try:
            log_report(past)
        except Exception as error:  # MLflow's client raises all kinds
            warn(f"report: MLflow does not take it ({without_secrets(root_cause(error))})")
    return True


def write_report(past: PastRun, warn: Warn) -> None:
    """Draw a run, and write report.html and the pictures of the run and of its stages.

    Args:
        past: The run.
        warn: Shows the user a line where a picture failed.
    """
    with drawing_style():
        overview = comparison(past.run.folder, past.stages)
        sections = [StageSection(stage, draw_stage(stage, warn)) for stage in past.stages]
    _write_pictures(past.run.folder, overview)
    for section in sections:
        _write_pictures(section.stage.run.folder, section.parts)
    (past.run.folder / REPORT).write_bytes(render(past, overview, sections).encode())


def _write_pictures(folder: Storage, parts: Sequence[Part]) -> None:
    """Replace the pictures in a folder."""
    pictures = [part for part in parts if isinstance(part, Picture)]
    if pictures:
        (folder / PICTURES).write_folder(partial(_write_files, pictures))
    else:
        (folder / PICTURES).delete()


def _write_files(pictures: Sequence[Picture], folder: Path) -> None:
    folder.mkdir()
    for picture in pictures:
        (folder / f"{picture.name}.png").write_bytes(picture.png)


def log_report(past: PastRun) -> None:
    """Let MLflow have the page and the pictures, where it has the run."""
    runs = [past.run.folder, *(stage.run.folder for stage in past.stages)]
    notes = [(folder, TrackingFile(folder).read(SECTION)) for folder in runs]
    uri = tracking_uri(past.run.config, past.run.storage)
    known = [(folder, note) for folder, note in notes if "run_id" in note and note["uri"] == without_secrets(uri)]
    if known:
        client = make_client(uri)
        for folder, note in known:
            run = MlflowRun(client, TrackingFile(folder), note)
            for name in (REPORT, PICTURES):
                run.log_artifact(folder / name)
