"""Our implementation, as the pipelines train and use it."""

from __future__ import annotations

from dataclasses import replace

import torch
from tokenizers import Tokenizer
from torch import Tensor

from perceiver import allocator
from perceiver.build import build_model
from perceiver.config import MaskedLanguageModelConfig, ModelConfig
from perceiver.inference import Predictor
from perceiver.model import PerceiverEncoder, PerceiverIO, PerceiverMLM
from perceiver.optim import build_optimizer
from perceiver.tasks.base import Task
from perceiver.tasks.image_classifier import ImageClassifier
from perceiver.tasks.masked_language_model import MaskedLanguageModel
from perceiver.tasks.text_classifier import TextClassifier
from tests.benchmarks.implementation import Batch, Implementation, training_step
from tests.benchmarks.workloads import Workload, num_classes


def build_ours(workload: Workload, device: str, tokenizer: Tokenizer | None = None) -> Implementation:
    """Build our implementation of a workload with new weights.

    Args:
        workload: What is to be done.
        device: cpu or cuda.
        tokenizer: Tokenizer of the texts, where there are texts rather than tokens.
    """
    model = build_model(workload.model)
    if not workload.trains:
        return _inference(model.to(device), workload.model, tokenizer)
    return train_ours(model, workload, device)


def train_ours(model: PerceiverIO | PerceiverMLM, workload: Workload, device: str) -> Implementation:
    """Make the training step of a model of ours."""
    if device == "cpu":
        allocator.keep_freed_memory()
    task = _task(model, workload).to(device)
    optimizer = build_optimizer(task.model, workload.optimizer)

    def loss(batch: Batch) -> Tensor:
        terms = task.loss_terms(batch)
        return terms.total / terms.num_terms.clamp(min=1)

    task.train()
    return Implementation(task.model, training_step(loss, optimizer, device), order="like length")


def keep_output(ours: Implementation) -> Implementation:
    """Let the step of a classifier on a frozen encoder start from what the encoder made of the texts before."""
    encoder = ours.model.encoder
    assert isinstance(encoder, PerceiverEncoder)

    def encode(batch: Batch) -> Batch:
        with torch.no_grad():
            return {"latents": encoder(batch["input_ids"], batch["pad_mask"]), "labels": batch["labels"]}

    return replace(ours, convert=encode)


def _task(model: PerceiverIO | PerceiverMLM, workload: Workload) -> Task:
    steps = 1  # of the schedule, which is constant
    if isinstance(model, PerceiverMLM):
        assert isinstance(workload.model, MaskedLanguageModelConfig)
        return MaskedLanguageModel(model, workload.model.vocab_size, workload.optimizer, steps)
    classes = num_classes(workload.model)
    if workload.name == "images":
        return ImageClassifier(model, classes, workload.optimizer, steps)
    return TextClassifier(model, classes, workload.optimizer, steps, freeze_encoder=workload.name == "frozen")


def _inference(model: PerceiverIO | PerceiverMLM, config: ModelConfig, tokenizer: Tokenizer | None) -> Implementation:
    predictor = Predictor(model.eval(), config, tokenizer)

    def work(batch: Batch) -> object:
        with torch.autocast("cuda", torch.bfloat16, enabled=next(model.parameters()).is_cuda):
            return predictor.fill(batch["texts"]) if "texts" in batch else predictor.classify(batch["images"])

    return Implementation(model, work)
