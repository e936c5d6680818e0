"""Perceiver IO (arXiv:2107.14795): an encoder, a decoder, and the models made of them.

What is unusual about this one:
- layers 2..num_layers of the encoder are one and the same layer, applied again and again; its cross-attention projects
  the inputs to keys and values once;
- output queries are independent of each other, so the decoder computes only those that are asked for.

The letters in shapes are those of perceiver.attention.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from perceiver.adapter import InputAdapter, OutputAdapter
from perceiver.attention import CrossAttentionLayer, ProjectedInputs, SelfAttentionLayer
from perceiver.config import DecoderConfig, EncoderConfig
from perceiver.grid import GridInputs
from perceiver.masking import IGNORED_LABEL, Selection, TextMasking, pack_selection

__all__ = ["PerceiverDecoder", "PerceiverEncoder", "PerceiverIO", "PerceiverMLM", "TextMasking"]


def init_learned_array(array: Tensor) -> None:
    """Draw latents or output queries from N(0, 0.02), clamped to [-2, 2]."""
    with torch.no_grad():
        array.normal_(0.0, 0.02).clamp_(-2.0, 2.0)


class SelfAttentionBlock(nn.Module):
    """A stack of self-attention layers among latents (B, N, D), applied config.num_block_repeats times.

    Args:
        config: Shape of the encoder.
        dropout: Dropout probability.
    """

    def __init__(self, config: EncoderConfig, dropout: float) -> None:
        super().__init__()
        self.num_repeats = config.num_block_repeats
        self.layers = nn.ModuleList(
            SelfAttentionLayer(
                num_channels=config.num_latent_channels,
                num_heads=config.num_self_attention_heads,
                num_qk_channels=config.num_self_attention_qk_channels,
                num_v_channels=config.num_self_attention_v_channels,
                widening_factor=config.self_attention_widening_factor,
                dropout=dropout,
            )
            for _ in range(config.num_self_attention_layers_per_block)
        )

    def forward(self, latents: Tensor) -> Tensor:
        """Update latents (B, N, D)."""
        for _ in range(self.num_repeats):
            for layer in self.layers:
                latents = layer(latents)
        return latents


class PerceiverEncoder(nn.Module):
    """Turns inputs of any number into latents of a fixed number.

    An encoder layer is a cross-attention to the inputs and a block of self-attention. Layer 1 has its own weights,
    layers 2..num_layers share theirs.

    Args:
        input_adapter: Turns data into inputs (B, M, C).
        latent_shape: Number of latents N and channels D of each.
        num_layers: Number of encoder layers.
        num_cross_attention_heads: Heads of the cross-attention.
        num_self_attention_heads: Heads of the self-attention.
        num_self_attention_layers_per_block: Self-attention layers in a block.
        dropout: Dropout probability of attention weights and of residual branches.
        options: Further fields of perceiver.config.EncoderConfig, such as num_block_repeats=2.

    Raises:
        ValueError: If the heads do not divide their channels evenly, or a number is below 1.
    """

    def __init__(
        self,
        input_adapter: InputAdapter,
        latent_shape: tuple[int, int],
        num_layers: int,
        num_cross_attention_heads: int = 4,
        num_self_attention_heads: int = 4,
        num_self_attention_layers_per_block: int = 2,
        dropout: float = 0.0,
        **options: Any,
    ) -> None:
        super().__init__()
        num_latents, num_latent_channels = latent_shape
        config = EncoderConfig(
            num_latents=num_latents,
            num_latent_channels=num_latent_channels,
            num_layers=num_layers,
            num_cross_attention_heads=num_cross_attention_heads,
            num_self_attention_heads=num_self_attention_heads,
            num_self_attention_layers_per_block=num_self_attention_layers_per_block,
            **options,
        )
        self.num_shared_layers = num_layers - 1
        self.input_adapter = input_adapter
        self.latents = nn.Parameter(torch.empty(latent_shape))
        self.cross_attention_1 = self._build_cross_attention(config, dropout)
        self.self_attention_1 = SelfAttentionBlock(config, dropout)
        self.cross_attention_n: CrossAttentionLayer | None = None
        self.self_attention_n: SelfAttentionBlock | None = None
        if self.num_shared_layers > 0:
            self.self_attention_n = SelfAttentionBlock(config, dropout)
            if not config.cross_attention_first_only:
                self.cross_attention_n = self._build_cross_attention(config, dropout)
        init_learned_array(self.latents)

    def _build_cross_attention(self, config: EncoderConfig, dropout: float) -> CrossAttentionLayer:
        return CrossAttentionLayer(
            num_q_channels=config.num_latent_channels,
            num_kv_channels=self.input_adapter.num_input_channels,
            num_heads=config.num_cross_attention_heads,
            num_qk_channels=config.num_cross_attention_qk_channels,
            num_v_channels=config.num_cross_attention_v_channels,
            widening_factor=config.cross_attention_widening_factor,
            dropout=dropout,
        )

    def compile_blocks(self) -> None:
        """Let torch.compile compile the self-attention blocks, whose shapes, unlike those of the inputs, are fixed.

        Names of parameters stay as they are.
        """
        for block in (self.self_attention_1, self.self_attention_n):
            if block is not None:
                block.compile()

    def forward(self, x: Tensor, pad_mask: Tensor | None = None) -> Tensor:
        """Encode a batch of data.

        Args:
            x: Data that the input adapter understands.
            pad_mask: Bool (B, M), True where an input is padding.

        Returns:
            Latents (B, N, D).
        """
        inputs = self.input_adapter.inputs(x)  # (B, M, C), whole or in parts
        kv = _project(self.cross_attention_1, inputs)
        latents = self.cross_attention_1(self.latents[None], kv, pad_mask)  # the first queries are the same for all
        latents = self.self_attention_1(latents)
        if self.self_attention_n is None:
            return latents

        if self.cross_attention_n is not None:
            kv = _project(self.cross_attention_n, inputs)
        for _ in range(self.num_shared_layers):
            if self.cross_attention_n is not None:
                latents = self.cross_attention_n(latents, kv, pad_mask)
            latents = self.self_attention_n(latents)
        return latents


def _project(layer: CrossAttentionLayer, inputs: Tensor | GridInputs) -> ProjectedInputs:
    return inputs.project(layer) if isinstance(inputs, GridInputs) else layer.project(inputs)


class PerceiverDecoder(nn.Module):
    """Turns latents into outputs: learned output queries attend to the latents once.

    Args:
        output_adapter: Says how many outputs there are (O, E), and turns decoded outputs into predictions.
        latent_shape: Number of latents N and channels D of each.
        num_cross_attention_heads: Heads of the cross-attention.
        dropout: Dropout probability of attention weights and of residual branches.
        options: Further fields of perceiver.config.DecoderConfig, such as query_residual=False; the number of output
            channels is the output adapter's.

    Raises:
        ValueError: If the heads do not divide their channels evenly, or a number is below 1.
    """

    def __init__(
        self,
        output_adapter: OutputAdapter,
        latent_shape: tuple[int, int],
        num_cross_attention_heads: int = 4,
        dropout: float = 0.0,
        **options: Any,
    ) -> None:
        super().__init__()
        num_latents, num_latent_channels = latent_shape
        num_outputs, num_output_channels = output_adapter.output_shape
        config = DecoderConfig(num_cross_attention_heads, num_output_channels, **options)
        config.check_channels(num_latent_channels)
        self.latent_shape = (num_latents, num_latent_channels)
        self.output_adapter = output_adapter
        self.queries = nn.Parameter(torch.empty(num_outputs, num_output_channels))
        self.cross_attention = CrossAttentionLayer(
            num_q_channels=num_output_channels,
            num_kv_channels=num_latent_channels,
            num_heads=config.num_cross_attention_heads,
            num_qk_channels=config.num_cross_attention_qk_channels,
            num_v_channels=config.num_cross_attention_v_channels,
            widening_factor=config.widening_factor,
            query_residual=config.query_residual,
            dropout=dropout,
        )
        init_learned_array(self.queries)

    def decode(self, latents: Tensor, query_indices: Tensor | None = None) -> Tensor:
        """Decode outputs without turning them into predictions.

        Args:
            latents: (B, N, D).
            query_indices: Long (B, K), the outputs wanted, or (1, K), the same for all rows of the batch (none: all
                of them, in order).

        Returns:
            (B, K, E), K being O if all outputs are wanted.

        Raises:
            ValueError: If the latents have another shape.
        """
        if tuple(latents.shape[1:]) != self.latent_shape:
            raise ValueError(f"latents have the shape {tuple(latents.shape[1:])}, but must have {self.latent_shape}")
        queries = self.queries[None] if query_indices is None else F.embedding(query_indices, self.queries)
        return self.cross_attention(queries, self.cross_attention.project(latents))

    def forward(self, latents: Tensor, query_indices: Tensor | None = None) -> Tensor:
        """Decode outputs, all or those wanted, and turn them into predictions; see decode."""
        return self.output_adapter(self.decode(latents, query_indices))


class PerceiverIO(nn.Module):
    """An encoder and a decoder.

    Args:
        encoder: Turns data into latents.
        decoder: Turns latents into predictions.
    """

    def __init__(self, encoder: PerceiverEncoder, decoder: PerceiverDecoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder

    def forward(self, x: Tensor, pad_mask: Tensor | None = None) -> Tensor:
        """Predict from data; pad_mask is bool (B, M), True where an input is padding."""
        return self.decode(self.encoder(x, pad_mask))

    def decode(self, latents: Tensor) -> Tensor:
        """Predict from latents (B, N, D) that the encoder made before."""
        predictions: Tensor = self.decoder(latents)
        return predictions


class PerceiverMLM(nn.Module):
    """A masked language model: an encoder, a decoder with one output per token, and masking.

    Args:
        encoder: Turns tokens into latents.
        decoder: Turns latents into the logits of each token.
        masking: Hides tokens.
    """

    def __init__(self, encoder: PerceiverEncoder, decoder: PerceiverDecoder, masking: TextMasking) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.masking = masking

    def forward(self, x: Tensor, pad_mask: Tensor | None = None, masking: bool = True) -> tuple[Tensor, Tensor | None]:
        """Predict the token at every position.

        Args:
            x: Tokens (B, M).
            pad_mask: Bool (B, M), True where a token is padding.
            masking: Whether tokens are hidden first.

        Returns:
            Logits (B, M, vocab_size) and, with masking, labels (B, M), without it None.
        """
        labels = None
        if masking:
            x, labels = self.masking(x, pad_mask)
        positions = torch.arange(x.shape[1], device=x.device)[None]
        return self.decoder(self.encoder(x, pad_mask), positions), labels

    def decode_masked(
        self, x_masked: Tensor, labels: Tensor, pad_mask: Tensor | None = None, selection: Selection | None = None
    ) -> tuple[Tensor, Tensor]:
        """Decode only the tokens that have a label, which is all that the loss needs.

        Args:
            x_masked: Tokens (B, M), some of them hidden.
            labels: (B, M), IGNORED_LABEL where nothing is to be predicted.
            pad_mask: Bool (B, M), True where a token is padding.
            selection: The tokens that have a label, where they are known already.

        Returns:
            Decoded outputs (T, E) and labels (T,) of the T tokens that have one, row by row; T may be 0. The
            decoder's output adapter turns them into logits, or a loss.
        """
        selection = selection or pack_selection(labels != IGNORED_LABEL)
        decoded = self.decoder.decode(self.encoder(x_masked, pad_mask), selection.indices)  # (B, K, E)
        return selection.take(decoded), selection.take(labels.gather(1, selection.indices))

    def masked_logits(self, x_masked: Tensor, labels: Tensor, pad_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the logits (T, vocab_size) and labels (T,) of the tokens that have a label; see decode_masked."""
        decoded, labels = self.decode_masked(x_masked, labels, pad_mask)
        return self.decoder.output_adapter(decoded), labels
