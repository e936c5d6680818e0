"""Model folders with random weights, one of each kind."""

from __future__ import annotations

from pathlib import Path

from perceiver.build import build_model
from perceiver.config import (
    DecoderConfig,
    ImageClassifierConfig,
    MaskedLanguageModelConfig,
    ModelConfig,
    TextClassifierConfig,
)
from perceiver.data.tokenizer import train_tokenizer
from perceiver.saving import save_model
from tests.pipelines.tiny import ENCODER

TEXT, IMAGE, MLM = "text", "image", "mlm"
IMAGE_SHAPE = (8, 8, 1)
_TEXTS = ["i have watched this film and it was awesome", "what a mess", "a good film"] * 5
_VOCAB_SIZE = 120

CONFIGS: dict[str, ModelConfig] = {
    TEXT: TextClassifierConfig(
        encoder=ENCODER, vocab_size=_VOCAB_SIZE, max_seq_len=24, class_names=("negative", "positive")
    ),
    IMAGE: ImageClassifierConfig(encoder=ENCODER, image_shape=IMAGE_SHAPE, num_frequency_bands=2),
    MLM: MaskedLanguageModelConfig(
        encoder=ENCODER, decoder=DecoderConfig(num_cross_attention_heads=2), vocab_size=_VOCAB_SIZE, max_seq_len=24
    ),
}


def save(kind: str, folder: Path) -> Path:
    """Write a model folder, and return it."""
    config = CONFIGS[kind]
    save_model(folder, build_model(config), config, None if kind == IMAGE else train_tokenizer(_TEXTS, _VOCAB_SIZE))
    return folder
