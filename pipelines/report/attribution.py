"""What models look at, as numbers that can be drawn."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from perceiver.attention_maps import attention_maps, input_attribution
from perceiver.model import PerceiverIO, PerceiverMLM

Floats = npt.NDArray[np.floating[Any]]


def attention(
    model: PerceiverIO | PerceiverMLM, x: Tensor, pad_mask: Tensor | None = None
) -> tuple[list[Floats], Floats]:
    """Return which inputs the latents read, and which latents the outputs read, averaged over the heads.

    Args:
        model: The model, on the CPU.
        x: Inputs (B, ...).
        pad_mask: Bool (B, M), True where there is padding.

    Returns:
        Attention (B, N, M) of each encoder layer that attends to the inputs, and that of the decoder (B, O, N).
    """
    maps = attention_maps(model, x, pad_mask)
    return [_mean_of_heads(layer) for layer in maps.cross], _mean_of_heads(maps.decoder)


def attribution(model: PerceiverIO | PerceiverMLM, x: Tensor, pad_mask: Tensor | None = None) -> Floats:
    """Return how much of each input is read on the way to the output (B, M); rows add up to one.

    Args:
        model: The model, on the CPU.
        x: Inputs (B, ...).
        pad_mask: Bool (B, M), True where there is padding.
    """
    shares: Floats = input_attribution(model, x, pad_mask).detach().float().numpy()
    return shares


def _mean_of_heads(weights: Tensor) -> Floats:
    mean: Floats = weights.detach().float().mean(dim=1).numpy()
    return mean
