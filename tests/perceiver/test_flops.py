"""The operations that are told are those that torch counts."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from perceiver.build import build_model
from perceiver.config import (
    DecoderConfig,
    EncoderConfig,
    ImageClassifierConfig,
    MaskedLanguageModelConfig,
    MaskingConfig,
    ModelConfig,
    TextClassifierConfig,
)
from perceiver.flops import flops_per_sample
from perceiver.model import PerceiverIO, PerceiverMLM

PLAIN = EncoderConfig(num_latents=6, num_latent_channels=16, num_layers=3, num_self_attention_layers_per_block=2)
ODD = EncoderConfig(
    num_latents=5, num_latent_channels=24, num_layers=2, num_self_attention_layers_per_block=2, num_block_repeats=2,
    num_cross_attention_heads=2, num_self_attention_heads=2, num_cross_attention_qk_channels=8,
    num_cross_attention_v_channels=12, num_self_attention_qk_channels=4, num_self_attention_v_channels=10,
    cross_attention_widening_factor=2, self_attention_widening_factor=3, cross_attention_first_only=True,
)  # fmt: skip
DECODER = DecoderConfig(
    num_cross_attention_heads=2, num_output_channels=20, num_cross_attention_qk_channels=6,
    num_cross_attention_v_channels=14, widening_factor=2,
)  # fmt: skip
CONFIGS: dict[str, ModelConfig] = {
    "masked language model": MaskedLanguageModelConfig(
        PLAIN, masking=MaskingConfig(mask_p=0.25), vocab_size=50, max_seq_len=12
    ),
    "text classifier": TextClassifierConfig(ODD, DECODER, vocab_size=50, max_seq_len=12),
    "image classifier": ImageClassifierConfig(PLAIN, DECODER, image_shape=(5, 4, 3), num_frequency_bands=3),
    "one layer": TextClassifierConfig(EncoderConfig(num_layers=1), vocab_size=50, max_seq_len=12),
}


def counted(config: ModelConfig) -> tuple[int, int]:
    """Count the operations of the encoder and of the decoder for one sample, on a device that computes nothing."""
    with torch.device("meta"):
        model = build_model(config).eval().requires_grad_(False)
        if isinstance(config, ImageClassifierConfig):
            x = torch.empty(1, *config.image_shape)
            inputs = torch.empty(1, x[..., 0].numel(), model.encoder.input_adapter.num_input_channels)
            model.encoder.input_adapter.inputs = lambda x: inputs  # whole: in parts they take fewer operations
        else:
            x = torch.empty(1, config.max_seq_len, dtype=torch.long)
        with FlopCounterMode(display=False) as encoder:
            latents = model.encoder(x)
        with FlopCounterMode(display=False) as decoder:
            if isinstance(model, PerceiverMLM):
                model.decoder(latents, torch.empty(1, 3, dtype=torch.long))  # a quarter of 12 tokens
            else:
                assert isinstance(model, PerceiverIO)
                model.decode(latents)
    return encoder.get_total_flops(), decoder.get_total_flops()


@pytest.mark.parametrize("name", CONFIGS)
def test_operations_are_those_that_torch_counts(name: str) -> None:
    encoder, decoder = counted(CONFIGS[name])
    assert flops_per_sample(CONFIGS[name]) == 3 * (encoder + decoder)
    assert flops_per_sample(CONFIGS[name], trains_encoder=False) == 3 * decoder
