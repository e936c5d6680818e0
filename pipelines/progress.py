"""What the user sees of a run: one line of progress while it trains, a table when it is done."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TextIO

from rich.box import ASCII, SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, ProgressColumn, TextColumn
from rich.progress import Progress as Bar
from rich.table import Table

_LOG_SECONDS = 10.0
_LOG_WIDTH = 110
_BAR_WIDTH = 100  # a narrower terminal has room for the numbers alone
_NUMBERS_WIDTH = 80
_FILLS_SHOWN = 3


class Progress:
    """Shows how far a run is: a bar that moves on a terminal, a line now and then in a log.

    Its methods may be called from several threads.

    Args:
        stream: Where to write (none: standard error).
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._lock = threading.RLock()
        self._state: dict[str, Any] = {}
        self._pace = _Pace()
        self._next_line = 0.0
        self._bar = _make_bar(self._stream) if self._stream.isatty() else None
        self._task = self._bar.add_task("", visible=False, details="") if self._bar is not None else None

    def update(self, state: Mapping[str, Any]) -> None:
        """Take a state of the training, whole or what changed of it.

        Args:
            state: `stage`, `epoch` (from 1), `max_epochs`, `step`, `total_steps`, `loss`, `samples_per_second`, and
                `phase`: "starting", "training", "validating" or "testing". `epoch_end`, the metrics of a validation,
                `fills`, sample texts with their fills, and `note`, a line, are shown once.
        """
        with self._lock:
            events = {key: state[key] for key in ("epoch_end", "fills", "note") if key in state}
            if state.get("stage", self._state.get("stage")) != self._state.get("stage"):
                self._state, self._pace, self._next_line = {}, _Pace(), 0.0
            changed = state.get("phase", self._state.get("phase")) != self._state.get("phase")
            self._state |= {key: value for key, value in state.items() if key not in events}
            self._pace.note(self._state.get("step"))
            if "epoch_end" in events:
                self.epoch_end(events["epoch_end"])
            if "note" in events:
                self.message(f"{self._state.get('stage', '')}  {events['note']}".strip())
            if "fills" in events:
                self.fills(events["fills"])
            self._show(urgent=changed and self._state.get("phase") in ("starting", "testing"))

    def message(self, text: str) -> None:
        """Show a line that stays."""
        with self._lock:
            if self._bar is not None:
                self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)
            else:
                print(text, file=self._stream, flush=True)

    def epoch_end(self, record: Mapping[str, Any]) -> None:
        """Show the metrics of the validation that ended an epoch.

        Args:
            record: The validation's record; its `val_loss` and `val_accuracy` are shown.
        """
        metrics = [f"{key} {record[key]:.4f}" for key in ("val_loss", "val_accuracy") if key in record]
        self.message("  ".join([*self._where(), *metrics]))

    def fills(self, samples: Sequence[Mapping[str, Any]]) -> None:
        """Show what the model writes in place of the masks of the first sample texts."""
        for sample in samples[:_FILLS_SHOWN]:
            self.message(f"    {sample['text']}  ->  {fills_line(sample)}")

    def close(self) -> None:
        """Take the bar away."""
        with self._lock:
            if self._bar is not None:
                self._bar.stop()

    def _show(self, urgent: bool) -> None:
        if self._bar is not None and self._task is not None:
            state = self._state
            self._bar.update(
                self._task,
                description=escape("  ".join(self._where())),
                completed=state.get("step") or 0,
                total=state.get("total_steps") or None,
                details=escape("  ".join(self._details())),
                visible=True,
            )
            if not self._bar.live.is_started:
                self._bar.start()
        elif urgent or time.monotonic() >= self._next_line:
            self._next_line = time.monotonic() + _LOG_SECONDS
            self.message("  ".join([*self._where(), *self._details()]))

    def _where(self) -> list[str]:
        state = self._state
        where = [str(state.get("stage", ""))] if state.get("stage") else []
        if state.get("max_epochs"):
            where.append(f"epoch {state.get('epoch', 1)}/{state['max_epochs']}")
        return where

    def _details(self) -> list[str]:
        state = self._state
        details = []
        if state.get("total_steps"):
            details.append(f"step {state.get('step', 0)}/{state['total_steps']}")
        if state.get("loss") is not None:
            details.append(f"loss {state['loss']:.4f}")
        if state.get("phase", "training") != "training":
            return [*details, state["phase"]]
        if state.get("samples_per_second"):
            details.append(f"{state['samples_per_second']:.0f} samples/s")
        left = self._pace.seconds_left(state.get("total_steps") or 0)
        return [*details, f"{duration(left)} left"] if left is not None else details


class _Pace:
    """Tells the time that is left from the steps since the first one seen, validations included."""

    def __init__(self) -> None:
        self._first: tuple[float, int] | None = None
        self._last: tuple[float, int] | None = None

    def note(self, step: int | None) -> None:
        if step is None:
            return
        if self._last is None or step < self._last[1]:  # a lost worker goes back to a checkpoint
            self._first = time.monotonic(), step
        self._last = time.monotonic(), step

    def seconds_left(self, total_steps: int) -> float | None:
        if self._first is None or self._last is None or self._last[1] <= self._first[1]:
            return None
        pace = (self._last[0] - self._first[0]) / (self._last[1] - self._first[1])
        return max(0, total_steps - self._last[1]) * pace


def _make_bar(stream: TextIO) -> Bar:
    console = Console(file=stream)
    columns: list[ProgressColumn] = [TextColumn("{task.description} "), TextColumn("{task.fields[details]}")]
    if console.width >= _BAR_WIDTH:
        columns.insert(1, BarColumn(bar_width=min(40, console.width - _NUMBERS_WIDTH)))
    return Bar(*columns, console=console, transient=True)


def fills_line(sample: Mapping[str, Any]) -> str:
    """Return the likeliest tokens for each mask of a sample text in one line."""
    masks = []
    for tokens in sample["fills"]:
        masks.append(", ".join(f"{token} {float(probability):.0%}" for token, probability in tokens[:_FILLS_SHOWN]))
    return " | ".join(masks)


def duration(seconds: float) -> str:
    """Return a duration as m:ss or h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


@dataclass(frozen=True)
class SummaryRow:
    """A line of the table at the end: a stage, or a baseline."""

    stage: str
    """Name of the stage or baseline."""
    epochs: int | None = None
    """Epochs trained."""
    val_loss: float | None = None
    """Validation loss of the best epoch."""
    val_accuracy: float | None = None
    """Validation accuracy of the best epoch."""
    test_accuracy: float | None = None
    """Test accuracy."""
    seconds: float | None = None
    """Seconds of training."""
    note: str = ""
    """What else is to be known, in a word or two, such as that the result was there already."""


def summary_table(rows: Sequence[SummaryRow], title: str = "", ascii_only: bool = False) -> Table:
    """Return a table of stages and baselines; columns without any value are left out.

    Args:
        rows: Its lines.
        title: What stands above.
        ascii_only: Whether it is to be read in a log rather than on a terminal.
    """
    cells = {
        "stage": [f"{row.stage} ({row.note})" if row.note else row.stage for row in rows],
        "epochs": [_cell(row.epochs, "d") for row in rows],
        "val loss": [_cell(row.val_loss, ".4f") for row in rows],
        "val accuracy": [_cell(row.val_accuracy, ".2%") for row in rows],
        "test accuracy": [_cell(row.test_accuracy, ".2%") for row in rows],
        "time": ["" if row.seconds is None else duration(row.seconds) for row in rows],
    }
    table = Table(title=title or None, title_justify="left", box=ASCII if ascii_only else SIMPLE_HEAD)
    shown = {name: column for name, column in cells.items() if any(column)}
    for name, column in shown.items():
        if name == "stage":
            table.add_column(name, overflow="fold")
        else:  # a number is never cut
            table.add_column(name, justify="right", min_width=max(map(len, column)))
    for line in zip(*shown.values(), strict=True):
        table.add_row(*map(escape, line))
    return table


def _cell(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def plain_console(stream: TextIO | None = None) -> Console:
    """Return a console for tables, which has a width of its own in a log.

    Args:
        stream: Where it writes (none: standard output).
    """
    stream = stream or sys.stdout
    return Console(file=stream, width=None if stream.isatty() else _LOG_WIDTH, highlight=False)


def print_summary(
    folder: str, rows: Sequence[SummaryRow], commands: Mapping[str, str], stream: TextIO | None = None
) -> None:
    """Print what a run achieved, where it lies, and how to look at it.

    Args:
        folder: The run's folder, which holds a folder per stage.
        rows: Stages and baselines.
        commands: Commands or addresses by what they are for.
        stream: Where to write (none: standard output).
    """
    console = plain_console(stream)
    console.print()
    console.print(summary_table(rows, ascii_only=not console.is_terminal))
    print_commands(folder, commands, console)


def print_commands(folder: str, commands: Mapping[str, str], console: Console) -> None:
    """Print where results lie and how to look at them, in lines that are never wrapped, so that they can be copied."""
    width = max(map(len, ["Results", *commands]))
    for name, command in {"Results": folder, **commands}.items():
        console.print(f"{name:<{width}}  {command}", markup=False, soft_wrap=True)
