"""TensorBoard, fed from the journals.

The journal is the truth and the event files are drawn from it: whoever starts or resumes a stage draws them anew, so
that they hold every point once whatever became of the process that wrote them before.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pipelines.journal import Record, StepMarks
from pipelines.sink import StageRun, Status, metric_items

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

FOLDER = "tensorboard"

_PREFIXES = {"validation": "val_", "test": "test_"}


class TensorBoardSink:
    """Writes STAGE/tensorboard; on remote storage that folder appears when the stage ends."""

    name = "TensorBoard"

    def __init__(self) -> None:
        self._writer: SummaryWriter | None = None
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        self._marks = StepMarks()

    def begin(self, stage: StageRun) -> bool:
        """Begin a new event file, unless an earlier start of the pipeline completed the stage's."""
        if stage.skipped and stage.state.read(FOLDER).get("ended"):
            return False
        from torch.utils.tensorboard import SummaryWriter  # takes seconds

        stage.state.write(FOLDER, {})
        self._marks = StepMarks()
        folder = stage.folder / FOLDER
        if folder.is_local:
            folder.delete()
            path = folder.path
        else:
            self._temporary = tempfile.TemporaryDirectory()
            path = self._temporary.name
        # purge_step makes a TensorBoard that is open forget what it read from earlier files
        self._writer = SummaryWriter(path, purge_step=0)
        return True

    def log(self, stage: StageRun, records: list[Record]) -> None:
        """Add each metric as a scalar KIND/METRIC, and fills as a table on the text page."""
        assert self._writer is not None, "log before begin"
        for record in records:
            if self._marks.is_new(record):
                _add(self._writer, record)
                self._marks.advance(record)
        if records:
            self._writer.flush()

    def end(self, stage: StageRun) -> None:
        """Close the event file, and upload it to remote storage."""
        if self._writer is not None:
            self._writer.close()
        if self._temporary is not None:
            (stage.folder / FOLDER).upload_folder(self._temporary.name)
            self._temporary.cleanup()
        self._writer = self._temporary = None
        stage.state.write(FOLDER, {"ended": stage.status})

    def finish(self, status: Status, summary: Mapping[str, float], end_time: float) -> None:
        """Do nothing: TensorBoard has no runs that hold others."""


def _add(writer: SummaryWriter, record: Record) -> None:
    kind, step, when = record["kind"], record["step"], record.get("time")
    if kind == "fills":
        writer.add_text("sample predictions", fills_markdown(record["samples"]), step, walltime=when)
    elif kind != "event":
        for key, value in metric_items(record).items():
            writer.add_scalar(f"{kind}/{key.removeprefix(_PREFIXES.get(kind, ''))}", value, step, walltime=when)


def fills_markdown(samples: list[dict[str, Any]]) -> str:
    """Return sample texts and the likeliest tokens for each of their masks as a Markdown table."""
    lines = ["| text | mask | predictions |", "|---|---|---|"]
    for sample in samples:
        text = sample["text"].replace("|", "\\|")
        for mask, tokens in enumerate(sample["fills"], start=1):
            predictions = ", ".join(f"{token} {float(probability):.0%}" for token, probability in tokens)
            lines.append(f"| {text} | {mask} | {predictions.replace('|', chr(92) + '|')} |")
    return "\n".join(lines)
