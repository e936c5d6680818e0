"""Cross-entropy over a large vocabulary without ever holding all logits.

Written out, the logits of a batch's masked tokens, their log-softmax and the gradients of both are four arrays of
(tokens, vocabulary), some 100 MB each at the default sizes: most of the time goes into moving them. Here a chunk of
tokens goes all the way from logits to gradients while it lies in the cache, which takes a CPU less than half the time
for 2,500 tokens, 64 channels and 10,003 classes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

CHUNK_ELEMENTS = {"cpu": 2**19, "cuda": 2**27}
"""Logits of a chunk by kind of device: on a CPU they stay in the cache, a GPU wants few large kernels."""
_ROWS = 16
"""Tokens of a chunk are a multiple of this, which is what matrix products are cut into."""


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
        # On a CPU weights of the shape (E, V) make the logits 1.06 times as fast; with gradients of the shape (E, T) as
        # well, the inputs' gradient is 1.3 times as fast.
        weight_t, x_grad_t = weight.T.contiguous(), torch.empty_like(x.T, memory_format=torch.contiguous_format)
        weight_grad, bias_grad = torch.zeros_like(weight), torch.zeros_like(bias)
        losses = x.new_empty(len(x), dtype=torch.float32 if x.dtype != torch.float64 else torch.float64)
        for rows in _chunks(len(x), weight.shape[0], x.device.type):
            logits = torch.addmm(bias, x[rows], weight_t).to(losses.dtype)
            targets = labels[rows, None]
            losses[rows] = logits.amax(dim=-1) - logits.gather(1, targets).squeeze(1)
            probabilities = logits.softmax(dim=-1)
            # The largest probability is at least 1 / V, so that its logarithm loses nothing. With it the logarithm of
            # all exponentials' sum is known, without raising any of them a second time.
            losses[rows] -= probabilities.amax(dim=-1).log()
            if not wants_gradient:
                continue
            # The gradient of a row's logits: its softmax, less one at the label.
            grad = probabilities.scatter_add_(1, targets, losses.new_full((len(targets), 1), -1.0)).to(x.dtype)
            x_grad_t[:, rows] = weight_t @ grad.T
            weight_grad.addmm_(grad.T, x[rows])
            bias_grad.addmv_(grad.T, grad.new_ones(len(grad)))
        if wants_gradient:
            ctx.save_for_backward(x_grad_t.T, weight_grad, bias_grad)
        return losses.sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (scale,) = grads
        x_grad, weight_grad, bias_grad = ctx.saved_tensors
        return x_grad * scale, weight_grad * scale, bias_grad * scale, None


def _chunks(num_inputs: int, num_classes: int, device: str) -> list[slice]:
    elements = CHUNK_ELEMENTS.get(device, CHUNK_ELEMENTS["cuda"])
    size = max(1, elements // num_classes // _ROWS) * _ROWS
    return [slice(start, start + size) for start in range(0, num_inputs, size)]
