"""What becomes of trials while they train: stopped early (ASHA), or sent on with a better one's weights (PBT)."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any, cast

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from ray.tune.experiment import Trial
from ray.tune.result import DONE
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, PopulationBasedTraining, TrialScheduler

from perceiver.errors import UserError
from tune.config import Goal, SearchConfig
from tune.record import TrialRecord
from tune.searcher import NUMBER, TRIAL, VALUES
from tune.trial import EPOCH

MUTABLE = ("optimizer.learning_rate", "optimizer.weight_decay", "dropout")
"""Fields that can change in the middle of a training."""
_FACTORS = (0.8, 1.25)
_RESAMPLED = 0.25


def make_scheduler(
    config: SearchConfig,
    goal: Goal,
    space: Mapping[str, BaseDistribution],
    max_epochs: int,
    past: Sequence[TrialRecord],
) -> TrialScheduler:
    """Return the scheduler that the search asks for.

    Args:
        config: The search.
        goal: Metric that is optimized.
        space: Fields that are searched.
        max_epochs: Epochs of a trial.
        past: Trials of an earlier start, whose results ASHA is told again.
    """
    if config.scheduler == "none":
        return FIFOScheduler()
    if config.scheduler == "asha":
        return _asha(config, goal, max_epochs, past)
    return PopulationBasedTraining(
        time_attr=EPOCH,
        metric=goal.metric,
        mode=goal.mode,
        perturbation_interval=config.grace_epochs,
        custom_explore_fn=lambda trial: mutate(trial, space),
        log_config=False,
        require_attrs=False,  # a trial that failed reports no metric
    )


def _asha(config: SearchConfig, goal: Goal, max_epochs: int, past: Sequence[TrialRecord]) -> AsyncHyperBandScheduler:
    scheduler = _AshaButForTheBase(
        time_attr=EPOCH,
        metric=goal.metric,
        mode=goal.mode,
        max_t=max(max_epochs, config.grace_epochs) + 1,  # the last epoch is the trial's end anyway
        grace_period=config.grace_epochs,
        reduction_factor=config.reduction_factor,
    )
    for record in past:
        trial = cast(Trial, SimpleNamespace(trial_id=f"earlier-{record.name}", config={}))
        scheduler.on_trial_add(None, trial)
        for epoch in record.epochs:
            scheduler.on_trial_result(None, trial, epoch)
    return scheduler


class _AshaButForTheBase(AsyncHyperBandScheduler):
    """Stops trials early, but not the base configuration, with which all are compared in the end."""

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """See ray.tune.schedulers.TrialScheduler."""
        decision = super().on_trial_result(tune_controller, trial, result)
        is_base = trial.config.get(TRIAL, {}).get(NUMBER) == 0
        return str(TrialScheduler.CONTINUE) if is_base and not result.get(DONE) else str(decision)


def mutable_space(space: Mapping[str, BaseDistribution], is_default: bool) -> dict[str, BaseDistribution]:
    """Return the fields of a space that population-based training can change.

    Raises:
        UserError: If the user's space has others, or none of them.
    """
    mutable = {field: distribution for field, distribution in space.items() if field in MUTABLE}
    others = [field for field in space if field not in mutable]
    if others and not is_default:
        raise UserError(
            f"--space has {others[0]}, which --scheduler pbt can't change in the middle of a training: leave it out "
            f"(pbt changes {', '.join(MUTABLE)}), or use --scheduler asha"
        )
    if not mutable:
        raise UserError(f"--scheduler pbt needs one of {', '.join(MUTABLE)} in the space")
    return mutable


def mutate(config: dict[str, Any], space: Mapping[str, BaseDistribution]) -> dict[str, Any]:
    """Return a trial's configuration with each value moved a little, or drawn anew, within the space."""
    before = config[TRIAL][VALUES]
    values = {field: _mutated(before[field], distribution) for field, distribution in space.items()}
    return {**config, TRIAL: {**config[TRIAL], VALUES: {**before, **values}}}


def _mutated(value: Any, distribution: BaseDistribution) -> Any:
    if isinstance(distribution, CategoricalDistribution):
        return random.choice(distribution.choices) if random.random() < _RESAMPLED else value
    assert isinstance(distribution, FloatDistribution), "what can be mutated is a float"
    low, high = distribution.low, distribution.high
    if random.random() >= _RESAMPLED:
        return min(max(value * random.choice(_FACTORS), low), high)
    if distribution.log:
        return math.exp(random.uniform(math.log(low), math.log(high)))
    return random.uniform(low, high)
