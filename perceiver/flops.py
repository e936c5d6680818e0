"""How many floating-point operations a model takes for one training sample: what its matrix products do.

Letters are those of perceiver.attention. A product of (m, k) and (k, n) has 2 m k n operations; sums, norms, softmax
and the looking up of embeddings, which are not counted, are few beside them.
"""

from __future__ import annotations

from perceiver.config import ImageClassifierConfig, MaskedLanguageModelConfig, ModelConfig, TextClassifierConfig

_PASSES = 3  # forward, and a backward pass of twice as much: the gradients of both factors of each product


def flops_per_sample(config: ModelConfig, trains_encoder: bool = True) -> int:
    """Return the floating-point operations of training with one sample, forward and backward.

    A text has max_seq_len tokens, of which a masked language model decodes those that are masked alone, on average.

    Args:
        config: What the model consists of.
        trains_encoder: Whether the encoder is trained; a frozen one reads each sample once, which is not counted.
    """
    encoder = _encoder_flops(config) if trains_encoder else 0
    return _PASSES * (encoder + _decoder_flops(config))


def _encoder_flops(config: ModelConfig) -> int:
    encoder = config.encoder
    n, d = encoder.num_latents, encoder.num_latent_channels
    num_inputs, num_input_channels = _inputs(config)
    qk = encoder.num_cross_attention_qk_channels or d
    v = encoder.num_cross_attention_v_channels or qk
    cross = _attention(n, num_inputs, d, qk, v) + _mlp(n, d, encoder.cross_attention_widening_factor)
    projection = _linear(num_inputs, num_input_channels, qk + v)
    qk = encoder.num_self_attention_qk_channels or d
    v = encoder.num_self_attention_v_channels or qk
    layer = _attention(n, n, d, qk, v) + _linear(n, d, qk + v) + _mlp(n, d, encoder.self_attention_widening_factor)
    block = encoder.num_block_repeats * encoder.num_self_attention_layers_per_block * layer
    num_crosses = 1 if encoder.cross_attention_first_only else encoder.num_layers
    # Layers 2 and on share their weights, and so the projected inputs.
    return num_crosses * cross + min(num_crosses, 2) * projection + encoder.num_layers * block


def _decoder_flops(config: ModelConfig) -> int:
    decoder, d = config.decoder, config.encoder.num_latent_channels
    num_outputs, num_predictions = _outputs(config)
    channels = decoder.num_output_channels or d
    qk = decoder.num_cross_attention_qk_channels or channels
    v = decoder.num_cross_attention_v_channels or qk
    n = config.encoder.num_latents
    attention = _attention(num_outputs, n, channels, qk, v) + _linear(n, d, qk + v)
    return (
        attention
        + _mlp(num_outputs, channels, decoder.widening_factor)
        + _linear(num_outputs, channels, num_predictions)
    )


def _inputs(config: ModelConfig) -> tuple[int, int]:
    """Return the number of inputs M and their channels C."""
    if not isinstance(config, ImageClassifierConfig):
        return config.max_seq_len, config.encoder.num_latent_channels
    height, width, channels = config.image_shape
    return height * width, channels + 2 * (1 + 2 * config.num_frequency_bands)


def _outputs(config: ModelConfig) -> tuple[int, int]:
    """Return how many outputs are decoded, and how many logits each becomes."""
    if isinstance(config, MaskedLanguageModelConfig):
        return round(config.masking.mask_p * config.max_seq_len), config.vocab_size
    assert isinstance(config, TextClassifierConfig | ImageClassifierConfig)
    return 1, config.num_classes


def _linear(rows: int, channels_in: int, channels_out: int) -> int:
    return 2 * rows * channels_in * channels_out


def _mlp(rows: int, channels: int, widening_factor: int) -> int:
    return 2 * _linear(rows, channels, widening_factor * channels)


def _attention(num_queries: int, num_inputs: int, channels: int, qk: int, v: int) -> int:
    """Return the operations of queries that attend to keys and values, without those that make keys and values."""
    return (
        _linear(num_queries, channels, qk)
        + _linear(num_queries, num_inputs, qk)
        + _linear(num_queries, num_inputs, v)
        + _linear(num_queries, v, channels)
    )
