"""The page and the pictures of a search."""

from __future__ import annotations

from pathlib import Path

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution

from pipelines.config import MLMStageConfig, RunConfig
from pipelines.storage import Storage
from tune.config import Goal, SearchConfig
from tune.record import State, TrialRecord, ranked
from tune.report import write_report
from tune.search import Search

SPACE = {
    "encoder.num_latents": CategoricalDistribution([16, 32]),
    "optimizer.weight_decay": FloatDistribution(1e-4, 1e-1, log=True),
}


@pytest.fixture
def search(tmp_path: Path) -> Search:
    storage = Storage.from_uri(tmp_path)
    goal = Goal("val_loss", "min")
    return Search("mlm", MLMStageConfig(), RunConfig("s<1>"), SearchConfig(), goal, SPACE, storage)


def record(number: int, losses: list[float], latents: int, decay: float, state: State = "finished") -> TrialRecord:
    epochs = [
        {"epoch": i + 1, "step": 4 * (i + 1), "val_loss": loss, "time": 10.0 * number + i}
        for i, loss in enumerate(losses)
    ]
    values = {"encoder.num_latents": latents, "optimizer.weight_decay": decay}
    return TrialRecord(
        number,
        values,
        state,
        epochs=epochs,
        seconds=5.0 + number,
        parameters=1000 * latents,
        start_time=10.0 * number,
    )


def test_page_and_pictures(search: Search) -> None:
    records = [record(0, [6.0, 5.5], 64, 0.0)]  # the base lies outside the space
    records += [
        record(i, [6.0 - i / 10, 5.0 + (i % 2) + i / 100], 16 + 16 * (i % 2), 10**-i, "finished") for i in range(1, 5)
    ]
    records += [record(5, [7.0], 16, 0.01, "stopped"), TrialRecord(6, records[1].values, "failed", "it broke")]
    write_report(search, records)
    names = {path.name for path in (search.folder.local_path / "pictures").iterdir()}
    assert names == {
        "learning-curves.png", "best-so-far.png", "parallel-coordinates.png", "importances.png", "front-parameters.png",
        "front-seconds.png",
    }  # fmt: skip
    page = (search.folder.local_path / "tune.html").read_text()
    assert "<h1>s&lt;1&gt;</h1>" in page
    assert "Trial 2 is the best of 6 with val_loss 5.0200, against 5.5000 of the base configuration (trial 0)." in page
    assert "encoder.num_latents (" in page
    assert "trial 0 (base)" in page
    assert 'src="http' not in page


def test_a_search_without_a_result_has_no_page(search: Search) -> None:
    write_report(search, [TrialRecord(0, {}, "failed", "it broke")])
    assert not (search.folder / "tune.html").exists()


def test_few_trials_tell_nothing_of_fields(search: Search) -> None:
    write_report(search, [record(0, [6.0], 16, 0.01)])
    page = (search.folder.local_path / "tune.html").read_text()
    assert "There are too few trials to tell which fields mattered." in page


def test_ranking() -> None:
    records = [record(0, [3.0, 2.0], 16, 0.1), record(1, [1.0, 4.0], 16, 0.1), record(2, [1.0], 16, 0.1)]
    records.append(record(3, [float("nan")], 16, 0.1))
    assert [r.number for r in ranked(records, Goal("val_loss", "min"))] == [1, 2, 0]
    assert [r.number for r in ranked(records, Goal("val_loss", "max"))] == [1, 0, 2]
