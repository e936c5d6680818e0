"""What can be set about a search."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

Mode = Literal["min", "max"]
Scheduler = Literal["asha", "pbt", "none"]


class Goal(NamedTuple):
    """What a search optimizes."""

    metric: str
    """Validation metric."""
    mode: Mode
    """Whether a small or a large one is good."""

    def better(self, value: float, other: float) -> bool:
        """Return whether a value of the metric is better than another."""
        return value < other if self.mode == "min" else value > other


@dataclass(frozen=True)
class SearchConfig:
    """A search for the best values of some fields of a pipeline's configuration."""

    space: str | None = None
    """YAML file with the fields that are searched, one per line: `optimizer.learning_rate: {log-uniform: [1.0e-4,
    1.0e-2]}`; also choice, uniform, integer and log-integer (null: the space that comes with the task)."""
    num_samples: int = 20
    """Trials, the first of which has the values of the base configuration."""
    time_budget: float | None = None
    """Seconds after which no epoch is begun any more (null: no limit)."""
    scheduler: Scheduler = "asha"
    """What becomes of trials that fall behind: asha stops them early, pbt lets them go on with the weights of better
    ones and other learning rates and weight decays, none lets them be."""
    search: Literal["optuna", "random"] = "optuna"
    """How values are chosen: by Optuna's TPE, which learns from the trials so far, or at random."""
    metric: str | None = None
    """Validation metric that is optimized (null: val_loss for mlm, else val_accuracy)."""
    mode: Mode | None = None
    """Whether a small or a large metric is good (null: min for a loss, else max)."""
    grace_epochs: int = 1
    """Epochs that asha gives every trial before it may stop it, and pbt between two exchanges."""
    reduction_factor: int = 3
    """Of this many trials, asha lets one go on at each of its halts."""
    max_concurrent: int | None = None
    """Trials that train at the same time (null: as many as the cluster has room for)."""
    resources_per_trial: dict[str, float] = field(default_factory=dict)
    """What a worker of a trial needs, such as {"CPU": 1, "GPU": 0.5} (empty: one core, and one GPU if the cluster has
    any)."""
    workers_per_trial: int = 1
    """Training workers of a trial; one trains in the trial's own process, which is used again for the next trial."""
    keep_trials: int = 3
    """Best trials that keep their checkpoints and models."""
    retrain: bool = False
    """Whether the best and the base configuration are trained afterwards, and tested, as the pipeline alone does it."""
    retrain_epochs: int | None = None
    """Epochs of that training, in the last stage (null: those of a trial)."""
    resume: bool = False
    """Go on with a search that was stopped or that died: what is finished is not run again."""
    seed: int = 0
    """Seed of the values that are chosen."""

    def __post_init__(self) -> None:
        for name in ("num_samples", "grace_epochs", "workers_per_trial", "keep_trials"):
            _require(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
        _require(self.reduction_factor >= 2, "reduction_factor", self.reduction_factor, "2 or more")
        for name in ("max_concurrent", "retrain_epochs"):
            value = getattr(self, name)
            _require(value is None or value >= 1, name, value, "1 or more")
        _require(self.time_budget is None or self.time_budget > 0, "time_budget", self.time_budget, "above 0")
        for resource, amount in self.resources_per_trial.items():
            _require(amount >= 0, "resources_per_trial", f"{resource}: {amount}", "0 or more")
        if self.workers_per_trial > 1:
            for resource, amount in self.resources_per_trial.items():
                is_whole = resource == "CPU" and amount == int(amount) >= 1
                if not is_whole and (resource, amount) not in (("GPU", 0), ("GPU", 1)):
                    raise ValueError(
                        f"resources_per_trial is {resource}: {amount}, but must be whole CPUs and one GPU or none "
                        "where a trial has several workers"
                    )
        if self.scheduler == "pbt" and self.workers_per_trial > 1:
            raise ValueError(
                f"workers_per_trial is {self.workers_per_trial}, but must be 1 with scheduler pbt, whose trials hand "
                "their weights to each other"
            )


def _require(condition: bool, name: str, value: object, wanted: str) -> None:
    if not condition:
        raise ValueError(f"{name} is {value}, but must be {wanted}")
