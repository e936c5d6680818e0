"""Cross-entropy over a large vocabulary without ever holding all logits.

Written out, the logits of a batch's masked tokens, their log-softmax and the gradients of both are four arrays of
(tokens, vocabulary), some 100 MB each at the default sizes: most of the time goes into moving them. Here a chunk of
tokens goes all the way from logits to gradients while it lies in the cache, which takes a CPU half the time: 0.18 s
instead of 0.39 s of one core for 2,400 tokens, 64 channels and 10,003 classes.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

CHUNK_ELEMENTS = {"cpu": 2**18, "cuda": 2**27}
"""Logits of a chunk by kind of device: on a CPU they stay in the cache, a GPU wants few large kernels."""


def linear_cross_entropy(x: Tensor, linear: nn.Linear, labels: Tensor) -> Tensor:
    """Return the sum of the cross-entropies of a linear layer's outputs.

    The same as `F.cross_entropy(linear(x).float(), labels, reduction="sum")`, from T * E + chunk numbers of memory
    instead of 4 * T * V.

    Args:
        x: Inputs of the layer (T, E); T may be 0.
        linear: Layer from E channels to the logits of V classes.
        labels: Class of each input (T,), each in [0, V).
    """
    operands: list[Tensor] = [x, linear.weight, linear.bias]
    if torch.is_autocast_enabled(x.device.type):
        operands = [operand.to(torch.get_autocast_dtype(x.device.type)) for operand in operands]
    total: Tensor = _LinearCrossEntropy.apply(*operands, labels)
    return total


class _LinearCrossEntropy(torch.autograd.Function):
    """Computes the gradients together with the loss, since a chunk's logits are at hand only then."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, labels: Tensor) -> Tensor:
        wants_gradient = any(ctx.needs_input_grad)
        x_grad, weight_grad, bias_grad = torch.empty_like(x), torch.zeros_like(weight), torch.zeros_like(bias)
        total = x.new_zeros((), dtype=torch.float32 if x.dtype != torch.float64 else torch.float64)
        num_rows = max(1, CHUNK_ELEMENTS.get(x.device.type, CHUNK_ELEMENTS["cuda"]) // weight.shape[0])
        for start in range(0, len(x), num_rows):
            rows = slice(start, start + num_rows)
            log_probabilities = F.linear(x[rows], weight, bias).to(total.dtype).log_softmax(dim=-1)
            total -= log_probabilities.gather(1, labels[rows, None]).sum()
            if not wants_gradient:
                continue
            # The gradient of a row's logits: its softmax, less one at the label.
            grad = log_probabilities.exp_()
            grad.scatter_add_(1, labels[rows, None], grad.new_full((len(grad), 1), -1.0))
            grad = grad.to(x.dtype)
            torch.mm(grad, weight, out=x_grad[rows])
            weight_grad.addmm_(grad.T, x[rows])
            bias_grad.addmv_(grad.T, grad.new_ones(len(grad)))
        if wants_gradient:
            ctx.save_for_backward(x_grad, weight_grad, bias_grad)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (scale,) = grads
        x_grad, weight_grad, bias_grad = ctx.saved_tensors
        return x_grad * scale, weight_grad * scale, bias_grad * scale, None
