"""The best and the base configuration trained with the same budget, which is what a search has to show for itself."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from pipelines.cli import Command
from pipelines.run import run
from tune.record import TrialRecord
from tune.search import Search, in_last_stage
from tune.space import Values, with_values


def retrain(search: Search, best: TrialRecord) -> None:
    """Train and test the best and the base configuration, in runs of their own, and say which is better."""
    name = search.run.run_name
    values = {"best": best.values, "base": {}} if best.number else {"base": {}}
    first = next(iter(values))  # the best one, whose model alone may become a candidate
    reached = {which: _train(search, f"{name}-{which}", values[which], which == first) for which in values}
    metric = search.goal.metric
    if len(reached) == 1:
        print(f"The base configuration is the best: {metric} {reached['base'][metric]:.4f}")
        return
    ours, base = reached["best"][metric], reached["base"][metric]
    verdict = "better than" if search.goal.better(ours, base) else "no better than"
    print(f"With the same budget, trial {best.number} is {verdict} the base: {metric} {ours:.4f} against {base:.4f}")


def _train(search: Search, run_name: str, values: Values, registers: bool) -> dict[str, Any]:
    """Train a configuration and return the result of its last stage."""
    workers = search.config.workers_per_trial
    scaling = replace(search.run.scaling, num_workers=0 if workers == 1 else workers)
    epochs = search.config.retrain_epochs or search.max_epochs
    config = with_values(search.base, {**values, in_last_stage(search.base, "trainer.max_epochs"): epochs})
    tracking = search.run.tracking if registers else replace(search.run.tracking, register=None)
    own_run = replace(search.run, run_name=run_name, scaling=scaling, tracking=tracking)
    outcomes = run(Command(search.verb, config, own_run))
    return dict(outcomes[-1].result)
