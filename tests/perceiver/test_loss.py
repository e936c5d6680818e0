from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from perceiver import loss
from perceiver.loss import linear_cross_entropy

NUM_CHANNELS, NUM_CLASSES = 6, 11


def gradients(x: Tensor, linear: nn.Linear, labels: Tensor, compute: Any) -> list[Tensor]:
    """Return a loss, and its gradient times 3 for the inputs, the weights and the bias."""
    x = x.clone().requires_grad_()
    linear.zero_grad()
    total = compute(x, linear, labels)
    (3 * total).backward()
    assert x.grad is not None
    return [total.detach(), x.grad, *(p.grad.clone() for p in linear.parameters() if p.grad is not None)]


def by_all_logits(x: Tensor, linear: nn.Linear, labels: Tensor) -> Tensor:
    return F.cross_entropy(linear(x).float(), labels, reduction="sum")


@pytest.mark.parametrize("num_rows", [1, 4, 100])
@pytest.mark.parametrize("rows_per_chunk", [1, 16, 40, 1000])
def test_loss_and_gradients_are_those_of_all_logits(
    monkeypatch: pytest.MonkeyPatch, num_rows: int, rows_per_chunk: int
) -> None:
    monkeypatch.setitem(loss.CHUNK_ELEMENTS, "cpu", rows_per_chunk * NUM_CLASSES)
    x, linear = 4 * torch.randn(num_rows, NUM_CHANNELS), nn.Linear(NUM_CHANNELS, NUM_CLASSES)
    labels = torch.randint(0, NUM_CLASSES, (num_rows,))
    expected = gradients(x, linear, labels, by_all_logits)
    torch.testing.assert_close(gradients(x, linear, labels, linear_cross_entropy), expected, rtol=1e-5, atol=1e-5)


def test_gradient_is_the_derivative() -> None:
    linear = nn.Linear(3, 4, dtype=torch.float64)
    x = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0, 3, 3, 1, 2])

    def total(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return loss._LinearCrossEntropy.apply(x, weight, bias, labels)

    assert torch.autograd.gradcheck(total, (x, linear.weight, linear.bias))


def test_nothing_to_predict_is_a_loss_and_gradients_of_zero() -> None:
    linear = nn.Linear(NUM_CHANNELS, NUM_CLASSES)
    nothing = torch.empty(0, NUM_CHANNELS), linear, torch.empty(0, dtype=torch.long)
    total, _, weight_grad, bias_grad = gradients(*nothing, linear_cross_entropy)
    assert total == 0
    assert not weight_grad.any()
    assert not bias_grad.any()


def test_logits_far_apart_do_not_overflow() -> None:
    linear = nn.Linear(1, 2, bias=True)
    with torch.no_grad():
        linear.weight.copy_(torch.tensor([[200.0], [-200.0]]))
        linear.bias.zero_()
    total, x_grad, *_ = gradients(torch.ones(1, 1), linear, torch.tensor([1]), linear_cross_entropy)
    assert total == pytest.approx(400.0)
    assert x_grad.item() == pytest.approx(3 * 400.0)


class LargestArray(TorchDispatchMode):
    """Notes the number of elements of the largest array that an operation makes."""

    largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.largest = max(self.largest, result.numel())
        return result


def test_no_more_logits_are_held_than_a_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    num_classes = 100
    monkeypatch.setitem(loss.CHUNK_ELEMENTS, "cpu", 40 * num_classes)
    linear, labels = nn.Linear(NUM_CHANNELS, num_classes), torch.zeros(70, dtype=torch.long)
    with LargestArray() as watch:
        linear_cross_entropy(torch.randn(70, NUM_CHANNELS), linear, labels).backward()
    assert watch.largest == 32 * num_classes


def test_chunks_are_multiples_of_rows_but_for_the_last() -> None:
    num_classes = loss.CHUNK_ELEMENTS["cpu"] // 40
    assert loss._chunks(70, num_classes, "cpu") == [slice(0, 32), slice(32, 64), slice(64, 96)]
    assert loss._chunks(20, 10**9, "cpu") == [slice(0, 16), slice(16, 32)]


def test_autocast_computes_logits_in_its_format() -> None:
    x, linear = torch.randn(8, NUM_CHANNELS), nn.Linear(NUM_CHANNELS, NUM_CLASSES)
    labels = torch.randint(0, NUM_CLASSES, (8,))
    with torch.autocast("cpu", torch.bfloat16):
        total, x_grad, weight_grad, bias_grad = gradients(x, linear, labels, linear_cross_entropy)
    assert total.dtype == x_grad.dtype == weight_grad.dtype == bias_grad.dtype == torch.float32
    torch.testing.assert_close(total, by_all_logits(x, linear, labels).detach(), rtol=0.02, atol=0.02)
    assert total != by_all_logits(x, linear, labels)
