"""Perceiver IO written down plainly, without any trick: what our model is compared with, in results and in time.

- Attention is torch's nn.MultiheadAttention, called with nothing but the inputs and the padding, as the reference does.
  It then returns the attention weights as well; told not to, it uses torch's fused kernel.
- The inputs are projected to keys and values by each layer that attends to them.
- An image's position encodings are concatenated to its pixels, for each image anew.
- A masked language model decodes all positions; its loss takes all logits.

Parameters have the reference's names (krasserm/perceiver-io, first public form), so that
`perceiver.convert.from_reference(build_plain(config).state_dict(), config)` is our model with the same weights.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

from perceiver.config import EncoderConfig, ImageClassifierConfig, MaskedLanguageModelConfig, ModelConfig
from perceiver.masking import IGNORED_LABEL
from perceiver.position import fourier_features, grid_coordinates


class Residual(nn.Module):
    """Adds what a module returns to its first argument."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor, *args: Tensor | None) -> Tensor:
        """Return x + module(x, *args)."""
        return x + self.module(x, *args)


class Attention(nn.Module):
    """Holds torch's attention one level deeper, as the reference does."""

    need_weights = True

    def __init__(self, num_q_channels: int, num_kv_channels: int, num_heads: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(
            num_q_channels, num_heads, kdim=num_kv_channels, vdim=num_kv_channels, batch_first=True
        )

    def forward(self, x_q: Tensor, x_kv: Tensor, pad_mask: Tensor | None = None) -> Tensor:
        """Let queries (B, Q, X) attend to inputs (B, M, C); pad_mask is bool (B, M), True = padding."""
        result: Tensor = self.attention(x_q, x_kv, x_kv, key_padding_mask=pad_mask, need_weights=self.need_weights)[0]
        return result


class CrossAttention(nn.Module):
    """Attention to inputs, both sides normalized."""

    def __init__(self, num_q_channels: int, num_kv_channels: int, num_heads: int) -> None:
        super().__init__()
        self.q_norm = nn.LayerNorm(num_q_channels)
        self.kv_norm = nn.LayerNorm(num_kv_channels)
        self.attention = Attention(num_q_channels, num_kv_channels, num_heads)

    def forward(self, x_q: Tensor, x_kv: Tensor, pad_mask: Tensor | None = None) -> Tensor:
        """Let queries (B, Q, X) attend to inputs (B, M, C)."""
        return self.attention(self.q_norm(x_q), self.kv_norm(x_kv), pad_mask)


class SelfAttention(nn.Module):
    """Attention among latents, normalized."""

    def __init__(self, num_channels: int, num_heads: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(num_channels)
        self.attention = Attention(num_channels, num_channels, num_heads)

    def forward(self, x: Tensor) -> Tensor:
        """Let latents (B, N, D) attend to each other."""
        x = self.norm(x)
        return self.attention(x, x)


def _mlp(num_channels: int) -> nn.Module:
    return nn.Sequential(
        nn.LayerNorm(num_channels),
        nn.Linear(num_channels, num_channels),
        nn.GELU(),
        nn.Linear(num_channels, num_channels),
    )


class CrossAttentionLayer(nn.Sequential):
    """Attention to inputs, then an MLP."""

    def __init__(self, num_q_channels: int, num_kv_channels: int, num_heads: int) -> None:
        super().__init__(
            Residual(CrossAttention(num_q_channels, num_kv_channels, num_heads)), Residual(_mlp(num_q_channels))
        )

    def forward(self, x: Tensor, inputs: Tensor, pad_mask: Tensor | None = None) -> Tensor:  # type: ignore[override]
        """Update queries (B, Q, X)."""
        attention, mlp = self
        return mlp(attention(x, inputs, pad_mask))


class EncoderLayer(nn.ModuleList):
    """One cross-attention layer and a block of self-attention layers."""

    def __init__(self, config: EncoderConfig, num_input_channels: int) -> None:
        channels, heads = config.num_latent_channels, config.num_self_attention_heads
        super().__init__(
            [
                CrossAttentionLayer(channels, num_input_channels, config.num_cross_attention_heads),
                nn.Sequential(
                    *(
                        nn.Sequential(Residual(SelfAttention(channels, heads)), Residual(_mlp(channels)))
                        for _ in range(config.num_self_attention_layers_per_block)
                    )
                ),
            ]
        )

    def forward(self, latents: Tensor, inputs: Tensor, pad_mask: Tensor | None = None) -> Tensor:
        """Update latents (B, N, D)."""
        cross_attention, self_attention = self
        result: Tensor = self_attention(cross_attention(latents, inputs, pad_mask))
        return result


class TextInputAdapter(nn.Module):
    """Token embeddings plus learned positions."""

    def __init__(self, vocab_size: int, max_seq_len: int, num_channels: int) -> None:
        super().__init__()
        self.num_channels = num_channels
        self.text_embedding = nn.Embedding(vocab_size, num_channels)
        self.pos_encoding = nn.Parameter(torch.empty(max_seq_len, num_channels).uniform_(-0.5, 0.5))
        nn.init.uniform_(self.text_embedding.weight, -0.1, 0.1)

    def forward(self, x: Tensor) -> Tensor:
        """Turn tokens (B, M) into inputs (B, M, C)."""
        return self.text_embedding(x) * math.sqrt(self.num_channels) + self.pos_encoding[: x.shape[1]]


class ImageInputAdapter(nn.Module):
    """Pixels beside the Fourier features of their positions."""

    positions: Tensor

    def __init__(self, config: ImageClassifierConfig) -> None:
        super().__init__()
        *grid, num_pixel_channels = config.image_shape
        positions = fourier_features(grid_coordinates(grid), grid, config.num_frequency_bands)
        self.num_channels = num_pixel_channels + positions.shape[-1]
        self.register_buffer("positions", positions, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Turn images (B, H, W, C) into inputs (B, H * W, C)."""
        pixels = rearrange(x, "b h w c -> b (h w) c")
        return torch.cat([pixels, repeat(self.positions, "m c -> b m c", b=len(x))], dim=-1)


class LinearOutputAdapter(nn.Module):
    """From outputs to logits."""

    def __init__(self, num_channels: int, num_logits: int) -> None:
        super().__init__()
        self.linear = nn.Linear(num_channels, num_logits)

    def forward(self, x: Tensor) -> Tensor:
        """Turn outputs (B, O, E) into logits."""
        return self.linear(x)


class Encoder(nn.Module):
    """Turns inputs into latents."""

    def __init__(self, config: EncoderConfig, input_adapter: TextInputAdapter | ImageInputAdapter) -> None:
        super().__init__()
        self.input_adapter = input_adapter
        self.num_shared_layers = config.num_layers - 1
        self.latent = nn.Parameter(0.02 * torch.randn(config.num_latents, config.num_latent_channels))
        self.layer_1 = EncoderLayer(config, input_adapter.num_channels)
        if self.num_shared_layers:
            self.layer_n = EncoderLayer(config, input_adapter.num_channels)

    def forward(self, x: Tensor, pad_mask: Tensor | None = None) -> Tensor:
        """Encode tokens (B, M) or images (B, H, W, C) to latents (B, N, D)."""
        inputs = self.input_adapter(x)
        latents = self.layer_1(repeat(self.latent, "n d -> b n d", b=len(x)), inputs, pad_mask)
        for _ in range(self.num_shared_layers):
            latents = self.layer_n(latents, inputs, pad_mask)
        return latents


class Decoder(nn.Module):
    """Turns latents into logits."""

    def __init__(self, config: ModelConfig, num_outputs: int, num_logits: int) -> None:
        super().__init__()
        num_latent_channels = config.encoder.num_latent_channels
        num_channels = config.decoder.num_output_channels or num_latent_channels
        self.output = nn.Parameter(0.02 * torch.randn(num_outputs, num_channels))
        self.cross_attention = CrossAttentionLayer(
            num_channels, num_latent_channels, config.decoder.num_cross_attention_heads
        )
        self.output_adapter = LinearOutputAdapter(num_channels, num_logits)

    def forward(self, latents: Tensor, num_outputs: int) -> Tensor:
        """Decode the first outputs: logits (B, num_outputs, num_logits)."""
        queries = repeat(self.output[:num_outputs], "o e -> b o e", b=len(latents))
        return self.output_adapter(self.cross_attention(queries, latents))


class Plain(nn.Module):
    """A model: logits (B, M, vocab_size) of a masked language model, (B, num_classes) of a classifier."""

    def __init__(self, encoder: Encoder, decoder: Decoder, is_classifier: bool) -> None:
        super().__init__()
        self.encoder, self.decoder, self.is_classifier = encoder, decoder, is_classifier

    def forward(self, x: Tensor, pad_mask: Tensor | None = None) -> Tensor:
        """Predict from tokens (B, M) or images (B, H, W, C)."""
        latents = self.encoder(x, pad_mask)
        if self.is_classifier:
            return self.decoder(latents, 1).squeeze(1)
        return self.decoder(latents, x.shape[1])


def build_plain(config: ModelConfig, need_weights: bool = True) -> Plain:
    """Build the plain form of a model of the default architecture, without dropout.

    Args:
        config: What the model consists of.
        need_weights: Whether nn.MultiheadAttention returns the attention weights, as it does unless told otherwise.
    """
    assert config.dropout == 0, "what is timed has no dropout"
    if isinstance(config, ImageClassifierConfig):
        adapter: TextInputAdapter | ImageInputAdapter = ImageInputAdapter(config)
    else:
        adapter = TextInputAdapter(config.vocab_size, config.max_seq_len, config.encoder.num_latent_channels)
    if isinstance(config, MaskedLanguageModelConfig):
        decoder = Decoder(config, config.max_seq_len, config.vocab_size)
    else:
        decoder = Decoder(config, 1, config.num_classes)
    model = Plain(Encoder(config.encoder, adapter), decoder, not isinstance(config, MaskedLanguageModelConfig))
    for module in model.modules():
        if isinstance(module, Attention):
            module.need_weights = need_weights
    return model


def plain_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy over all logits (B, ..., classes); labels (B, ...) are IGNORED_LABEL where there is none."""
    return F.cross_entropy(logits.flatten(0, -2), labels.flatten(), ignore_index=IGNORED_LABEL)
