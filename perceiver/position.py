"""Fourier features: how an image tells the model where its pixels are."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor


def grid_coordinates(shape: Sequence[int]) -> Tensor:
    """Coordinates of all positions of a grid, each axis running from -1 to 1.

    Args:
        shape: Positions along each of the A axes, for an image (height, width).

    Returns:
        (positions, A), the last axis of the grid running fastest.
    """
    axes = [torch.linspace(-1.0, 1.0, size) for size in shape]
    return rearrange(torch.stack(torch.meshgrid(*axes, indexing="ij")), "a ... -> (...) a")


def fourier_features(coordinates: Tensor, shape: Sequence[int], num_bands: int) -> Tensor:
    """Encode coordinates by sines and cosines: Perceiver (arXiv:2103.03206), sec. 3.2.

    The frequencies of an axis run linearly from 1 to half its size, its Nyquist frequency.

    Args:
        coordinates: (positions, A), each between -1 and 1.
        shape: Positions along each of the A axes.
        num_bands: Frequencies per axis.

    Returns:
        (positions, A + 2 * A * num_bands): the coordinates, the sines of all axes, the cosines of all axes.
    """
    bands = torch.stack([torch.linspace(1.0, size / 2, num_bands) for size in shape])  # (A, num_bands)
    phases = rearrange(math.pi * coordinates[..., None] * bands, "p a f -> p (a f)")
    return torch.cat([coordinates, phases.sin(), phases.cos()], dim=-1)
