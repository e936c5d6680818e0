"""Early stopping that remembers, and mutations that stay within the space."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from perceiver.errors import UserError
from tune.config import Goal, SearchConfig
from tune.record import TrialRecord
from tune.schedulers import make_scheduler, mutable_space, mutate

GOAL = Goal("val_accuracy", "max")
SPACE = {
    "optimizer.learning_rate": FloatDistribution(1e-3, 2e-3, log=True),
    "dropout": CategoricalDistribution([0.0, 0.1]),
}


def trial_with(accuracy: float, number: int) -> TrialRecord:
    return TrialRecord(number, {}, "finished", epochs=[{"epoch": 1, "step": 1, "val_accuracy": accuracy}])


def first_decision(past: list[TrialRecord], accuracy: float, number: int = 9) -> Any:
    scheduler = make_scheduler(SearchConfig(), GOAL, SPACE, 9, past)
    trial: Any = SimpleNamespace(trial_id="new", config={"trial": {"number": number}})
    scheduler.on_trial_add(None, trial)
    return scheduler.on_trial_result(None, trial, {"epoch": 1, "val_accuracy": accuracy})


def test_asha_compares_with_trials_of_an_earlier_start() -> None:
    past = [trial_with(accuracy, number) for number, accuracy in enumerate((0.5, 0.6, 0.7, 0.8))]
    assert first_decision(past, 0.55) == TrialScheduler.STOP
    assert first_decision(past, 0.75) == TrialScheduler.CONTINUE
    assert first_decision([], 0.55) == TrialScheduler.CONTINUE


def test_asha_does_not_stop_the_base_configuration() -> None:
    past = [trial_with(accuracy, number) for number, accuracy in enumerate((0.5, 0.6, 0.7, 0.8), start=1)]
    assert first_decision(past, 0.1, number=0) == TrialScheduler.CONTINUE


def test_no_scheduler_stops_nothing() -> None:
    scheduler = make_scheduler(SearchConfig(scheduler="none"), GOAL, SPACE, 9, [])
    assert type(scheduler) is FIFOScheduler


def test_mutations_stay_within_the_space() -> None:
    values = {"optimizer.learning_rate": 2e-3, "dropout": 0.1}
    trial = {"trial": {"number": 3, "values": values}}
    seen = [mutate(trial, SPACE)["trial"] for _ in range(200)]
    rates = {mutated["values"]["optimizer.learning_rate"] for mutated in seen}
    assert len(rates) > 10
    assert min(rates) >= 1e-3
    assert max(rates) <= 2e-3
    assert {mutated["values"]["dropout"] for mutated in seen} == {0.0, 0.1}
    assert {mutated["number"] for mutated in seen} == {3}
    assert values == {"optimizer.learning_rate": 2e-3, "dropout": 0.1}


def test_population_based_training_takes_what_can_change_of_the_default_space() -> None:
    space = {**SPACE, "encoder.num_latents": CategoricalDistribution([8])}
    assert mutable_space(space, is_default=True) == SPACE
    with pytest.raises(UserError, match="--space has encoder.num_latents, which --scheduler pbt can't change"):
        mutable_space(space, is_default=False)
    with pytest.raises(UserError, match="needs one of optimizer.learning_rate"):
        mutable_space({"encoder.num_latents": CategoricalDistribution([8])}, is_default=True)
