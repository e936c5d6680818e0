"""Each trick's absence is felt: its replacement is called, and the loss is the same."""

import copy
import weakref

import pytest
import torch

from perceiver.build import build_model
from tests.benchmarks.data import random_images, random_texts
from tests.benchmarks.implementation import Batch
from tests.benchmarks.ours import train_ours
from tests.benchmarks.tricks import TRICKS, Count, Trick, replaced
from tests.benchmarks.workloads import Workload, find_workload

CASES = [
    (name, workload)
    for name, trick in TRICKS.items()
    for workload in trick.workloads
    if workload != "classify" and trick.order is None and trick.padding is None
]


def make_batch(workload: Workload) -> Batch:
    if workload.name == "images":
        return random_images(workload)
    batch = random_texts(find_workload("mlm", "tiny"), padding=14)
    if workload.name != "mlm":
        batch["labels"] = torch.arange(len(batch["labels"])) % 2
    return batch


@pytest.mark.parametrize(("name", "workload_name"), CASES)
def test_a_trick_is_taken_away_and_the_loss_stays(name: str, workload_name: str) -> None:
    trick = TRICKS[name]
    assert trick.exists, f"there is no {trick.needs}: the trick would be left out of the measurement in silence"
    workload = find_workload(workload_name, "tiny")
    model, batch = build_model(workload.model), make_batch(workload)
    with_trick = train_ours(copy.deepcopy(model), workload, "cpu")
    expected = [with_trick.work(batch) for _ in range(2)]
    with trick.without() as count:
        without_trick = train_ours(model, workload, "cpu")
        losses = [without_trick.work(batch) for _ in range(2)]  # the second tells whether the gradients were the same
    assert count is not None
    assert count.calls
    torch.testing.assert_close(losses, expected, atol=1e-5, rtol=1e-5)


def test_a_function_is_replaced_wherever_it_is_used_and_put_back() -> None:
    from perceiver import build, inference, saving

    original, config = build.build_model, find_workload("mlm", "tiny").model
    with replaced("perceiver.build.build_model", lambda config: "plainer") as count:
        assert saving.build_model(config) == build.build_model(config) == "plainer"
        assert count.calls == 2
    assert saving.build_model is build.build_model is original
    assert inference is not None


def test_counting_calls_keeps_no_argument_alive() -> None:
    argument = torch.zeros(1)
    freed = weakref.ref(argument)
    count = Count()
    assert count.counted(len)(argument) == 1
    del argument
    assert freed() is None
    assert count.calls == 1


def test_a_trick_whose_function_is_gone_is_left_out() -> None:
    assert not Trick("", (), needs="perceiver.attention.no_such_function").exists
    assert TRICKS["masked positions"].exists
