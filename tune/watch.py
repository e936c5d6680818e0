"""What the driver sees of the trials: it keeps their records, and tells who listens."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import ray.tune
from ray.tune.experiment import Trial

from pipelines.stage_folder import CHECKPOINTS, MODEL
from pipelines.storage import Storage
from tune.config import Goal, SearchConfig
from tune.record import RAN, TRIALS, State, TrialRecord, ranked, validation_metrics
from tune.searcher import NUMBER, TRIAL, VALUES
from tune.trial import COMPLETE, EPOCH, FAILURE, PARAMETERS, SECONDS

_OUT_OF_TIME = "the time budget was spent"
_DIED = "its process died; if the machine ran out of memory, try smaller models or fewer trials at once"


class Listener(Protocol):
    """Takes what becomes of trials."""

    def begin(self, record: TrialRecord) -> None:
        """Take a trial that begins, or goes on."""
        ...

    def epoch(self, record: TrialRecord) -> None:
        """Take a trial that has ended an epoch."""
        ...

    def end(self, record: TrialRecord) -> None:
        """Take a trial that has ended."""
        ...


class Watch(ray.tune.Callback):
    """Keeps trial.json of every trial up to date, and the folders of all but the best trials small.

    Args:
        search: Folder of the search.
        goal: Metric that is optimized.
        config: The search.
        past: Trials of an earlier start.
        listeners: Told of every beginning, epoch and end.
        gpus: GPUs of a trial, all its workers together.
    """

    def __init__(
        self,
        search: Storage,
        goal: Goal,
        config: SearchConfig,
        past: Sequence[TrialRecord],
        listeners: Sequence[Listener],
        gpus: float = 0.0,
    ) -> None:
        self.learn: Callable[[TrialRecord], None] = lambda record: None
        self._search, self._goal, self._config, self._listeners = search, goal, config, listeners
        self._gpus = gpus
        self._records = {record.number: record for record in past}
        self._earlier_seconds = {record.number: record.seconds for record in past}
        self._started = time.monotonic()
        self._open: set[int] = set()
        self._emptied: set[int] = set()

    @property
    def records(self) -> list[TrialRecord]:
        """All trials, in the order of their numbers."""
        return [self._records[number] for number in sorted(self._records)]

    @property
    def was_interrupted(self) -> bool:
        """Whether trials are left that neither came to an end nor ran out of time."""
        return bool(self._open) and not self._is_out_of_time()

    def __getstate__(self) -> dict[str, Any]:
        """Leave nothing to Ray Tune's own notes of the search, which are never read."""
        return {}

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *_: object) -> None:
        """Note which trials did not come to an end."""
        reason = _OUT_OF_TIME if self._is_out_of_time() else "the search was stopped"
        for number in sorted(self._open):
            self._end(self._records[number], "killed", reason)

    def refuse(self, record: TrialRecord) -> None:
        """Take a trial whose values the configuration refuses."""
        self._records[record.number] = record
        record.write(self._search)
        for listener in self._listeners:
            listener.end(record)

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """See ray.tune.Callback."""
        record = self._record(trial)
        record.state, record.reason, record.end_time = "running", "", None
        self._open.add(record.number)
        record.write(self._search)
        for listener in self._listeners:
            listener.begin(record)

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        """See ray.tune.Callback."""
        if FAILURE in result or "step" not in result:  # without: it had ended before, and its journal told its epochs
            return
        record = self._record(trial)
        self._note_exploit(record, trial, result)
        epoch = {EPOCH: result[EPOCH], "step": result["step"], **validation_metrics(result)}
        record.epochs = [past for past in record.epochs if past[EPOCH] < epoch[EPOCH]]
        record.epochs.append({**epoch, "time": time.time()})
        record.seconds = self._earlier_seconds.get(record.number, 0.0) + result.get(SECONDS, 0.0)
        record.gpu_seconds = record.seconds * self._gpus
        record.parameters = result.get(PARAMETERS, record.parameters)
        record.write(self._search)
        for listener in self._listeners:
            listener.epoch(record)

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """See ray.tune.Callback."""
        record = self._record(trial)
        if FAILURE in trial.last_result:
            self._end(record, "failed", trial.last_result[FAILURE])
        elif trial.last_result.get(COMPLETE):
            self._end(record, "finished")
        elif self._is_out_of_time():
            self._end(record, "killed", _OUT_OF_TIME)
        else:
            self._end(record, "stopped")

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """See ray.tune.Callback."""
        self._end(self._record(trial), "failed", _DIED)

    def _is_out_of_time(self) -> bool:
        budget = self._config.time_budget
        return budget is not None and time.monotonic() - self._started >= budget

    def _end(self, record: TrialRecord, state: State, reason: str = "") -> None:
        record.state, record.reason, record.end_time = state, reason, time.time()
        record.write(self._search)
        self._open.discard(record.number)
        if state in RAN:
            self.learn(record)
            self._tidy()
        for listener in self._listeners:
            listener.end(record)

    def _record(self, trial: Trial) -> TrialRecord:
        number = int(str(trial))
        if number not in self._records:
            self._records[number] = TrialRecord(number, dict(trial.config[TRIAL][VALUES]))
        return self._records[number]

    def _note_exploit(self, record: TrialRecord, trial: Trial, result: dict[str, Any]) -> None:
        """Note where population-based training gave a trial the weights of another one, and new values."""
        if record.values != trial.config[TRIAL][VALUES]:
            record.values = dict(trial.config[TRIAL][VALUES])
            record.exploited[str(result[EPOCH])] = trial.config[TRIAL][NUMBER]

    def _tidy(self) -> None:
        """Delete the checkpoints and models of trials that had their turn and are not among the best."""
        ended = [record for record in self.records if record.state in RAN]
        best = {record.number for record in ranked(ended, self._goal)[: self._config.keep_trials]}
        for record in ended:
            if record.number not in best | self._emptied:
                self._empty(self._search / TRIALS / record.name)
                self._emptied.add(record.number)

    @staticmethod
    def _empty(folder: Storage) -> None:
        for stage in (folder / name for name in folder.names()):
            if stage.is_dir():
                for part in (CHECKPOINTS, MODEL):
                    (stage / part).delete()
