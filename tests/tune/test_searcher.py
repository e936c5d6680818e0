"""The searcher: the base first, only what the configuration accepts, and nothing forgotten when it goes on."""

from __future__ import annotations

from typing import Any

from optuna.distributions import CategoricalDistribution, FloatDistribution
from ray.tune.search import Searcher

from pipelines.config import MLMStageConfig
from tune.config import Goal, SearchConfig
from tune.record import TrialRecord
from tune.searcher import SpaceSearcher
from tune.space import with_values

GOAL = Goal("val_loss", "min")
SPACE = {
    "encoder.num_latent_channels": CategoricalDistribution([24, 32, 40]),
    "encoder.num_cross_attention_heads": CategoricalDistribution([1, 3, 4, 5, 8]),
    "optimizer.learning_rate": FloatDistribution(1e-4, 1e-2, log=True),
}


def make(past: list[TrialRecord] | None = None, space: Any = None, **settings: Any) -> tuple[SpaceSearcher, list[Any]]:
    refused: list[TrialRecord] = []
    config = SearchConfig(**settings)
    return SpaceSearcher(MLMStageConfig(), space or SPACE, config, GOAL, past or [], refused.append), refused


def suggest(searcher: SpaceSearcher, number: int) -> list[dict[str, Any]]:
    suggestions = [searcher.suggest(f"t{i}") for i in range(number)]
    return [suggestion["trial"] for suggestion in suggestions if isinstance(suggestion, dict)]


def record(number: int, loss: float, state: Any = "finished", **values: Any) -> TrialRecord:
    epochs = [{"epoch": 1, "step": 4, "val_loss": loss + 1}, {"epoch": 2, "step": 8, "val_loss": loss}]
    defaults = {
        "encoder.num_latent_channels": 32,
        "encoder.num_cross_attention_heads": 4,
        "optimizer.learning_rate": 1e-3,
    }
    return TrialRecord(number, {**defaults, **values}, state, epochs=epochs)


def test_the_first_trial_is_the_base_configuration() -> None:
    searcher, _ = make()
    first, second = suggest(searcher, 2)
    assert first == {
        "number": 0,
        "values": {
            "encoder.num_latent_channels": 64,
            "encoder.num_cross_attention_heads": 4,
            "optimizer.learning_rate": 1e-3,
        },
    }
    assert second["number"] == 1


def test_heads_that_do_not_divide_channels_are_never_suggested() -> None:
    for search in ("optuna", "random"):
        searcher, refused = make(search=search)
        suggestions = suggest(searcher, 40)
        for suggestion in suggestions[1:]:
            values = suggestion["values"]
            assert values["encoder.num_latent_channels"] % values["encoder.num_cross_attention_heads"] == 0
            with_values(MLMStageConfig(), values)
        assert not refused
        assert len({str(suggestion["values"]) for suggestion in suggestions}) == 40


def test_what_the_configuration_refuses_is_a_trial_with_a_reason_that_never_runs() -> None:
    space = {"encoder.num_cross_attention_heads": CategoricalDistribution([7]), **{}}
    space = {"encoder.num_latents": CategoricalDistribution([0, 8])}
    searcher, refused = make(space=space)
    suggestions = suggest(searcher, 10)
    assert {s["values"]["encoder.num_latents"] for s in suggestions[1:]} == {8}
    assert refused
    for trial in refused:
        assert (trial.state, trial.values) == ("refused", {"encoder.num_latents": 0})
        assert "num_latents is 0" in trial.reason
    numbers = [s["number"] for s in suggestions] + [trial.number for trial in refused]
    assert sorted(numbers) == list(range(len(numbers)))


def test_a_space_of_which_nothing_is_accepted_ends_the_search() -> None:
    searcher, refused = make(space={"encoder.num_latents": CategoricalDistribution([0])})
    suggest(searcher, 1)
    assert searcher.suggest("x") == Searcher.FINISHED
    assert refused


def test_a_search_that_goes_on_begins_with_what_was_interrupted_and_counts_on() -> None:
    past = [record(0, 3.0), record(1, 2.0, "killed"), record(2, 2.5, "stopped"), record(3, 9.0, "running")]
    searcher, _ = make(past)
    suggestions = suggest(searcher, 3)
    assert [s["number"] for s in suggestions] == [1, 3, 4]
    assert suggestions[0]["values"] == past[1].values


def test_the_search_learns_also_from_trials_of_an_earlier_start() -> None:
    past = [
        record(i, abs(i - 6) / 10, **{"optimizer.learning_rate": 1e-4 * 10 ** (i / 6)}) for i in range(12)
    ]  # the best are near 1e-3
    searcher, _ = make(past)
    rates = sorted(s["values"]["optimizer.learning_rate"] for s in suggest(searcher, 20))
    near = sum(3e-4 < rate < 3e-3 for rate in rates)
    assert near >= 15  # at random it would be half of them


def test_trials_outside_the_space_and_trials_that_failed_teach_nothing_wrong() -> None:
    searcher, _ = make()
    searcher.learn(record(0, 1.0, **{"encoder.num_latent_channels": 64}))
    searcher.learn(TrialRecord(1, record(1, 0).values, "failed"))
    assert len(suggest(searcher, 3)) == 3
