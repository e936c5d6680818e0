"""Steps are read late on a GPU and at once on a CPU, and the first number that makes no sense ends training."""

from __future__ import annotations

import math

import pytest
import torch

from perceiver.tasks.base import NOT_COMPUTED
from pipelines.control import DivergedError, Wish
from pipelines.steps import StepReader


def add(
    reader: StepReader, step: int, loss: float, signals: float = 0.0, norm: float = NOT_COMPUTED, tokens: float = 0.0
) -> Wish:
    record = {"kind": "train", "epoch": 1, "step": step}
    return reader.add(record, torch.tensor([loss, signals, norm, tokens]), torch.tensor([step, -1, 100 + step]))


def test_records_have_the_loss_and_the_norm_that_was_computed() -> None:
    reader = StepReader()
    add(reader, 1, 0.5)
    add(reader, 2, 0.25, norm=3.0)
    assert reader.take() == [
        {"kind": "train", "epoch": 1, "step": 1, "loss": 0.5},
        {"kind": "train", "epoch": 1, "step": 2, "loss": 0.25, "gradient_norm": 3.0},
    ]
    assert reader.take() == []


def test_tokens_are_those_of_the_steps_that_were_taken() -> None:
    reader = StepReader()
    for step, tokens in enumerate((100.0, 20.0)):
        add(reader, step, 0.5, tokens=tokens)
    reader.take()
    assert reader.num_tokens == 120
    add(reader, 3, 0.5, tokens=7.0)
    reader.take()
    assert reader.num_tokens == 7


def test_what_rank_0_wished_is_returned() -> None:
    reader = StepReader()
    assert add(reader, 1, 0.5) == Wish.NOTHING
    assert add(reader, 2, 0.5, signals=1.0) == Wish.CHECKPOINT
    assert add(reader, 3, 0.5, signals=2.0) == Wish.STOP


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_no_number_names_step_and_samples(value: float) -> None:
    reader = StepReader()
    with pytest.raises(DivergedError, match=rf"loss is {value} in step 7 \(epoch 2\), whose samples are 7, 107: ") as e:
        add(reader, 7, value)
    assert e.value.facts == {"step": 7, "epoch": 1, "loss": pytest.approx(value, nan_ok=True), "sample_ids": [7, 107]}
    assert len(reader.take()) == 1, "the step is in the journal"


def test_an_infinite_gradient_ends_training_unless_float16_is_meant_to_overflow() -> None:
    with pytest.raises(DivergedError, match="gradient_norm is inf in step 3"):
        add(StepReader(), 3, 0.5, norm=math.inf)
    assert add(StepReader(scales_gradients=True), 3, 0.5, norm=math.inf) == Wish.NOTHING


@pytest.mark.gpu
def test_on_a_gpu_a_step_is_read_when_the_next_one_ends() -> None:
    reader = StepReader()
    numbers = torch.tensor([math.nan, 0.0, NOT_COMPUTED], device="cuda")
    reader.add({"kind": "train", "epoch": 0, "step": 1}, numbers, torch.tensor([4]))
    with pytest.raises(DivergedError, match="in step 1"):
        reader.add({"kind": "train", "epoch": 0, "step": 2}, torch.zeros(3, device="cuda"), torch.tensor([5]))
