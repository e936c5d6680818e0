"""Attention and the layers made of it.

Letters in the shapes of this package:
    B batch, M inputs, C input channels, N latents, D latent channels, O outputs, K selected outputs,
    E query channels (of the decoder), H heads, Q queries and X query channels (of any attention layer).

`pad_mask` is bool (B, M), True where the input is padding.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

from perceiver.config import check_heads


class KeyValue(NamedTuple):
    """Inputs projected to keys and values, split into heads."""

    keys: Tensor
    """(B, H, M, query and key channels per head)."""
    values: Tensor
    """(B, H, M, value channels per head)."""

    def attend(self, q: Tensor, pad_mask: Tensor | None = None, dropout_p: float = 0.0) -> Tensor:
        """Let queries (B or 1, H, Q, channels per head) attend to the inputs; see perceiver.attention.attend."""
        return attend(q.expand(self.keys.shape[0], -1, -1, -1), self.keys, self.values, pad_mask, dropout_p)


class ProjectedInputs(Protocol):
    """Inputs ready to be attended to, any number of times, in whatever form."""

    def attend(self, q: Tensor, pad_mask: Tensor | None = None, dropout_p: float = 0.0) -> Tensor:
        """Let queries (B or 1, H, Q, channels per head) attend; returns (B, H, Q, value channels per head)."""


def packed_linear(x: Tensor, *layers: nn.Linear) -> tuple[Tensor, ...]:
    """Apply linear layers to the same input (..., C) by one product instead of one each.

    Their weights stay apart, so that a layer's initial values, its name in checkpoints and its weight decay do not
    depend on what is computed together. It is meant for GPUs, where small products wait for each other to start.
    """
    weight = torch.cat([layer.weight for layer in layers])
    bias = torch.cat([layer.bias for layer in layers])
    return F.linear(x, weight, bias).split([layer.out_features for layer in layers], dim=-1)


def attend(q: Tensor, k: Tensor, v: Tensor, pad_mask: Tensor | None = None, dropout_p: float = 0.0) -> Tensor:
    """Multi-head scaled dot-product attention.

    Args:
        q: Queries (B, H, Q, channels per head).
        k: Keys (B, H, M, channels per head).
        v: Values (B, H, M, value channels per head).
        pad_mask: Bool (B, M), True where nothing is to be attended to; none: attend to everything.
        dropout_p: Probability with which an attention weight is dropped.

    Returns:
        (B, H, Q, value channels per head); zeros for a row of the batch that is padding throughout.
    """
    if pad_mask is None:
        return _fused_attention(q, k, v, None, dropout_p)

    # The softmax of a row with nothing to attend to is 0 / 0. What comes of it is up to the kernel; where it is NaN, so
    # are the gradients, even of a result that is thrown away. So such a row attends to everything, and then is zeroed.
    only_padding = rearrange(pad_mask.all(dim=1), "b -> b 1 1 1")
    may_attend = rearrange(~pad_mask, "b m -> b 1 1 m") | only_padding
    result = _fused_attention(q, k, v, may_attend, dropout_p)
    return result.masked_fill(only_padding, 0.0)


def _fused_attention(q: Tensor, k: Tensor, v: Tensor, may_attend: Tensor | None, dropout_p: float) -> Tensor:
    """Call torch's kernel; on a GPU, never the one that writes all attention weights to memory."""
    with _fused_kernels_only() if needs_fused_kernel(q, v) else nullcontext():
        return F.scaled_dot_product_attention(q, k, v, attn_mask=may_attend, dropout_p=dropout_p)


def needs_fused_kernel(q: Tensor, v: Tensor) -> bool:
    """Tell whether a GPU has a flash or a memory-efficient kernel for queries and values of this kind.

    Both want channels per head that are a multiple of 8, and neither computes in float64. Where they apply, torch is
    not allowed to use another one, so that a slow kernel can't creep in unseen.
    """
    has_channels = q.shape[-1] % 8 == 0 and v.shape[-1] % 8 == 0
    return q.device.type == "cuda" and q.dtype != torch.float64 and has_channels


def _fused_kernels_only() -> AbstractContextManager[None]:
    return sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION])


class MultiHeadAttention(nn.Module):
    """Multi-head attention whose keys and values can be computed once and used many times.

    Args:
        num_q_input_channels: Channels X of what is projected to queries.
        num_kv_input_channels: Channels C of what is projected to keys and values.
        num_heads: Heads H.
        num_qk_channels: Channels of queries and keys, all heads together (none: X).
        num_v_channels: Channels of values, all heads together (none: as queries and keys).
        num_output_channels: Channels of the result (none: X).
        dropout: Probability with which an attention weight is dropped in training.

    Raises:
        ValueError: If the heads do not divide the channels evenly.
    """

    def __init__(
        self,
        num_q_input_channels: int,
        num_kv_input_channels: int,
        num_heads: int,
        num_qk_channels: int | None = None,
        num_v_channels: int | None = None,
        num_output_channels: int | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        num_qk_channels = num_qk_channels or num_q_input_channels
        num_v_channels = num_v_channels or num_qk_channels
        check_heads("num_heads", num_heads, "num_qk_channels", num_qk_channels)
        check_heads("num_heads", num_heads, "num_v_channels", num_v_channels)
        self.num_heads = num_heads
        self.dropout = dropout
        self.q_proj = nn.Linear(num_q_input_channels, num_qk_channels)
        self.k_proj = nn.Linear(num_kv_input_channels, num_qk_channels)
        self.v_proj = nn.Linear(num_kv_input_channels, num_v_channels)
        self.out_proj = nn.Linear(num_v_channels, num_output_channels or num_q_input_channels)
        self.init_weights()

    def init_weights(self) -> None:
        """Give the projections the initial values of torch's nn.MultiheadAttention."""
        projections = (self.q_proj, self.k_proj, self.v_proj)
        # Where all channels are equal, torch draws the three (E, E) matrices as one of (3E, E), which makes
        # Xavier's bound sqrt(6 / 4E) instead of sqrt(6 / 2E).
        stacked = len({channels for linear in projections for channels in linear.weight.shape}) == 1
        for linear in projections:
            nn.init.xavier_uniform_(linear.weight, gain=math.sqrt(0.5) if stacked else 1.0)
            nn.init.zeros_(linear.bias)
        self.out_proj.reset_parameters()
        nn.init.zeros_(self.out_proj.bias)

    def project_kv(self, x_kv: Tensor) -> KeyValue:
        """Project inputs (B, M, C) to keys and values."""
        return KeyValue(*map(self._split_heads, packed_linear(x_kv, self.k_proj, self.v_proj)))

    def attend_to_itself(self, x: Tensor) -> Tensor:
        """Let inputs (B, N, X), which are the queries too, attend to each other: (B, N, output channels)."""
        q, k, v = map(self._split_heads, packed_linear(x, self.q_proj, self.k_proj, self.v_proj))
        return self._attend(q, KeyValue(k, v))

    def forward(self, x_q: Tensor, kv: ProjectedInputs, pad_mask: Tensor | None = None) -> Tensor:
        """Let queries attend to projected inputs.

        Args:
            x_q: What is projected to queries (B, Q, X), or (1, Q, X) where all rows of the batch have the same.
            kv: Inputs (B, M, C), projected, as project_kv does.
            pad_mask: Bool (B, M), True where an input is padding.

        Returns:
            (B, Q, output channels).
        """
        return self._attend(self._split_heads(self.q_proj(x_q)), kv, pad_mask)

    def _attend(self, q: Tensor, kv: ProjectedInputs, pad_mask: Tensor | None = None) -> Tensor:
        result = kv.attend(q, pad_mask, self.dropout if self.training else 0.0)
        output: Tensor = self.out_proj(rearrange(result, "b h q c -> b q (h c)"))
        return output

    def _split_heads(self, x: Tensor) -> Tensor:
        return rearrange(x, "b n (h c) -> b h n c", h=self.num_heads)


class MLP(nn.Sequential):
    """Layer norm, then two linear layers with a GELU between them; the same at each position.

    Args:
        num_channels: Channels of input and output.
        widening_factor: Hidden channels as a multiple of num_channels.
    """

    def __init__(self, num_channels: int, widening_factor: int = 1) -> None:
        super().__init__(
            nn.LayerNorm(num_channels),
            nn.Linear(num_channels, widening_factor * num_channels),
            nn.GELU(),
            nn.Linear(widening_factor * num_channels, num_channels),
        )


class AttentionLayer(nn.Module):
    """What the layers share: activations are kept for the backward pass, or computed again in it.

    Attributes:
        recomputes: Whether they are computed again (activation checkpointing, arXiv:1604.06174): it saves memory and
            costs a second forward pass.
    """

    recomputes: bool = False

    def _compute(self, function: Callable[..., Tensor], *arguments: Any) -> Tensor:
        if not (self.recomputes and self.training):
            return function(*arguments)
        result: Tensor = checkpoint(function, *arguments, use_reentrant=False)
        return result


def recompute_activations(model: nn.Module) -> None:
    """Let all attention layers of a model compute their activations again in the backward pass, in place."""
    for module in model.modules():
        if isinstance(module, AttentionLayer):
            module.recomputes = True


class CrossAttentionLayer(AttentionLayer):
    """Queries attend to inputs, then an MLP: Perceiver IO (arXiv:2107.14795), sec. 3.1 and appendix E.

    Args:
        num_q_channels: Channels X of queries and result.
        num_kv_channels: Channels C of the inputs.
        num_heads: Heads H.
        num_qk_channels: Channels of projected queries and keys (none: X).
        num_v_channels: Channels of projected values (none: as queries and keys).
        widening_factor: Hidden channels of the MLP as a multiple of X.
        query_residual: Whether the queries are added to what their attention returns.
        dropout: Dropout probability of attention weights and of both branches.
    """

    def __init__(
        self,
        num_q_channels: int,
        num_kv_channels: int,
        num_heads: int,
        num_qk_channels: int | None = None,
        num_v_channels: int | None = None,
        widening_factor: int = 1,
        query_residual: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.query_residual = query_residual
        self.q_norm = nn.LayerNorm(num_q_channels)
        self.kv_norm = nn.LayerNorm(num_kv_channels)
        self.attention = MultiHeadAttention(
            num_q_channels, num_kv_channels, num_heads, num_qk_channels, num_v_channels, dropout=dropout
        )
        self.mlp = MLP(num_q_channels, widening_factor)
        self.dropout = nn.Dropout(dropout)

    def project(self, inputs: Tensor) -> KeyValue:
        """Normalize inputs (B, M, C) and project them to keys and values, for any number of calls of the layer."""
        return self.attention.project_kv(self.kv_norm(inputs))

    def forward(self, x: Tensor, kv: ProjectedInputs, pad_mask: Tensor | None = None) -> Tensor:
        """Update queries from projected inputs.

        Args:
            x: Queries (B, Q, X), or (1, Q, X) where all rows of the batch have the same.
            kv: Inputs (B, M, C), projected.
            pad_mask: Bool (B, M), True where an input is padding.

        Returns:
            (B, Q, X).
        """
        return self._compute(self._update, x, kv, pad_mask)

    def _update(self, x: Tensor, kv: ProjectedInputs, pad_mask: Tensor | None) -> Tensor:
        attended = self.dropout(self.attention(self.q_norm(x), kv, pad_mask))
        x = x + attended if self.query_residual else attended
        return x + self.dropout(self.mlp(x))


class SelfAttentionLayer(AttentionLayer):
    """Latents attend to each other, then an MLP: Perceiver IO (arXiv:2107.14795), sec. 3.1 and appendix E.

    Args:
        num_channels: Channels D of latents and result.
        num_heads: Heads H.
        num_qk_channels: Channels of projected queries and keys (none: D).
        num_v_channels: Channels of projected values (none: as queries and keys).
        widening_factor: Hidden channels of the MLP as a multiple of D.
        dropout: Dropout probability of attention weights and of both branches.
    """

    def __init__(
        self,
        num_channels: int,
        num_heads: int,
        num_qk_channels: int | None = None,
        num_v_channels: int | None = None,
        widening_factor: int = 1,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(num_channels)
        self.attention = MultiHeadAttention(
            num_channels, num_channels, num_heads, num_qk_channels, num_v_channels, dropout=dropout
        )
        self.mlp = MLP(num_channels, widening_factor)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Update latents (B, N, D)."""
        return self._compute(self._update, x)

    def _update(self, x: Tensor) -> Tensor:
        x = x + self.dropout(self.attention.attend_to_itself(self.norm(x)))
        return x + self.dropout(self.mlp(x))
