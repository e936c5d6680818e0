"""Small models with random weights, saved without training."""

from __future__ import annotations

from pathlib import Path

import torch

from perceiver.build import build_model
from perceiver.config import (
    EncoderConfig,
    ImageClassifierConfig,
    MaskedLanguageModelConfig,
    ModelConfig,
    TextClassifierConfig,
)
from perceiver.data.tokenizer import train_tokenizer, vocab_size_of
from perceiver.saving import save_model

ENCODER = EncoderConfig(4, 16, 1, 1, 2, 2)
TOKENIZER = train_tokenizer(["what a good film", "what a bad film it was", "film number 0 1 2 3 4 5 6 7 8 9"] * 2, 120)
TEXT = {"encoder": ENCODER, "vocab_size": vocab_size_of(TOKENIZER), "max_seq_len": 12}
CLASSIFIER = TextClassifierConfig(**TEXT, class_names=("neg", "pos"))
MLM = MaskedLanguageModelConfig(**TEXT)
IMAGES = ImageClassifierConfig(
    encoder=ENCODER, image_shape=(6, 5, 1), num_frequency_bands=2, class_names=("a", "b", "c")
)


def save(folder: Path, config: ModelConfig) -> Path:
    """Save a model as a stage's model/ folder, and return the stage's folder."""
    torch.manual_seed(0)
    tokenizer = None if isinstance(config, ImageClassifierConfig) else TOKENIZER
    save_model(folder / "model", build_model(config), config, tokenizer)
    return folder
