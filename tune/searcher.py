"""Which values to try next: Optuna's samplers behind Ray Tune's interface, within what the configuration accepts."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial
from ray.tune.search import Searcher

from perceiver.errors import UserError
from tune.config import Goal, SearchConfig
from tune.record import TrialRecord
from tune.space import value_of, with_dividing_heads, with_values

TRIAL, NUMBER, VALUES = "trial", "number", "values"
"""What Ray Tune's configuration of a trial holds: {TRIAL: {NUMBER: ..., VALUES: {field: value}}}."""
_MOST_REFUSED = 50  # in a row: the space then has hardly anything that the configuration accepts

_STATES = {
    "finished": TrialState.COMPLETE,
    "stopped": TrialState.PRUNED,
    "refused": TrialState.PRUNED,
    "failed": TrialState.FAIL,
}


class SpaceSearcher(Searcher):
    """Suggests trials: first those that were interrupted, then the base configuration, then samples of the space.

    Args:
        base: Configuration that trials change.
        space: Fields that trials change.
        config: The search.
        goal: Metric that is optimized.
        past: Trials of an earlier start of the search.
        refuse: Called with a trial whose values the configuration refuses.
    """

    def __init__(
        self,
        base: Any,
        space: Mapping[str, BaseDistribution],
        config: SearchConfig,
        goal: Goal,
        past: Sequence[TrialRecord],
        refuse: Callable[[TrialRecord], None],
    ) -> None:
        super().__init__(metric=goal.metric, mode=goal.mode)
        self._base, self._space, self._goal, self._refuse = base, dict(space), goal, refuse
        self._study = _make_study(config, goal, len(past))
        self._interrupted = [record for record in past if record.state not in _STATES]
        self._next_number = max((record.number for record in past), default=-1) + 1
        for record in past:
            if record.state in _STATES:
                self.learn(record)

    def suggest(self, trial_id: str) -> dict[str, Any] | str:
        """Return the configuration of the next trial."""
        record = self._interrupted.pop(0) if self._interrupted else self._new()
        if record is None:
            return str(Searcher.FINISHED)
        return {TRIAL: {NUMBER: record.number, VALUES: record.values}}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Do nothing: what a trial came to is told by `learn`."""

    def learn(self, record: TrialRecord) -> None:
        """Take in what became of a trial."""
        if trial := as_optuna(record, self._space, self._goal):
            self._study.add_trial(trial)

    def save(self, checkpoint_path: str) -> None:
        """Save nothing: the trials' own folders hold all that the searcher knows."""

    def restore(self, checkpoint_path: str) -> None:
        """Restore nothing; see `save`."""

    def _new(self) -> TrialRecord | None:
        if self._next_number == 0:
            self._next_number = 1
            return TrialRecord(0, {field: value_of(self._base, field) for field in self._space})
        for _ in range(_MOST_REFUSED):
            record = TrialRecord(self._next_number, self._sample())
            self._next_number += 1
            try:
                with_values(self._base, record.values)
            except ValueError as error:
                record.state, record.reason, record.end_time = "refused", str(error), record.start_time
                self.learn(record)
                self._refuse(record)
            else:
                return record
        return None

    def _sample(self) -> dict[str, Any]:
        """Draw values; the study forgets them until the trial has an end, so that it learns what was really tried."""
        asked = self._study.ask(self._space)
        self._study.tell(asked, state=TrialState.FAIL)
        return with_dividing_heads(self._base, asked.params, self._space)


def check_space(base: Any, space: Mapping[str, BaseDistribution]) -> None:
    """Raise a UserError if the configuration refuses whatever the space gives."""
    study = _quiet_study(optuna.samplers.RandomSampler(seed=0), "minimize")
    reason = ""
    for _ in range(_MOST_REFUSED):
        try:
            with_values(base, with_dividing_heads(base, study.ask(dict(space)).params, space))
        except ValueError as error:
            reason = str(error)
        else:
            return
    raise UserError(f"--space gives nothing that the configuration accepts ({reason}): change its ranges")


def as_optuna(record: TrialRecord, space: Mapping[str, BaseDistribution], goal: Goal) -> FrozenTrial | None:
    """Return a trial in Optuna's form; None where its values lie outside the space, as the base's may."""
    state = _STATES.get(record.state, TrialState.RUNNING)
    best = record.best(goal)
    if state == TrialState.COMPLETE and best is None:
        state = TrialState.FAIL
    try:
        return create_trial(
            state=state,
            params=record.values,
            distributions=dict(space),
            value=best if state in (TrialState.COMPLETE, TrialState.PRUNED) else None,
            intermediate_values={
                int(epoch["epoch"]): epoch[goal.metric] for epoch in record.epochs if goal.metric in epoch
            },
            user_attrs={NUMBER: record.number},
        )
    except ValueError:
        return None


def _make_study(config: SearchConfig, goal: Goal, num_past: int) -> optuna.Study:
    seed = config.seed + num_past  # a search that goes on draws other values than it did before
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler: optuna.samplers.BaseSampler = (
            optuna.samplers.RandomSampler(seed=seed)
            if config.search == "random"
            else optuna.samplers.TPESampler(seed=seed, n_startup_trials=8, multivariate=True)
        )
    return _quiet_study(sampler, "minimize" if goal.mode == "min" else "maximize")


def _quiet_study(sampler: optuna.samplers.BaseSampler, direction: Literal["minimize", "maximize"]) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna.create_study(sampler=sampler, direction=direction)
