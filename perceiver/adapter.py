"""Adapters: what turns data into the encoder's inputs, and decoded outputs into predictions.

A new kind of data is a new subclass of InputAdapter or OutputAdapter; encoder and decoder stay as they are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

from perceiver.grid import GridInputs
from perceiver.loss import linear_cross_entropy
from perceiver.position import fourier_features, grid_coordinates


class InputAdapter(nn.Module):
    """Turns data of one kind into inputs (B, M, C) with their positions.

    Args:
        num_input_channels: Channels C of each input.
    """

    def __init__(self, num_input_channels: int) -> None:
        super().__init__()
        self.num_input_channels = num_input_channels

    def forward(self, x: Tensor) -> Tensor:
        """Turn a batch of data into inputs (B, M, C)."""
        raise NotImplementedError

    def inputs(self, x: Tensor) -> Tensor | GridInputs:
        """Return what forward returns, in parts where the encoder can make use of them; by default as it is."""
        result: Tensor = self(x)
        return result


class OutputAdapter(nn.Module):
    """Turns decoded outputs into predictions.

    Args:
        output_shape: Number of outputs O and channels E of each; the decoder learns a query for each output.
    """

    def __init__(self, output_shape: tuple[int, int]) -> None:
        super().__init__()
        self.output_shape = output_shape

    def forward(self, x: Tensor) -> Tensor:
        """Turn decoded outputs (..., E), all or a selection of them, into predictions."""
        raise NotImplementedError

    def cross_entropy(self, x: Tensor, labels: Tensor) -> Tensor:
        """Return the sum of the cross-entropies of predictions from outputs (T, E), given labels (T,)."""
        return F.cross_entropy(self(x).float(), labels, reduction="sum")


class ImageInputAdapter(InputAdapter):
    """Pixels with Fourier features of their positions.

    Args:
        image_shape: Positions along each axis, then channels; for an image (height, width, channels).
        num_frequency_bands: Frequencies per axis.
    """

    position_encoding: Tensor

    def __init__(self, image_shape: Sequence[int], num_frequency_bands: int) -> None:
        *grid_shape, num_image_channels = image_shape
        positions = fourier_features(grid_coordinates(grid_shape), grid_shape, num_frequency_bands)
        super().__init__(num_input_channels=num_image_channels + positions.shape[-1])
        self.image_shape = tuple(image_shape)
        self.register_buffer("position_encoding", positions, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Turn images (B, *image_shape) into inputs (B, M, C), one per pixel.

        Raises:
            ValueError: If the images have another shape.
        """
        pixels, positions = self.inputs(x)
        return torch.cat([pixels, repeat(positions, "m c -> b m c", b=x.shape[0])], dim=-1)

    def inputs(self, x: Tensor) -> GridInputs:
        """Return pixels and positions apart; see forward."""
        if tuple(x.shape[1:]) != self.image_shape:
            raise ValueError(f"images have the shape {tuple(x.shape[1:])}, but must have {self.image_shape}")
        return GridInputs(rearrange(x, "b ... c -> b (...) c"), self.position_encoding)


class TextInputAdapter(InputAdapter):
    """Token embeddings plus learned positions.

    Args:
        vocab_size: Number of different tokens.
        max_seq_len: Tokens per text at most; shorter texts use the first positions.
        num_input_channels: Channels C of each input.
    """

    def __init__(self, vocab_size: int, max_seq_len: int, num_input_channels: int) -> None:
        super().__init__(num_input_channels)
        self.embedding = nn.Embedding(vocab_size, num_input_channels)
        self.positions = nn.Parameter(torch.empty(max_seq_len, num_input_channels))
        self.init_weights()

    def init_weights(self) -> None:
        """Draw embeddings from U(-0.1, 0.1) and positions from U(-0.5, 0.5)."""
        nn.init.uniform_(self.embedding.weight, -0.1, 0.1)
        nn.init.uniform_(self.positions, -0.5, 0.5)

    def forward(self, x: Tensor) -> Tensor:
        """Turn tokens (B, M) into inputs (B, M, C).

        Raises:
            ValueError: If M is more than max_seq_len.
        """
        seq_len, max_seq_len = x.shape[1], self.positions.shape[0]
        if seq_len > max_seq_len:
            raise ValueError(f"texts have {seq_len} tokens, but must have {max_seq_len} (max_seq_len) at most")
        return self.embedding(x) * math.sqrt(self.num_input_channels) + self.positions[:seq_len]


class ClassificationOutputAdapter(OutputAdapter):
    """One linear layer from an output to the logits of classes.

    Args:
        num_classes: Number of classes.
        num_outputs: Number of outputs O, each of which is classified.
        num_output_channels: Channels E of each output (none: num_classes).
    """

    def __init__(self, num_classes: int, num_outputs: int = 1, num_output_channels: int | None = None) -> None:
        super().__init__(output_shape=(num_outputs, num_output_channels or num_classes))
        self.linear = nn.Linear(num_output_channels or num_classes, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Turn outputs (..., E) into logits (..., num_classes); of (B, 1, E), where O is 1, into (B, num_classes)."""
        logits = self.linear(x)
        num_outputs, _ = self.output_shape
        return logits.squeeze(1) if num_outputs == 1 and x.ndim == 3 else logits


class TextOutputAdapter(OutputAdapter):
    """One linear layer from an output to the logits of tokens.

    Args:
        vocab_size: Number of different tokens.
        max_seq_len: Number of outputs O, one per token.
        num_output_channels: Channels E of each output.
        embedding: Token embedding (vocab_size, E) whose weights the linear layer shares (none: it has its own).

    Raises:
        ValueError: If the embedding has another shape.
    """

    def __init__(
        self, vocab_size: int, max_seq_len: int, num_output_channels: int, embedding: nn.Embedding | None = None
    ) -> None:
        super().__init__(output_shape=(max_seq_len, num_output_channels))
        self.linear = nn.Linear(num_output_channels, vocab_size)
        if embedding is not None:
            if embedding.weight.shape != self.linear.weight.shape:
                raise ValueError(
                    f"embedding has the shape {tuple(embedding.weight.shape)}, but must have "
                    f"{(vocab_size, num_output_channels)} to be shared with the output layer"
                )
            self.linear.weight = embedding.weight

    def forward(self, x: Tensor) -> Tensor:
        """Turn outputs (..., E) into logits (..., vocab_size)."""
        return self.linear(x)

    def cross_entropy(self, x: Tensor, labels: Tensor) -> Tensor:
        """Return the sum of the cross-entropies of tokens; see OutputAdapter.cross_entropy."""
        return linear_cross_entropy(x, self.linear, labels)
