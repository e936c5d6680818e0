"""What the driver notes of trials."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipelines.journal import JournalWriter
from pipelines.storage import Storage
from tune.config import Goal, SearchConfig
from tune.record import TrialRecord, read_records, with_missed_epochs
from tune.watch import Watch


class FakeTrial(SimpleNamespace):
    """What Ray Tune's trials have of what the driver looks at."""

    def __str__(self) -> str:
        return f"{self.number:04d}"


def make_trial(number: int, donor: int | None = None, **values: Any) -> Any:
    config = {"trial": {"number": number if donor is None else donor, "values": values}}
    return FakeTrial(number=number, config=config, last_result={})


@pytest.fixture
def search(tmp_path: Path) -> Storage:
    return Storage.from_uri(tmp_path / "search")


def make_watch(search: Storage, **settings: Any) -> Watch:
    return Watch(search, Goal("val_loss", "min"), SearchConfig(**settings), [], [], gpus=0.5)


def tell(watch: Watch, trial: Any, epoch: int, loss: float, seconds: float = 1.0) -> None:
    result = {"epoch": epoch, "step": 4 * epoch, "val_loss": loss, "seconds": seconds, "parameters": 10}
    trial.last_result = result
    watch.on_trial_result(0, [], trial, result)


def test_records_are_on_disk_as_soon_as_something_happens(search: Storage) -> None:
    watch, trial = make_watch(search), make_trial(3, x=1)
    watch.on_trial_start(0, [], trial)
    assert [record.state for record in read_records(search)] == ["running"]
    tell(watch, trial, 1, 2.0, seconds=4.0)
    (record,) = read_records(search)
    assert (record.number, record.values, record.parameters) == (3, {"x": 1}, 10)
    assert (record.seconds, record.gpu_seconds) == (4.0, 2.0)
    assert [(epoch["epoch"], epoch["val_loss"]) for epoch in record.epochs] == [(1, 2.0)]


@pytest.mark.parametrize(
    ("last_result", "state"),
    [({"complete": True}, "finished"), ({"done": True}, "stopped"), ({"failure": "it broke", "done": True}, "failed")],
)
def test_how_a_trial_ended(search: Storage, last_result: dict[str, Any], state: str) -> None:
    watch, trial = make_watch(search), make_trial(0)
    watch.on_trial_start(0, [], trial)
    trial.last_result = last_result
    watch.on_trial_complete(0, [], trial)
    (record,) = read_records(search)
    assert record.state == state
    assert record.reason == last_result.get("failure", "")
    assert not watch.was_interrupted


def test_trials_that_are_left_were_killed(search: Storage) -> None:
    with make_watch(search) as watch:
        watch.on_trial_start(0, [], make_trial(0))
        assert watch.was_interrupted
    assert [(record.state, record.reason) for record in read_records(search)] == [("killed", "the search was stopped")]


def test_only_the_best_trials_keep_checkpoints_and_models(search: Storage) -> None:
    watch = make_watch(search, keep_trials=2)
    for number, loss in enumerate((3.0, 1.0, 2.0, 4.0)):
        stage = search.local_path / "trials" / f"{number:04d}" / "mlm"
        for part in ("checkpoints", "model"):
            (stage / part).mkdir(parents=True)
        (stage / "metrics.jsonl").touch()
        trial = make_trial(number)
        watch.on_trial_start(0, [], trial)
        tell(watch, trial, 1, loss)
        trial.last_result = {"complete": True}
        watch.on_trial_complete(0, [], trial)
    stages = [search.local_path / "trials" / f"{number:04d}" / "mlm" for number in range(4)]
    assert [(stage / "model").exists() for stage in stages] == [False, True, True, False]
    assert [(stage / "checkpoints").exists() for stage in stages] == [False, True, True, False]
    assert all((stage / "metrics.jsonl").exists() for stage in stages)


def test_taking_over_weights_is_noted(search: Storage) -> None:
    watch = make_watch(search)
    watch.on_trial_start(0, [], make_trial(1, rate=0.1))
    tell(watch, make_trial(1, rate=0.1), 1, 2.0)
    tell(watch, make_trial(1, donor=0, rate=0.2), 2, 1.0)
    (record,) = read_records(search)
    assert record.values == {"rate": 0.2}
    assert record.exploited == {"2": 0}


def test_epochs_that_the_driver_missed_are_read_from_the_journal(tmp_path: Path) -> None:
    stage = Storage.from_uri(tmp_path / "mlm")
    journal = JournalWriter(stage)
    for epoch in range(3):
        journal.write({"kind": "train", "epoch": epoch, "step": 4 * epoch + 4, "loss": 1.0})
        journal.write({"kind": "validation", "epoch": epoch, "step": 4 * epoch + 4, "val_loss": 3.0 - epoch})
    journal.close()
    record = with_missed_epochs(TrialRecord(0, {}, epochs=[{"epoch": 1, "step": 4, "val_loss": 3.0}]), stage)
    assert [(epoch["epoch"], epoch["val_loss"]) for epoch in record.epochs] == [(1, 3.0), (2, 2.0), (3, 1.0)]
