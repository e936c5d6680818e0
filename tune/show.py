"""What the user sees of a search while it runs: a table that moves on a terminal, lines in a log."""

from __future__ import annotations

import sys
import time
from typing import TextIO

from rich.console import Console
from rich.live import Live
from rich.table import Table

from tune.config import Goal
from tune.record import TrialRecord, ranked
from tune.trial import EPOCH

_RECENT = 12


class Show:
    """Shows the trials that train, and those that ended last.

    Args:
        goal: Metric that is optimized.
        num_samples: Trials of the search.
        max_epochs: Epochs of a trial.
        stream: Where to write (none: standard error).
    """

    def __init__(self, goal: Goal, num_samples: int, max_epochs: int, stream: TextIO | None = None) -> None:
        self._goal, self._num_samples, self._max_epochs = goal, num_samples, max_epochs
        self._console = Console(file=stream or sys.stderr)
        self._live = Live(console=self._console, transient=True) if self._console.is_terminal else None
        self._records: dict[int, TrialRecord] = {}
        self._best: TrialRecord | None = None
        self._started = time.monotonic()

    def begin(self, record: TrialRecord) -> None:
        """Show a trial that begins, or goes on."""
        self._update(record)

    def message(self, text: str) -> None:
        """Show a line that stays."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def epoch(self, record: TrialRecord) -> None:
        """Show an epoch's metric."""
        value = record.epochs[-1].get(self._goal.metric)
        self._update(record)
        self._best = next(iter(ranked(self._records.values(), self._goal)), None)
        if self._live is None and value is not None:
            donor = record.exploited.get(str(_epoch(record)))
            taken = "" if donor is None else f"  with the weights of trial {donor}"
            epoch = f"epoch {_epoch(record)}/{self._max_epochs}"
            self.message(f"trial {record.label}  {epoch}  {self._metric(value)}{taken}")

    def end(self, record: TrialRecord) -> None:
        """Show what became of a trial."""
        self._update(record)
        reason = f": {record.reason}" if record.reason else ""
        best = f"  best so far: trial {self._best.number} with {self._metric(self._best_value())}" if self._best else ""
        text = f"trial {record.label}  {record.state}{reason}{best}"
        if self._live is None or record.state in ("failed", "refused"):
            self.message(text)

    def close(self) -> None:
        """Take the table away."""
        if self._live is not None:
            self._live.stop()

    def _best_value(self) -> float:
        value = self._best.best(self._goal) if self._best is not None else None
        assert value is not None
        return value

    def _metric(self, value: float) -> str:
        return f"{self._goal.metric} {value:.4f}"

    def _update(self, record: TrialRecord) -> None:
        self._records.pop(record.number, None)
        self._records[record.number] = record  # last
        if self._live is not None:
            if not self._live.is_started:
                self._live.start()
            self._live.update(self._table(), refresh=True)

    def _table(self) -> Table:
        ended = sum(record.state != "running" for record in self._records.values())
        minutes, seconds = divmod(int(time.monotonic() - self._started), 60)
        table = Table(title=f"{ended} of {self._num_samples} trials, {minutes}:{seconds:02d}", title_justify="left")
        for name in ("trial", "state", "epoch", self._goal.metric):
            table.add_column(name, justify="right")
        running = [record for record in self._records.values() if record.state == "running"]
        others = [record for record in self._records.values() if record.state != "running" and record is not self._best]
        best = [self._best] if self._best is not None and self._best.state != "running" else []
        for record in [*running, *best, *reversed(others[-(_RECENT - len(running)) :])]:
            value = record.best(self._goal)
            state = f"{record.state}, best" if record is self._best else record.state
            metric = "" if value is None else f"{value:.4f}"
            table.add_row(str(record.number), state, f"{_epoch(record)}/{self._max_epochs}", metric)
        return table


def _epoch(record: TrialRecord) -> int:
    """Return the epochs that a trial's weights have seen."""
    return int(record.epochs[-1][EPOCH]) if record.epochs else 0
