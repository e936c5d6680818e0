"""A search in MLflow: one run for it, and in it one for each trial, fed from journals as the pipelines are."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from types import TracebackType
from typing import Any

from pipelines.journal import JournalWriter
from pipelines.sink import StageRun, Status
from pipelines.stage_folder import plain
from pipelines.tracking import Tracker
from tune.record import RAN, TRIALS, State, TrialRecord, read_records
from tune.results import ARTIFACTS
from tune.search import Search
from tune.trial import EPOCH

_DRAIN_SECONDS = 60.0
_STATUS: dict[State, Status] = {"failed": "FAILED", "killed": "KILLED"}


@dataclass
class _Followed:
    """A trial whose epochs are being sent."""

    journal: JournalWriter
    run: StageRun


class SearchTracker:
    """Sends what becomes of trials to MLflow from a thread of its own; never in the way of the search.

    Args:
        search: The search.
        warn: Shows the user a line.
    """

    def __init__(self, search: Search, warn: Callable[[str], None]) -> None:
        self._search, self._warn = search, warn
        self._start_time = time.time()
        self._tracker: Tracker | None = None
        self._followed: dict[int, _Followed] = {}
        self._summary: dict[str, float] = {}

    def _open(self) -> Tracker:
        """Return the tracker, which there is from the first trial on: a search that was refused leaves no run."""
        if self._tracker is None:
            search = self._search
            parameters: Mapping[str, Any] = plain({"search": asdict(search.config), **asdict(search.base)})
            run = replace(
                search.tracked,
                parameters=parameters,
                tags={"search": search.verb},
                artifacts=ARTIFACTS,
                start_time=self._start_time,
                repair="the same command with --resume true",
            )
            self._tracker = Tracker(run, self._warn)
            for record in read_records(search.folder):
                if record.state in RAN:
                    self._send_past(record, self._tracker)
        return self._tracker

    def _send_past(self, record: TrialRecord, tracker: Tracker) -> None:
        """Send what an earlier start of the search left unsent of a trial that had its turn."""
        folder = self._search.folder / TRIALS / record.name
        tracker.skip_stage(_name(record), folder, record.values, _tags(record), _STATUS.get(record.state, "FINISHED"))

    def begin(self, record: TrialRecord) -> None:
        """Take a trial that begins, or goes on."""
        folder = self._search.folder / TRIALS / record.name
        journal = JournalWriter(folder, after_step=max((int(epoch["step"]) for epoch in record.epochs), default=-1))
        run = self._open().begin_stage(_name(record), folder, record.values, {"trial": str(record.number)})
        self._followed[record.number] = _Followed(journal, run)

    def epoch(self, record: TrialRecord) -> None:
        """Take a trial that has ended an epoch."""
        epoch = record.epochs[-1]
        facts = {"seconds": record.seconds, "gpu_seconds": record.gpu_seconds, "parameters": record.parameters or 0}
        self._followed[record.number].journal.write({"kind": "trial", **epoch, "epochs": epoch[EPOCH], **facts})

    def end(self, record: TrialRecord) -> None:
        """Take a trial that has ended."""
        followed = self._followed.pop(record.number, None)
        if followed is not None:
            followed.journal.close()
            followed.run.tags = _tags(record)
            self._open().end_stage(_STATUS.get(record.state, "FINISHED"), followed.run)

    def conclude(self, summary: Mapping[str, float]) -> None:
        """Take the metrics that the search's own run shows."""
        self._summary = dict(summary)
        self._open()  # where no trial was left to run

    def __enter__(self) -> SearchTracker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Send the rest."""
        status: Status = "FINISHED"
        if error is not None:
            status = "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED"
        if self._tracker is not None:
            self._tracker.close(status, self._summary, _DRAIN_SECONDS)


def _name(record: TrialRecord) -> str:
    return f"trial {record.name}"


def _tags(record: TrialRecord) -> dict[str, str]:
    """Return the tags of a trial that ended."""
    return {"trial": str(record.number), "state": record.state, "reason": record.reason}
