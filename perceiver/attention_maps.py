"""Where a model looks: which inputs each latent reads, and which latents each output reads.

    maps = attention_maps(model, images)
    maps.cross[0][0, 2]              # of the first image, head 3 of layer 1: (N latents, M pixels)
    input_attribution(model, images) # (B, M)

The weights are computed a second time, from what goes into the layers of an ordinary forward pass, by hooks that are
there for that pass alone. Letters in shapes are those of perceiver.attention.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from perceiver.attention import KeyValue, MultiHeadAttention, ProjectedInputs, SelfAttentionLayer, packed_linear
from perceiver.grid import GridKeyValue
from perceiver.inference import evaluating
from perceiver.model import PerceiverIO, PerceiverMLM

_OWN_SHARE = 0.5  # of what a layer gives on: the rest is what it read


class Application(NamedTuple):
    """An attention layer that was applied.

    Attributes:
        part: Whether latents read inputs, latents read latents, or outputs read latents.
        weights: Attention weights (B, H, Q, M), where M counts what is read.
    """

    part: Literal["cross", "self", "decoder"]
    weights: Tensor


class AttentionMaps(NamedTuple):
    """Who reads what in a forward pass, as in the figures of Perceiver (arXiv:2103.03206) and its appendix.

    The weights of a query add up to one, padding has none; those of a row that is padding throughout are zero.

    Attributes:
        cross: For each encoder layer that attends to the inputs, the share of each input in what each latent reads,
            (B, H, N, M).
        decoder: The share of each latent in what each output reads, (B, H, O, N).
        output: What the model predicted.
    """

    cross: tuple[Tensor, ...]
    decoder: Tensor
    output: Tensor


@contextmanager
def observed(model: PerceiverIO | PerceiverMLM) -> Iterator[list[Application]]:
    """Note the attention weights of all forward passes, in the order in which the layers are applied.

    What the model computes stays as it is. It must not be compiled, nor divided among workers.

    Args:
        model: A model, used within the context as usual.

    Yields:
        A list that grows with each layer applied.
    """
    applications: list[Application] = []
    encoder, decoder = model.encoder, model.decoder
    crosses = [layer for layer in (encoder.cross_attention_1, encoder.cross_attention_n) if layer is not None]
    handles = [layer.attention.register_forward_hook(_cross_hook("cross", applications)) for layer in crosses]
    handles.append(decoder.cross_attention.attention.register_forward_hook(_cross_hook("decoder", applications)))
    for module in encoder.modules():
        if isinstance(module, SelfAttentionLayer):
            handles.append(module.register_forward_hook(_self_hook(applications)))
    try:
        yield applications
    finally:
        for handle in handles:
            handle.remove()


def attention_maps(model: PerceiverIO | PerceiverMLM, x: Tensor, pad_mask: Tensor | None = None) -> AttentionMaps:
    """Return what each latent reads of the inputs, layer by layer, and each output of the latents.

    Args:
        model: A model, which is left in the mode (training or evaluation) it was in.
        x: Data (B, ...) that the model understands, on its device; of a masked language model, all tokens are decoded.
        pad_mask: Bool (B, M), True where an input is padding.
    """
    applications, output = _observe(model, x, pad_mask)
    weights: dict[str, list[Tensor]] = {"cross": [], "self": [], "decoder": []}
    for application in applications:
        weights[application.part].append(application.weights)
    (decoder,) = weights["decoder"]
    return AttentionMaps(tuple(weights["cross"]), decoder, output)


def input_attribution(model: PerceiverIO | PerceiverMLM, x: Tensor, pad_mask: Tensor | None = None) -> Tensor:
    """Return how much of each input is read on the way to the prediction: attention rollout (arXiv:2005.00928).

    The mean weights of the heads are multiplied from layer to layer. A layer's result is half what it read and half
    what it had before, the residual; a latent or an output query has nothing of the inputs before it first reads. For
    a masked language model it is the mean over the tokens that it decodes.

    Args:
        model: A model, which is left in the mode it was in.
        x: Data (B, ...) that the model understands, on its device.
        pad_mask: Bool (B, M), True where an input is padding.

    Returns:
        (B, M); rows add up to one. A row that is padding throughout is zero.
    """
    applications, _ = _observe(model, x, pad_mask)
    latents: Tensor | None = None  # (B, N, M): the share of each input in each latent
    for part, weights in applications:
        mean = weights.mean(dim=1)
        if part == "decoder":
            assert latents is not None
            return _mean_over_outputs(mean @ latents, pad_mask)
        if latents is None:
            latents = mean
        else:
            read = mean if part == "cross" else mean @ latents
            latents = (1 - _OWN_SHARE) * read + _OWN_SHARE * latents
    raise AssertionError("every model ends with its decoder")


def _mean_over_outputs(shares: Tensor, pad_mask: Tensor | None) -> Tensor:
    """Average (B, O, M) over the outputs, leaving out those that stand for padding where each input has an output."""
    if pad_mask is None or shares.shape[1] != pad_mask.shape[1]:
        return shares.mean(dim=1)
    is_real = (~pad_mask)[:, :, None].to(shares.dtype)
    return (shares * is_real).sum(dim=1) / is_real.sum(dim=1).clamp(min=1)


def _observe(model: PerceiverIO | PerceiverMLM, x: Tensor, pad_mask: Tensor | None) -> tuple[list[Application], Tensor]:
    with evaluating(model), observed(model) as applications:
        output = model(x, pad_mask, masking=False)[0] if isinstance(model, PerceiverMLM) else model(x, pad_mask)
    return applications, output


def _cross_hook(part: Literal["cross", "decoder"], applications: list[Application]) -> Callable[..., None]:
    def note(attention: nn.Module, arguments: tuple[Any, ...], output: Tensor) -> None:
        assert isinstance(attention, MultiHeadAttention)
        x_q, kv, *rest = arguments
        q = attention._split_heads(attention.q_proj(x_q))
        applications.append(Application(part, _weights(q, _keys(kv), rest[0] if rest else None)))

    return note


def _self_hook(applications: list[Application]) -> Callable[..., None]:
    def note(layer: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> None:
        assert isinstance(layer, SelfAttentionLayer)
        attention = layer.attention
        projected = packed_linear(layer.norm(arguments[0]), attention.q_proj, attention.k_proj)
        applications.append(Application("self", _weights(*map(attention._split_heads, projected))))

    return note


def _keys(kv: ProjectedInputs) -> Tensor:
    """Return the keys (B, H, M, channels per head), which those of images are not written for otherwise."""
    whole = kv.written_out() if isinstance(kv, GridKeyValue) else kv
    assert isinstance(whole, KeyValue)
    return whole.keys


def _weights(q: Tensor, k: Tensor, pad_mask: Tensor | None = None) -> Tensor:
    """Return the weights by which perceiver.attention.attend adds up values, (B, H, Q, M)."""
    scores = (q @ k.mT) * q.shape[-1] ** -0.5
    if pad_mask is None:
        return scores.softmax(dim=-1)
    is_padding = pad_mask[:, None, None]
    return scores.masked_fill(is_padding, -torch.inf).softmax(dim=-1).masked_fill(is_padding, 0.0)
