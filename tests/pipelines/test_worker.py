"""A stage in this process: the same weights on every run, whenever it was interrupted, and a journal without gaps."""

from __future__ import annotations

import math
import signal
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from perceiver.model import PerceiverEncoder
from perceiver.saving import load_model
from perceiver.tasks.base import Task
from perceiver.tasks.image_classifier import ImageClassifier
from pipelines import callback, worker
from pipelines.callback import StageCallback
from pipelines.checkpoint import CheckpointStore
from pipelines.config import StageConfig
from pipelines.control import DivergedError, Link, StoppedError, Wish
from pipelines.stages import Prepared, StagePlan, prepare
from pipelines.storage import Storage
from pipelines.worker import run_stage
from tests.pipelines.tiny import (
    STEPS,
    STEPS_PER_EPOCH,
    TRAINER,
    events,
    image_config,
    journal,
    mlm_config,
    text_classifier_config,
    text_data,
    train,
    weights,
)


class Whole(NamedTuple):
    """A stage that ran without interruption."""

    config: StageConfig
    prepared: Prepared
    folder: Path
    result: dict[str, Any]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def run_whole(config: StageConfig, folder: Path) -> Whole:
    prepared = prepare(config)
    return Whole(config, prepared, folder, train(config, folder, prepared))


@pytest.fixture(scope="module")
def mlm(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    return run_whole(mlm_config(cache), tmp_path_factory.mktemp("mlm"))


@pytest.fixture(scope="module")
def image(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    return run_whole(image_config(cache), tmp_path_factory.mktemp("image"))


@pytest.fixture(params=["mlm", "image"])
def whole(request: pytest.FixtureRequest) -> Whole:
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def frozen(cache: Path, mlm: Whole, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    config = text_classifier_config(cache, init_from=str(mlm.folder / "model"), freeze_encoder=True)
    return run_whole(config, tmp_path_factory.mktemp("frozen"))


def test_two_runs_are_alike_bit_for_bit(whole: Whole, tmp_path: Path) -> None:
    result = train(whole.config, tmp_path, whole.prepared)
    assert weights(tmp_path) == weights(whole.folder)
    assert journal(tmp_path) == journal(whole.folder)
    assert {**result, "seconds": 0} == {**whole.result, "seconds": 0}


def test_dropout_and_seed_matter(image: Whole, tmp_path: Path) -> None:
    others = [replace(image.config, dropout=0.0), replace(image.config, trainer=replace(TRAINER, seed=1))]
    for number, config in enumerate(others):
        train(config, tmp_path / str(number))
        assert weights(tmp_path / str(number)) != weights(image.folder)


class Interrupted(Exception):  # noqa: N818
    """Stands for whatever ends a process."""


Patch = pytest.MonkeyPatch


def after_hook(name: str, step: int) -> Callable[[Patch], None]:
    """Interrupt after what the stage's callback does at a step."""

    def patch(monkeypatch: Patch) -> None:
        original = getattr(StageCallback, name)

        def hook(self: StageCallback, trainer: Any, *arguments: Any) -> None:
            original(self, trainer, *arguments)
            if trainer.global_step == step:
                raise Interrupted

        monkeypatch.setattr(StageCallback, name, hook)

    return patch


def instead_of(owner: Any, name: str) -> Callable[[Patch], None]:
    """Interrupt the first call of a function."""

    def interrupt(*_: Any) -> None:
        raise Interrupted

    return lambda monkeypatch: monkeypatch.setattr(owner, name, interrupt)


MOMENTS = {
    "before the first checkpoint": after_hook("on_train_batch_end", 2),
    "at a checkpoint within an epoch": after_hook("on_train_batch_end", 6),
    "beyond a checkpoint within an epoch": after_hook("on_train_batch_end", 7),
    "after an epoch's last step": after_hook("on_train_batch_end", STEPS_PER_EPOCH),
    "during validation": instead_of(Task, "validation_step"),
    "after validation": after_hook("on_validation_end", STEPS_PER_EPOCH),
    "after the last validation": after_hook("on_validation_end", STEPS),
    "after an epoch's checkpoint": after_hook("on_train_epoch_end", STEPS_PER_EPOCH),
    "after the last epoch": after_hook("on_train_epoch_end", STEPS),
    "when the test begins": after_hook("on_test_start", STEPS),
    "during the test": instead_of(Task, "test_step"),
    "after the test": after_hook("on_test_end", STEPS),
    "before the model is written": instead_of(worker, "_leave_model"),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_interrupted_run_ends_like_the_whole_one(
    whole: Whole, moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        MOMENTS[moment](patch)
        with pytest.raises(Interrupted):
            train(whole.config, tmp_path, whole.prepared)
    assert not (tmp_path / "model").exists()
    result = train(whole.config, tmp_path, whole.prepared)
    assert weights(tmp_path) == weights(whole.folder)
    assert journal(tmp_path) == journal(whole.folder)
    assert {**result, "seconds": 0} == {**whole.result, "seconds": 0}


def test_run_interrupted_again_and_again_ends_like_the_whole_one(
    image: Whole, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in (3, 4, 5, 7):
        with monkeypatch.context() as patch:
            after_hook("on_train_batch_end", step)(patch)
            with pytest.raises(Interrupted):
                train(image.config, tmp_path, image.prepared)
    train(image.config, tmp_path, image.prepared)
    assert weights(tmp_path) == weights(image.folder)
    assert journal(tmp_path) == journal(image.folder)


class Wishes:
    """Wishes for something from a step on, as a driver would that was asked to stop."""

    def __init__(self, wish: Wish, from_step: int) -> None:
        self.wish, self.from_step, self.asked = wish, from_step, 0

    def __call__(self) -> Wish:
        self.asked += 1
        return self.wish if self.asked >= self.from_step else Wish.NOTHING


def names_of_checkpoints(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def test_a_run_that_is_asked_to_stop_leaves_a_checkpoint_and_ends_like_the_whole_one(
    whole: Whole, tmp_path: Path
) -> None:
    plan = StagePlan("stage", whole.config, whole.prepared, Storage.from_uri(tmp_path))
    with pytest.raises(StoppedError):
        run_stage(plan, Link(lambda state: None, Wishes(Wish.STOP, 2)))
    assert names_of_checkpoints(tmp_path) == ["step-000000002"], "not a step is lost"
    assert [record["step"] for record in journal(tmp_path)] == [1, 2]
    train(whole.config, tmp_path, whole.prepared)
    assert weights(tmp_path) == weights(whole.folder)
    assert journal(tmp_path) == journal(whole.folder)
    assert [(event["event"], event["step"]) for event in events(tmp_path)] == [("resume", 2)]


def test_a_run_that_is_asked_to_stop_during_validation_does_so(image: Whole, tmp_path: Path) -> None:
    plan = StagePlan("stage", image.config, image.prepared, Storage.from_uri(tmp_path))
    with pytest.raises(StoppedError):
        run_stage(plan, Link(lambda state: None, Wishes(Wish.STOP, STEPS_PER_EPOCH + 1)))
    assert names_of_checkpoints(tmp_path) == ["step-000000003"]
    train(image.config, tmp_path, image.prepared)
    assert weights(tmp_path) == weights(image.folder)


@pytest.mark.parametrize(
    ("wish", "minutes", "expected"), [(Wish.CHECKPOINT, None, [1, 2]), (Wish.NOTHING, 1e-9, [2, 3])]
)
def test_checkpoints_are_taken_when_wished_or_due(
    image: Whole, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wish: Wish, minutes: float | None, expected: Any
) -> None:
    monkeypatch.setattr(callback, "_WISHED_SECONDS", 0.0)
    trainer = replace(image.config.trainer, checkpoint_every_n_steps=1000, checkpoint_every_n_minutes=minutes)
    config = replace(image.config, trainer=trainer)
    after_hook("on_train_batch_end", expected[-1])(monkeypatch)
    plan = StagePlan("stage", config, image.prepared, Storage.from_uri(tmp_path))
    with pytest.raises(Interrupted):
        run_stage(plan, Link(lambda state: None, Wishes(wish, 1)))
    assert names_of_checkpoints(tmp_path) == [f"step-{step:09d}" for step in expected]


def test_a_checkpoint_that_cannot_be_written_ends_training(
    image: Whole, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: CheckpointStore, *_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(CheckpointStore, "save", full)
    with pytest.raises(OSError, match="No space left"):
        train(image.config, tmp_path, image.prepared)


def test_gradient_norms_are_recorded_where_they_are_wanted(image: Whole, tmp_path: Path) -> None:
    config = replace(image.config, trainer=replace(image.config.trainer, log_gradient_norm=True))
    train(config, tmp_path, image.prepared)
    assert weights(tmp_path) == weights(image.folder)
    norms = [record["gradient_norm"] for record in journal(tmp_path) if record["kind"] == "train"]
    assert len(norms) == STEPS
    assert min(norms) > 0
    assert all("gradient_norm" not in record for record in journal(image.folder))


def test_recomputed_activations_leave_the_weights_as_they_are(image: Whole, tmp_path: Path) -> None:
    config = replace(image.config, trainer=replace(image.config.trainer, activation_checkpointing=True))
    train(config, tmp_path, image.prepared)
    assert weights(tmp_path) == weights(image.folder)


def test_a_worker_computes_no_more_samples_at_once_than_it_may(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    logits = ImageClassifier.logits
    monkeypatch.setattr(ImageClassifier, "logits", lambda *args: sizes.append(len(args[1]["labels"])) or logits(*args))
    config = image_config(cache, dropout=0.0, trainer=replace(TRAINER, micro_batch_size=5))
    train(config, tmp_path / "parts")
    assert max(sizes) == 5
    assert len(sizes) > 4 * STEPS
    train(replace(config, trainer=TRAINER), tmp_path / "whole")
    parts, whole = (
        [record["loss"] for record in journal(tmp_path / name) if record["kind"] == "train"]
        for name in ("parts", "whole")
    )
    assert parts == pytest.approx(whole, rel=1e-3)


def test_finished_stage_trains_no_step_more(image: Whole, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(image.config, tmp_path, image.prepared)
    instead_of(Task, "training_step")(monkeypatch)
    result = train(image.config, tmp_path, image.prepared)
    assert {**result, "seconds": 0} == {**image.result, "seconds": 0}
    assert result["seconds"] > 0
    assert journal(tmp_path) == journal(image.folder)


def test_what_a_dead_writer_left_is_cleared_away(image: Whole, tmp_path: Path) -> None:
    torn = tmp_path / "checkpoints" / f".step-000000003.{'a' * 32}.new"
    torn.mkdir(parents=True)
    (torn / "state.ckpt").write_text("half of it")
    train(image.config, tmp_path, image.prepared)
    assert [path.name for path in (tmp_path / "checkpoints").glob(".*")] == []


def of_kind(whole: Whole, kind: str) -> list[dict[str, Any]]:
    return [record for record in journal(whole.folder) if record["kind"] == kind]


def test_every_step_has_one_record(whole: Whole) -> None:
    records = of_kind(whole, "train")
    assert [record["step"] for record in records] == list(range(1, STEPS + 1))
    assert [record["epoch"] for record in records] == [0] * STEPS_PER_EPOCH + [1] * STEPS_PER_EPOCH
    assert all(math.isfinite(record["loss"]) for record in records)
    rates = [0.01 * (1 + math.cos(math.pi * step / STEPS)) / 2 for step in range(STEPS)]
    assert [record["learning_rate"] for record in records] == pytest.approx(rates)


def test_validation_and_test_count_every_sample_once(whole: Whole) -> None:
    config = whole.config
    limit = config.data.limit
    assert [(r["epoch"], r["step"], r["val_samples"]) for r in of_kind(whole, "validation")] == [
        (0, STEPS_PER_EPOCH, limit),
        (1, STEPS, limit),
    ]
    assert [(r["epoch"], r["step"], r["test_samples"]) for r in of_kind(whole, "test")] == [(1, STEPS, limit)]


def test_samples_are_filled_after_every_epoch(mlm: Whole) -> None:
    records = of_kind(mlm, "fills")
    assert [record["step"] for record in records] == [STEPS_PER_EPOCH, STEPS]
    (sample,) = records[0]["samples"]
    assert sample["text"] == "this [MASK] was [MASK]"
    assert [len(tokens) for tokens in sample["fills"]] == [2, 2]


def test_result_says_what_the_journal_says(whole: Whole) -> None:
    result = whole.result
    validations = of_kind(whole, "validation")
    best = min(validations, key=lambda record: record["val_loss"])
    assert (result["epochs"], result["steps"], result["best_epoch"]) == (2, STEPS, best["epoch"] + 1)
    assert result["val_loss"] == best["val_loss"]
    assert result["test_loss"] == of_kind(whole, "test")[0]["test_loss"]
    saved = load_model(whole.folder / "model")
    assert result["parameters"] == sum(p.numel() for p in saved.model.parameters())
    assert saved.config == whole.prepared.model


SCRIPT = {"loss": [0.5, 0.2, 0.2, 0.9], "accuracy": [0.1, 0.3, 0.6, 0.6]}


@pytest.mark.parametrize(("select_by", "best_epoch"), [("val_loss", 2), ("val_accuracy", 3)])
def test_model_has_the_weights_of_the_best_epoch(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, select_by: Any, best_epoch: int
) -> None:
    after_epoch: list[dict[str, Tensor]] = []
    report, save = Task._report, StageCallback.on_train_epoch_end

    def scripted(task: Task, prefix: str) -> None:
        if prefix == "test":
            report(task, prefix)
        else:
            task.log_dict({f"val_{name}": values[task.current_epoch] for name, values in SCRIPT.items()})

    def keep_weights(self: StageCallback, trainer: Any, task: Task) -> None:
        after_epoch.append({name: value.clone() for name, value in task.model.state_dict().items()})
        save(self, trainer, task)

    monkeypatch.setattr(Task, "_report", scripted)
    monkeypatch.setattr(StageCallback, "on_train_epoch_end", keep_weights)
    config = image_config(cache, trainer=replace(TRAINER, max_epochs=4, select_by=select_by))
    result = train(config, tmp_path)
    assert result["best_epoch"] == best_epoch
    assert result[select_by] == pytest.approx(SCRIPT[select_by.removeprefix("val_")][best_epoch - 1])
    saved = load_model(tmp_path / "model").model.state_dict()
    same = [all(torch.equal(epoch[name], saved[name]) for name in saved) for epoch in after_epoch]
    assert same == [number == best_epoch for number in (1, 2, 3, 4)]


@pytest.mark.parametrize("limit", [0.05, None])
def test_gradient_is_clipped(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: float | None) -> None:
    norms = []
    note = StageCallback.on_train_batch_end

    def note_norm(self: StageCallback, trainer: Any, task: Task, *arguments: Any) -> None:
        norms.append(torch.cat([p.grad.flatten() for p in task.parameters() if p.grad is not None]).norm().item())
        note(self, trainer, task, *arguments)

    monkeypatch.setattr(StageCallback, "on_train_batch_end", note_norm)
    train(image_config(cache, trainer=replace(TRAINER, max_epochs=1, gradient_clip_norm=limit)), tmp_path)
    assert len(norms) == STEPS_PER_EPOCH
    assert max(norms) == pytest.approx(0.05, rel=1e-3) if limit else max(norms) > 0.2


def test_divergence_ends_the_stage(image: Whole, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = Task.training_step
    monkeypatch.setattr(Task, "training_step", lambda *arguments: step(*arguments) * math.nan)
    with pytest.raises(
        DivergedError, match=r"^loss is nan in step 2 \(epoch 1\), whose samples are \d+, .* lower opti"
    ):
        train(image.config, tmp_path, image.prepared)
    (event,) = events(tmp_path)
    assert (event["event"], event["step"], event["loss"], len(event["sample_ids"])) == ("diverged", 2, "nan", 16)


def test_divergence_in_the_last_step_of_an_epoch_shows_in_the_validation(
    image: Whole, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoil(task: Task, *_: Any) -> None:
        if task.trainer.global_step == STEPS_PER_EPOCH:
            next(task.model.parameters()).data.fill_(math.nan)

    monkeypatch.setattr(Task, "on_validation_epoch_start", spoil)
    with pytest.raises(DivergedError, match=r"^val_loss is nan after epoch 1: training diverged, set a lower"):
        train(image.config, tmp_path, image.prepared)
    newest = CheckpointStore(Storage.from_uri(tmp_path / "checkpoints")).newest()
    assert newest is not None
    assert newest.step == 3, "the checkpoint before the damage is the one to go on from"


def test_what_is_reported_leads_up_to_the_last_step(image: Whole, tmp_path: Path) -> None:
    states: list[dict[str, Any]] = []
    plan = StagePlan("stage", image.config, image.prepared, Storage.from_uri(tmp_path))
    for _ in range(2):  # the second only tests
        run_stage(plan, Link(states.append))
        assert states.pop([list(state) for state in states].index(["parameters"]))["parameters"] > 1000
        assert {state["total_steps"] for state in states} == {STEPS}
        assert {state["max_epochs"] for state in states} == {2}
        assert (states[-1]["phase"], states[-1]["step"], states[-1]["epoch"]) == ("testing", STEPS, 2)
    steps = [state["step"] for state in states]
    assert steps == sorted(steps)


def count_texts_read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that grows by the number of texts whenever an encoder reads some."""
    counts: list[int] = []
    forward = PerceiverEncoder.forward

    def count(self: PerceiverEncoder, x: Any, *args: Any) -> Any:
        counts.append(len(x))
        return forward(self, x, *args)

    monkeypatch.setattr(PerceiverEncoder, "forward", count)
    return counts


def test_frozen_encoder_reads_each_text_once_with_the_same_result(
    frozen: Whole, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = count_texts_read(monkeypatch)
    in_every_epoch = replace(frozen.config, data=replace(frozen.config.data, kept_latents_gb=0.0))
    result = train(in_every_epoch, tmp_path / "every epoch")
    assert sum(counts) == 2 * (56 + 56) + 56  # training and validation in each epoch, and the test

    counts.clear()
    cache = tmp_path / "cache"
    cache.mkdir()
    config = replace(frozen.config, data=replace(frozen.config.data, cache_dir=str(cache)))
    train(config, tmp_path / "once")
    assert sum(counts) == 56 + 56 + 56
    assert weights(tmp_path / "once") == weights(frozen.folder)
    assert result.pop("device") == frozen.result["device"]
    varying = {"seconds", "device"}
    expected = {name: pytest.approx(value, rel=1e-5) for name, value in frozen.result.items() if name not in varying}
    assert {name: value for name, value in result.items() if name not in varying} == expected


def test_interrupted_frozen_stage_ends_like_the_whole_one(
    frozen: Whole, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        after_hook("on_train_batch_end", 6)(patch)
        with pytest.raises(Interrupted):
            train(frozen.config, tmp_path, frozen.prepared)
    counts = count_texts_read(monkeypatch)
    train(frozen.config, tmp_path, frozen.prepared)
    assert sum(counts) == 56  # the test's
    assert weights(tmp_path) == weights(frozen.folder)


def test_nothing_is_printed_and_nobody_is_warned(
    cache: Path, mlm: Whole, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    data = text_data(cache)
    config = text_classifier_config(cache, data=data, init_from=str(mlm.folder / "model"), freeze_encoder=True)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with monkeypatch.context() as patch:
            after_hook("on_train_batch_end", 7)(patch)
            with pytest.raises(Interrupted):
                train(config, tmp_path)
        train(config, tmp_path)
    assert [str(warning.message) for warning in caught] == []
    assert capfd.readouterr() == ("", "")


def test_ctrl_c_comes_through_and_the_next_is_heard(
    image: Whole, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    handler = signal.getsignal(signal.SIGINT)

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Task, "training_step", interrupt)
    with pytest.raises(KeyboardInterrupt):
        train(image.config, tmp_path, image.prepared)
    assert signal.getsignal(signal.SIGINT) == handler
