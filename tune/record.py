"""What became of a trial: trial.json in its folder, from which a search goes on, reports and draws."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from pipelines.journal import read_journal
from pipelines.storage import Storage
from tune.config import Goal

TRIALS = "trials"
_FILE = "trial.json"

State = Literal["running", "finished", "stopped", "failed", "refused", "killed"]
"""How a trial stands. stopped: the scheduler ended it early. refused: the configuration does not take its values, so
that it never ran. killed: the user, or the end of the driver, ended it; it goes on with --resume."""

RAN: tuple[State, ...] = ("finished", "stopped", "failed")
"""States of trials that had their turn, and are not run again."""


@dataclass
class TrialRecord:
    """A trial.

    Attributes:
        number: Its number; 0 is the base configuration.
        values: Values of the fields that are searched.
        state: How it stands.
        reason: Why it was refused or failed.
        epochs: Metrics of each epoch's validation, with `epoch` (epochs done), `step` and `time` (unix seconds).
        seconds: Seconds of training.
        gpu_seconds: The same, times the GPUs.
        parameters: Parameters of its model.
        start_time: When it first began, in unix seconds.
        end_time: When it ended.
        exploited: With PBT, from which trial it took the weights, by epoch.
    """

    number: int
    values: dict[str, Any]
    state: State = "running"
    reason: str = ""
    epochs: list[dict[str, float]] = field(default_factory=list)
    seconds: float = 0.0
    gpu_seconds: float = 0.0
    parameters: int | None = None
    start_time: float = field(default_factory=time.time)
    end_time: float | None = None
    exploited: dict[str, int] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Name of its folder."""
        return trial_name(self.number)

    @property
    def label(self) -> str:
        """What it is called where it is shown."""
        return f"{self.number} (base)" if self.number == 0 else str(self.number)

    def best(self, goal: Goal) -> float | None:
        """Return the best value of the metric over its epochs; None if it was never reported."""
        values = [epoch.get(goal.metric, math.nan) for epoch in self.epochs]
        return (min if goal.mode == "min" else max)(filter(math.isfinite, values), default=None)

    def write(self, search: Storage) -> None:
        """Write it into its folder."""
        (search / TRIALS / self.name / _FILE).write_json(asdict(self))


def validation_metrics(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the validation metrics among other things."""
    return {name: value for name, value in content.items() if name.startswith("val_")}


def trial_name(number: int) -> str:
    """Return the name of a trial's folder."""
    return f"{number:04d}"


def read_records(search: Storage) -> Iterator[TrialRecord]:
    """Yield the trials of a search in the order of their numbers; what a crash tore is left out."""
    for name in filter(str.isdigit, (search / TRIALS).names()):
        try:
            content: Mapping[str, Any] | None = (search / TRIALS / name / _FILE).read_json()
        except ValueError:
            continue
        if content is not None:
            yield TrialRecord(**content)


def with_missed_epochs(record: TrialRecord, stage: Storage) -> TrialRecord:
    """Add the epochs that a trial's last stage had ended when the search died before it took note of them."""
    known = max((int(epoch["epoch"]) for epoch in record.epochs), default=0)
    for entry in read_journal(stage).records:
        if entry["kind"] == "validation" and entry["epoch"] + 1 > known:
            facts = {"epoch": entry["epoch"] + 1, "step": entry["step"], "time": entry["time"]}
            record.epochs.append({**facts, **validation_metrics(entry)})
    return record


def ranked(records: Iterable[TrialRecord], goal: Goal) -> list[TrialRecord]:
    """Return the trials that reported the metric, the best first, the earliest of equals."""
    sign = 1.0 if goal.mode == "min" else -1.0
    values = [(sign * best, record.number, record) for record in records if (best := record.best(goal)) is not None]
    return [record for *_, record in sorted(values, key=lambda item: item[:2])]
