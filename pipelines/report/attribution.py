"""What models look at, as `perceiver.attention_maps` tells it."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from pipelines.report.parts import MissingSourceError

_MODULE = "perceiver.attention_maps"

Floats = npt.NDArray[np.floating[Any]]


def attention(model: nn.Module, x: Tensor, pad_mask: Tensor | None = None) -> tuple[list[Floats], Floats]:
    """Return which inputs the latents read, and which latents the outputs read, averaged over the heads.

    Args:
        model: The model, on the CPU.
        x: Inputs (B, ...).
        pad_mask: Bool (B, M), True where there is padding.

    Returns:
        Attention (B, N, M) of each encoder layer that attends to the inputs, and that of the decoder (B, O, N).
    """
    maps = _module().attention_maps(model, x, pad_mask)
    layers = maps.layers if hasattr(maps, "layers") else maps.cross
    return [_mean_of_heads(layer) for layer in layers], _mean_of_heads(maps.decoder)


def attribution(model: nn.Module, x: Tensor, pad_mask: Tensor | None = None) -> Floats:
    """Return how much each input counts for the output (B, M).

    Args:
        model: The model, on the CPU.
        x: Inputs (B, ...).
        pad_mask: Bool (B, M), True where there is padding.
    """
    values: Floats = _module().input_attribution(model, x, pad_mask).detach().float().numpy()
    return values


def _module() -> Any:
    try:
        return import_module(_MODULE)
    except ModuleNotFoundError:
        raise MissingSourceError(f"this version has no {_MODULE}") from None


def _mean_of_heads(weights: Tensor) -> Floats:
    mean: Floats = weights.detach().float().mean(dim=1).numpy()
    return mean
