"""Two workers compute the gradients and the evaluation of one."""

from __future__ import annotations

import os
import random
import warnings
from typing import Any

import datasets
import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from tokenizers import Tokenizer, models

from perceiver.build import build_model
from perceiver.config import (
    DecoderConfig,
    EncoderConfig,
    MaskedLanguageModelConfig,
    MaskingConfig,
    OptimizerConfig,
    TextClassifierConfig,
    TextDataConfig,
)
from perceiver.data.sampling import Loading
from perceiver.data.text import TextData
from perceiver.data.text_module import TextDataModule
from perceiver.tasks.base import Task
from perceiver.tasks.masked_language_model import MaskedLanguageModel
from perceiver.tasks.text_classifier import TextClassifier
from tests.distributed import run_distributed

VOCAB_SIZE = 40
ENCODER = EncoderConfig(
    num_latents=4, num_latent_channels=8, num_layers=2, num_self_attention_layers_per_block=1,
    num_cross_attention_heads=2, num_self_attention_heads=2,
)  # fmt: skip
DECODER = DecoderConfig(num_cross_attention_heads=2)


def make_split(num_texts: int, seed: int) -> datasets.Dataset:
    """Make texts of very unequal lengths, so that workers hold unequal numbers of masked tokens."""
    generator = random.Random(seed)
    ids = [[generator.randrange(3, VOCAB_SIZE) for _ in range(generator.choice([1, 2, 30]))] for _ in range(num_texts)]
    features = datasets.Features(
        input_ids=datasets.Sequence(datasets.Value("int32")),
        length=datasets.Value("int32"),
        label=datasets.Value("int64"),
    )
    rows = {"input_ids": ids, "length": [len(i) for i in ids], "label": [sum(i) % 2 for i in ids]}
    return datasets.Dataset.from_dict(rows, features=features)


def make_data(kind: str, rank: int, world_size: int) -> TextDataModule:
    vocabulary = {token: i for i, token in enumerate(["[PAD]", "[UNK]", "[MASK]", *map(str, range(3, VOCAB_SIZE))])}
    texts = TextData(
        class_names=("neg", "pos"),
        tokenizer=Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]")),
        fingerprint="",
        synthetic=True,
        train=make_split(21, 0),
        validation=make_split(7, 1),
        test=make_split(5, 2),
        unlabelled=None,
    )
    masking = MaskingConfig() if kind == "mlm" else None
    loading = Loading(batch_size=4, seed=0, rank=rank, world_size=world_size)
    return TextDataModule(texts, TextDataConfig(length_pool=1), loading, masking)


def make_task(kind: str) -> Task:
    torch.manual_seed(0)
    optimizer = OptimizerConfig(learning_rate=1e-2)
    if kind == "mlm":
        config = MaskedLanguageModelConfig(ENCODER, DECODER, vocab_size=VOCAB_SIZE, max_seq_len=32)
        return MaskedLanguageModel(build_model(config), VOCAB_SIZE, optimizer, total_steps=6)
    config = TextClassifierConfig(ENCODER, DECODER, vocab_size=VOCAB_SIZE, max_seq_len=32)
    return TextClassifier(build_model(config), 2, optimizer, total_steps=6)


class Gradients(pl.Callback):
    """Keeps the gradients and the reported loss of every step."""

    def __init__(self) -> None:
        self.gradients: list[np.ndarray] = []
        self.losses: list[float] = []

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        gradients = [p.grad for p in pl_module.parameters() if p.requires_grad]
        self.gradients.append(torch.cat([g.flatten() for g in gradients]).numpy().copy())

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        self.losses.append(pl_module.step_numbers[0].item())


def train(kind: str) -> tuple[np.ndarray, list[float], dict[str, float]]:
    """Train one epoch on all ranks; return the gradients of all steps, the losses and the evaluation."""
    warnings.filterwarnings("ignore")
    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    kept = Gradients()
    trainer = pl.Trainer(
        accelerator="cpu", devices=world_size, strategy="ddp" if world_size > 1 else "auto", precision="64-true",
        max_epochs=1, callbacks=[kept], use_distributed_sampler=False, num_sanity_val_steps=0, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    task, data = make_task(kind), make_data(kind, rank, world_size)
    trainer.fit(task, datamodule=data)
    metrics = {name: value.item() for name, value in trainer.callback_metrics.items()}
    trainer.test(task, datamodule=data, verbose=False)
    metrics |= {name: value.item() for name, value in trainer.callback_metrics.items()}
    return np.stack(kept.gradients), kept.losses, metrics


@pytest.mark.parametrize("kind", ["mlm", "classifier"])
def test_two_workers_compute_the_gradients_losses_and_metrics_of_one(kind: str) -> None:
    gradients, losses, metrics = train(kind)
    results = run_distributed(train, 2, kind)
    assert len(gradients) == 6  # 21 samples in batches of 4: the last batch has 1, so that one rank gets none
    for other_gradients, other_losses, other_metrics in results:
        np.testing.assert_allclose(other_gradients, gradients, rtol=1e-6, atol=1e-12)
        np.testing.assert_allclose(other_losses, losses, rtol=1e-6)
        assert other_metrics == pytest.approx(metrics, rel=1e-6)
    assert metrics["val_samples"] == 7
    assert metrics["test_samples"] == 5


def test_masked_counts_of_the_two_workers_differ() -> None:
    """Guards the test above: with equal counts, a mean of the ranks' means would pass it too."""
    batches = [list(make_data("mlm", rank, 2).train_dataloader()) for rank in range(2)]
    counts = [[(batch["labels"] != -100).sum().item() for batch in of_rank] for of_rank in batches]
    assert counts[0] != counts[1]
