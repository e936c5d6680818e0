"""The plain formulation is ours: the same weights give the same logits."""

import pytest
import torch

from perceiver.convert import from_reference
from tests.benchmarks.plain import build_plain, plain_loss
from tests.benchmarks.workloads import find_workload


@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("name", ["mlm", "joint", "images"])
def test_plain_and_ours_have_the_same_logits(name: str, need_weights: bool) -> None:
    workload = find_workload(name, "tiny")
    plain = build_plain(workload.model, need_weights).eval()
    for parameter in plain.parameters():
        torch.nn.init.normal_(parameter, std=0.3)  # also what starts as zeros or ones
    ours = from_reference(plain.state_dict(), workload.model)
    if name == "images":
        arguments: tuple[torch.Tensor, ...] = (torch.randn(3, 28, 28, 1),)
    else:
        arguments = (torch.randint(3, 400, (3, 20)), torch.arange(20) >= torch.tensor([[20], [9], [1]]))
    with torch.no_grad():
        expected = plain(*arguments)
        logits = ours(*arguments, masking=False)[0] if name == "mlm" else ours(*arguments)
    assert expected.std() > 0.1
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)


def test_loss_is_the_mean_over_what_has_a_label() -> None:
    logits, labels = torch.randn(2, 3, 5), torch.tensor([[1, -100, -100], [-100, 4, 0]])
    log_probabilities = logits.log_softmax(-1)
    expected = -(log_probabilities[0, 0, 1] + log_probabilities[1, 1, 4] + log_probabilities[1, 2, 0]) / 3
    torch.testing.assert_close(plain_loss(logits, labels), expected)
