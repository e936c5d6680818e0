"""From a model's config to the model."""

from __future__ import annotations

from dataclasses import asdict

from perceiver.adapter import (
    ClassificationOutputAdapter,
    ImageInputAdapter,
    InputAdapter,
    OutputAdapter,
    TextInputAdapter,
    TextOutputAdapter,
)
from perceiver.config import ImageClassifierConfig, MaskedLanguageModelConfig, ModelConfig, TextClassifierConfig
from perceiver.model import PerceiverDecoder, PerceiverEncoder, PerceiverIO, PerceiverMLM, TextMasking


def build_model(config: ModelConfig) -> PerceiverIO | PerceiverMLM:
    """Build a model with new weights, drawn from torch's generator.

    Args:
        config: What the model consists of.

    Returns:
        A PerceiverMLM for a masked language model, a PerceiverIO for a classifier.
    """
    if isinstance(config, MaskedLanguageModelConfig):
        return _build_masked_language_model(config)
    return _build_classifier(config)


def _build_masked_language_model(config: MaskedLanguageModelConfig) -> PerceiverMLM:
    input_adapter = _text_input_adapter(config)
    output_adapter = TextOutputAdapter(
        config.vocab_size,
        config.max_seq_len,
        _num_output_channels(config),
        embedding=input_adapter.embedding if config.tie_output_embedding else None,
    )
    masking = TextMasking(config.vocab_size, mask_p=config.masking.mask_p)
    return PerceiverMLM(_build_encoder(config, input_adapter), _build_decoder(config, output_adapter), masking)


def _build_classifier(config: TextClassifierConfig | ImageClassifierConfig) -> PerceiverIO:
    input_adapter: InputAdapter
    if isinstance(config, TextClassifierConfig):
        input_adapter = _text_input_adapter(config)
    else:
        input_adapter = ImageInputAdapter(config.image_shape, config.num_frequency_bands)
    output_adapter = ClassificationOutputAdapter(config.num_classes, num_output_channels=_num_output_channels(config))
    return PerceiverIO(_build_encoder(config, input_adapter), _build_decoder(config, output_adapter))


def _text_input_adapter(config: MaskedLanguageModelConfig | TextClassifierConfig) -> TextInputAdapter:
    return TextInputAdapter(config.vocab_size, config.max_seq_len, config.encoder.num_latent_channels)


def _num_output_channels(config: ModelConfig) -> int:
    return config.decoder.num_output_channels or config.encoder.num_latent_channels


def _latent_shape(config: ModelConfig) -> tuple[int, int]:
    return config.encoder.num_latents, config.encoder.num_latent_channels


def _build_encoder(config: ModelConfig, input_adapter: InputAdapter) -> PerceiverEncoder:
    options = asdict(config.encoder)
    del options["num_latents"], options["num_latent_channels"]
    return PerceiverEncoder(input_adapter, _latent_shape(config), dropout=config.dropout, **options)


def _build_decoder(config: ModelConfig, output_adapter: OutputAdapter) -> PerceiverDecoder:
    options = asdict(config.decoder)
    del options["num_output_channels"]
    return PerceiverDecoder(output_adapter, _latent_shape(config), dropout=config.dropout, **options)
