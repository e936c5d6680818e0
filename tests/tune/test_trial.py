"""A trial trains as the pipeline does, an epoch at a time; it stops at once, goes on, and takes over other weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from perceiver.config import DecoderConfig
from pipelines.checkpoint import STATE
from pipelines.config import (
    ClassifierTrainingConfig,
    FinetuneConfig,
    PretrainingConfig,
    ScalingConfig,
    SentimentConfig,
)
from pipelines.storage import Storage
from tests.pipelines.tiny import (
    ENCODER,
    STEPS_PER_EPOCH,
    TRAINER,
    image_config,
    journal,
    text_data,
    train,
    weights,
)
from tune.trial import Training, Trial, TrialPlan

RATE = "optimizer.learning_rate"


def make_plan(tmp_path: Path, **changes: Any) -> TrialPlan:
    base = image_config(tmp_path / "cache", **changes)
    return TrialPlan("image-classifier", base, Storage.from_uri(tmp_path / "search"), ScalingConfig(num_workers=0))


def stage(plan: TrialPlan, number: int) -> Path:
    return plan.trials.local_path / f"{number:04d}" / "image-classifier"


class Local(Trial):
    """A trial outside of Ray Tune."""

    def __init__(self, plan: TrialPlan, number: int, **values: Any) -> None:
        self.number = number
        self.config = {"trial": {"number": number, "values": values}}
        self.setup(self.config, plan)

    @property
    def trial_name(self) -> str:
        return f"{self.number:04d}"


def test_a_trial_trains_as_the_pipeline_does(tmp_path: Path) -> None:
    plan = make_plan(tmp_path)
    training = Training(plan.pipeline(3, {RATE: 0.02}))
    first, second = training.next_epoch(), training.next_epoch()
    assert (first["epoch"], first["step"]) == (1, STEPS_PER_EPOCH)
    assert (second["epoch"], second["step"]) == (2, 2 * STEPS_PER_EPOCH)
    assert second["done"]
    assert second["complete"]
    assert "done" not in first
    assert first["parameters"] == second["parameters"] > 1000
    assert second["seconds"] > first["seconds"] > 0

    alone = replace(plan.base, optimizer=replace(plan.base.optimizer, learning_rate=0.02))
    train(alone, tmp_path / "alone")
    assert weights(stage(plan, 3)) == weights(tmp_path / "alone")
    expected = [record for record in journal(tmp_path / "alone") if record["kind"] != "test"]
    assert journal(stage(plan, 3)) == expected  # a trial never sees the test split


def test_a_trial_trains_no_further_than_it_is_asked_to(tmp_path: Path) -> None:
    plan = make_plan(tmp_path)
    training = Training(plan.pipeline(0, {}))
    training.next_epoch()
    assert max(record["step"] for record in journal(stage(plan, 0))) == STEPS_PER_EPOCH
    training.stop()
    assert max(record["step"] for record in journal(stage(plan, 0))) == STEPS_PER_EPOCH
    assert not (stage(plan, 0) / "model").exists()


def test_a_trial_that_was_stopped_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    plan = make_plan(tmp_path)
    training = Training(plan.pipeline(0, {}))
    training.next_epoch()
    training.stop()
    result = Training(plan.pipeline(0, {})).next_epoch()
    assert (result["epoch"], result["done"]) == (2, True)
    train(plan.base, tmp_path / "alone")
    assert weights(stage(plan, 0)) == weights(tmp_path / "alone")


def test_a_trial_that_was_finished_says_so_again(tmp_path: Path) -> None:
    plan = make_plan(tmp_path)
    for expected in (2, 1):
        training = Training(plan.pipeline(0, {}))
        results = [training.next_epoch() for _ in range(expected)]
        assert results[-1]["done"]
        assert results[-1]["epoch"] == 2
        assert "val_accuracy" in results[-1]
        assert ("step" in results[-1]) == (expected == 2)


def test_a_trial_that_fails_says_why(tmp_path: Path) -> None:
    plan = make_plan(tmp_path)
    training = Training(plan.pipeline(3, {RATE: 1e30}))
    results = [training.next_epoch()]
    while not results[-1].get("done"):
        results.append(training.next_epoch())
    assert "training diverged" in results[-1]["failure"]
    training.stop()
    assert Training(plan.pipeline(4, {})).next_epoch()["epoch"] == 1  # the process is as good as before


def test_one_process_runs_one_trial_after_the_other(tmp_path: Path) -> None:
    plan = make_plan(tmp_path)
    trial = Local(plan, 0)
    assert trial.step()["epoch"] == 1
    trial.number, trial.config = 1, {"trial": {"number": 1, "values": {RATE: 0.02}}}
    assert trial.reset_config(trial.config)
    assert [trial.step()["epoch"] for _ in range(2)] == [1, 2]
    trial.cleanup()
    assert (stage(plan, 1) / "model").exists()
    assert not (stage(plan, 0) / "model").exists()


def test_exploiting_clones_weights_and_lets_the_new_values_hold(tmp_path: Path) -> None:
    plan = make_plan(tmp_path)
    donor, taker = Local(plan, 0, **{RATE: 0.02}), Local(plan, 1, **{RATE: 0.001})
    for trial in (donor, taker):
        trial.step()
    (tmp_path / "handed").mkdir()
    donor.save_checkpoint(str(tmp_path / "handed"))

    taker.config = {"trial": {"number": 0, "values": {RATE: 0.005}}}  # as Ray Tune sets it: with the donor's number
    taker.reset_config(taker.config)
    taker.load_checkpoint(str(tmp_path / "handed"))
    name = f"step-{STEPS_PER_EPOCH:09d}"
    states = [
        torch.load(stage(plan, number) / "checkpoints" / name / STATE, weights_only=True)["state_dict"]
        for number in (0, 1)
    ]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])

    assert taker.step()["epoch"] == 2
    rates = [r["learning_rate"] for r in journal(stage(plan, 1)) if r["kind"] == "train"]
    reference = Local(plan, 2, **{RATE: 0.005})
    reference.step()
    reference.step()
    expected = [r["learning_rate"] for r in journal(stage(plan, 2)) if r["kind"] == "train"][STEPS_PER_EPOCH:]
    assert rates == pytest.approx(expected)
    for trial in (donor, taker, reference):
        trial.cleanup()


def test_a_chain_is_judged_by_its_last_stage_and_keeps_the_stages_before(tmp_path: Path) -> None:
    short = replace(TRAINER, max_epochs=1)
    base = SentimentConfig(
        data=text_data(tmp_path / "cache"),
        encoder=ENCODER,
        mlm=PretrainingConfig(decoder=DecoderConfig(num_cross_attention_heads=2), trainer=short),
        frozen=ClassifierTrainingConfig(trainer=short),
        finetune=FinetuneConfig(trainer=TRAINER),
    )
    plan = TrialPlan("sentiment", base, Storage.from_uri(tmp_path / "search"), ScalingConfig(num_workers=0))
    training = Training(plan.pipeline(0, {"mlm.optimizer.learning_rate": 0.005}))
    first = training.next_epoch()
    assert (first["epoch"], first["step"]) == (1, STEPS_PER_EPOCH)
    training.stop()
    folder = plan.trials.local_path / "0000"
    before = (folder / "frozen" / "stage.json").stat().st_mtime_ns
    last = Training(plan.pipeline(0, {"mlm.optimizer.learning_rate": 0.005})).next_epoch()
    assert (last["epoch"], last["complete"]) == (2, True)
    assert (folder / "frozen" / "stage.json").stat().st_mtime_ns == before
    assert "0.005" in (folder / "mlm" / "config.yaml").read_text()


def test_what_a_trial_says_goes_to_its_folder(tmp_path: Path) -> None:
    plan = make_plan(tmp_path)
    training = Training(plan.pipeline(0, {}))
    training.message("hello")
    assert "hello" in (plan.trials.local_path / "0000" / "log.txt").read_text()
