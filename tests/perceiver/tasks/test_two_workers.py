"""Two workers compute the gradients and the evaluation of one."""

from __future__ import annotations

import functools
import itertools
import os
import random
import warnings
from typing import Any, NamedTuple

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
from perceiver.sharding import ShardedStrategy, is_sharded, whole
from perceiver.tasks.base import Task
from perceiver.tasks.masked_language_model import MaskedLanguageModel
from perceiver.tasks.tested import SamplePredictions, TokenCounts
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


def make_data(kind: str, rank: int, world_size: int, micro_batch_size: int | None = None) -> TextDataModule:
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
    loading = Loading(batch_size=4, seed=0, rank=rank, world_size=world_size, micro_batch_size=micro_batch_size)
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
    """Keeps the gradients, the reported loss and the number of tokens of every step."""

    def __init__(self) -> None:
        self.gradients: list[np.ndarray] = []
        self.losses: list[float] = []
        self.tokens: list[float] = []

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        gradients = whole([p.grad for p in pl_module.parameters() if p.requires_grad])
        self.gradients.append(torch.cat([g.flatten() for g in gradients]).numpy().copy())

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        self.losses.append(pl_module.step_numbers[0].item())
        self.tokens.append(pl_module.step_numbers[3].item())


class Outcome(NamedTuple):
    """What one epoch of training left: gradients, losses and tokens of all steps, the evaluation and a checkpoint."""

    gradients: np.ndarray
    losses: list[float]
    metrics: dict[str, float]
    weights: dict[str, np.ndarray]
    averages: list[np.ndarray]
    tokens: list[float]
    tested: SamplePredictions | TokenCounts


def train(kind: str, strategy: str = "ddp", micro_batch_size: int | None = None) -> Outcome:
    """Train one epoch on all ranks."""
    warnings.filterwarnings("ignore")
    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    kept = Gradients()
    several: Any = ShardedStrategy() if strategy == "fsdp" else strategy
    trainer = pl.Trainer(
        accelerator="cpu", devices=world_size, strategy=several if world_size > 1 else "auto", precision="64-true",
        max_epochs=1, callbacks=[kept], use_distributed_sampler=False, num_sanity_val_steps=0, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    task, data = make_task(kind), make_data(kind, rank, world_size, micro_batch_size)
    trainer.fit(task, datamodule=data)
    metrics = {name: value.item() for name, value in trainer.callback_metrics.items()}
    state = whole(task.state_dict())
    averages = [values["exp_avg"].numpy() for values in whole(trainer.optimizers[0].state_dict())["state"].values()]
    if is_sharded(task):
        task = make_task(kind)
        task.load_state_dict(state)
    trainer.test(task, datamodule=data, verbose=False)
    metrics |= {name: value.item() for name, value in trainer.callback_metrics.items()}
    weights = {name: value.numpy() for name, value in state.items()}
    tested = task.predictions if isinstance(task, TextClassifier) else task.token_counts
    return Outcome(np.stack(kept.gradients), kept.losses, metrics, weights, averages, kept.tokens, tested)


@functools.cache
def trained_alone(kind: str) -> Outcome:
    """Train in one process."""
    return train(kind)


def assert_alike(ours: Outcome, theirs: Outcome) -> None:
    np.testing.assert_allclose(ours.gradients, theirs.gradients, rtol=1e-6, atol=1e-12)
    np.testing.assert_allclose(ours.losses, theirs.losses, rtol=1e-6)
    assert ours.metrics == pytest.approx(theirs.metrics, rel=1e-6)
    assert ours.weights.keys() == theirs.weights.keys()
    assert ours.tokens == theirs.tokens
    for one, two in zip([*ours.averages, *ours.tested], [*theirs.averages, *theirs.tested], strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-6, atol=1e-12)


def train_in_all_ways(kind: str) -> list[Outcome]:
    """Train with shared gradients and with shared weights, batches whole and in parts."""
    return [train(kind, strategy, micro) for strategy, micro in itertools.product(("ddp", "fsdp"), (None, 1))]


@pytest.mark.parametrize("kind", ["mlm", "classifier"])
def test_two_workers_compute_the_gradients_losses_and_metrics_of_one(kind: str) -> None:
    alone = trained_alone(kind)
    assert len(alone.gradients) == 6  # 21 samples in batches of 4: the last batch has 1, so that one rank gets none
    for outcome in itertools.chain(*run_distributed(train_in_all_ways, 2, kind)):
        assert_alike(outcome, alone)
    assert alone.metrics["val_samples"] == 7
    assert alone.metrics["test_samples"] == 5
    assert sum(alone.tokens) == sum(make_split(21, 0)["length"])


def test_a_test_keeps_the_prediction_for_each_sample() -> None:
    alone = trained_alone("classifier")
    assert isinstance(alone.tested, SamplePredictions)
    ids, labels, predicted, probabilities = alone.tested
    assert ids.tolist() == list(range(5))
    assert labels.tolist() == make_split(5, 2)["label"]
    assert predicted.tolist() == probabilities.argmax(axis=1).tolist()
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-6)
    assert (labels == predicted).mean() == pytest.approx(alone.metrics["test_accuracy"])
    assert -np.log(probabilities[ids, labels]).mean() == pytest.approx(alone.metrics["test_loss"], rel=1e-5)


def test_a_test_counts_the_tokens_that_were_masked_and_restored() -> None:
    alone = trained_alone("mlm")
    assert isinstance(alone.tested, TokenCounts)
    labels = torch.cat([batch["labels"].flatten() for batch in make_data("mlm", 0, 1).test_dataloader()])
    assert alone.tested.masked.tolist() == torch.bincount(labels[labels != -100], minlength=VOCAB_SIZE).tolist()
    assert (alone.tested.restored <= alone.tested.masked).all()
    assert alone.tested.restored.sum() / alone.tested.masked.sum() == pytest.approx(alone.metrics["test_accuracy"])


@pytest.mark.parametrize("micro_batch_size", [1, 3])
@pytest.mark.parametrize("kind", ["mlm", "classifier"])
def test_a_batch_in_parts_gives_the_gradients_and_losses_of_the_whole(kind: str, micro_batch_size: int) -> None:
    assert_alike(train(kind, micro_batch_size=micro_batch_size), trained_alone(kind))


def test_masked_counts_of_the_two_workers_differ() -> None:
    """Guards the test above: with equal counts, a mean of the ranks' means would pass it too."""
    batches = [list(make_data("mlm", rank, 2).train_dataloader()) for rank in range(2)]
    counts = [[(batch["labels"] != -100).sum().item() for batch in of_rank] for of_rank in batches]
    assert counts[0] != counts[1]
