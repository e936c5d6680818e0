"""What the tests of stages share: configurations of tiny models on tiny data, and how to train and compare them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from perceiver.config import (
    DecoderConfig,
    EncoderConfig,
    ImageDataConfig,
    OptimizerConfig,
    TextDataConfig,
    TrainerConfig,
)
from pipelines.config import ImageClassifierStageConfig, MLMStageConfig, StageConfig, TextClassifierStageConfig
from pipelines.control import Link
from pipelines.stages import Prepared, StagePlan, prepare
from pipelines.storage import Storage
from pipelines.worker import run_stage

ENCODER = EncoderConfig(
    num_latents=4,
    num_latent_channels=16,
    num_layers=2,
    num_self_attention_layers_per_block=1,
    num_cross_attention_heads=2,
    num_self_attention_heads=2,
)
OPTIMIZER = OptimizerConfig(learning_rate=0.01, schedule="cosine")
# 56 samples make 4 steps an epoch, the last of them smaller; checkpoints within an epoch fall on steps 3 and 6.
TRAINER = TrainerConfig(max_epochs=2, batch_size=16, checkpoint_every_n_steps=3)
STEPS_PER_EPOCH, STEPS = 4, 8


def text_data(cache: Path, **changes: Any) -> TextDataConfig:
    settings = {"path": "toy_reviews", "limit": 56, "max_seq_len": 24, "vocab_size": 300, "length_pool": 2}
    return TextDataConfig(**{**settings, "cache_dir": str(cache), **changes})


def mlm_config(cache: Path, **changes: Any) -> MLMStageConfig:
    config = MLMStageConfig(
        data=text_data(cache),
        encoder=ENCODER,
        decoder=DecoderConfig(num_cross_attention_heads=2),
        dropout=0.2,
        samples=("this [MASK] was [MASK]",),
        num_predictions=2,
        optimizer=OPTIMIZER,
        trainer=TRAINER,
    )
    return replace(config, **changes)


def text_classifier_config(cache: Path, **changes: Any) -> TextClassifierStageConfig:
    config = TextClassifierStageConfig(
        data=text_data(cache), encoder=ENCODER, dropout=0.2, optimizer=OPTIMIZER, trainer=TRAINER
    )
    return replace(config, **changes)


def image_config(cache: Path, **changes: Any) -> ImageClassifierStageConfig:
    config = ImageClassifierStageConfig(
        data=ImageDataConfig(path="digits", limit=56, random_crop=6, cache_dir=str(cache)),
        encoder=ENCODER,
        num_frequency_bands=2,
        dropout=0.2,
        optimizer=OPTIMIZER,
        trainer=TRAINER,
    )
    return replace(config, **changes)


def train(config: StageConfig, folder: Path, prepared: Prepared | None = None) -> dict[str, Any]:
    """Train a stage in this process."""
    plan = StagePlan("stage", config, prepared or prepare(config), Storage.from_uri(folder))
    return run_stage(plan, Link(lambda state: None))


def weights(folder: Path) -> bytes:
    return (folder / "model" / "model.safetensors").read_bytes()


def journal(folder: Path) -> list[dict[str, Any]]:
    """Return the records of a stage without events, and without the times, which differ from run to run."""
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    times = ("time", "samples_per_second", "tokens_per_second", "data_wait", "checkpoint_wait")
    return [{k: v for k, v in record.items() if k not in times} for record in records if record["kind"] != "event"]


def events(folder: Path) -> list[dict[str, Any]]:
    """Return the events of a stage: restarts and the like, which an undisturbed run has none of."""
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [record for record in records if record["kind"] == "event"]
