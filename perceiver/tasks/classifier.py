"""Classification of texts and of images by cross-entropy."""

from __future__ import annotations

from typing import Self

import torch.nn.functional as F
from torch import Tensor
from torchmetrics.classification import MulticlassAccuracy

from perceiver.config import OptimizerConfig
from perceiver.masking import IGNORED_LABEL
from perceiver.model import PerceiverIO
from perceiver.tasks.base import Batch, Evaluation, LossTerms, Task
from perceiver.tasks.tested import PredictionsPerSample, SamplePredictions


class Classifier(Task):
    """Trains a PerceiverIO that returns one logit per class. Subclasses say what of a batch goes into it.

    Args:
        model: The network.
        num_classes: Number of classes.
        optimizer: Optimizer and schedule.
        total_steps: Optimizer steps of the whole run.
        seed: Seed of the dropout masks.
        freeze_encoder: Whether the encoder keeps its weights and runs without dropout.

    Attributes:
        predictions: What was predicted in the last test, of all ranks; None before.
    """

    model: PerceiverIO
    predictions: SamplePredictions | None = None

    def __init__(
        self,
        model: PerceiverIO,
        num_classes: int,
        optimizer: OptimizerConfig,
        total_steps: int,
        seed: int = 0,
        freeze_encoder: bool = False,
    ) -> None:
        accuracy = MulticlassAccuracy(num_classes, average="micro", ignore_index=-100)
        super().__init__(model, optimizer, accuracy, total_steps, seed)
        self._tested = PredictionsPerSample()
        self.freeze_encoder = freeze_encoder
        if freeze_encoder:
            model.encoder.requires_grad_(False)

    def train(self, mode: bool = True) -> Self:
        """Switch to training or evaluation; a frozen encoder always stays in evaluation."""
        super().train(mode)
        if self.freeze_encoder:
            self.model.encoder.eval()
        return self

    def logits(self, batch: Batch) -> Tensor:
        """Return the logits (B, num_classes) of a batch."""
        raise NotImplementedError

    def loss_terms(self, batch: Batch) -> LossTerms:
        """Sum of the cross-entropies of the samples; a term is a sample."""
        return self.evaluate(batch).loss

    def count_terms(self, batch: Batch) -> Tensor:
        """Number of samples."""
        return (batch["labels"] != IGNORED_LABEL).sum()

    def evaluate(self, batch: Batch) -> Evaluation:
        """The same, with the predicted class and the logits of each sample."""
        logits, labels = self.logits(batch), batch["labels"]
        total = F.cross_entropy(logits.float(), labels, reduction="sum", ignore_index=IGNORED_LABEL)
        return Evaluation(LossTerms(total, (labels != IGNORED_LABEL).sum()), logits.argmax(dim=-1), labels, logits)

    def keep_tested(self, batch: Batch, evaluation: Evaluation) -> None:
        """Keep the prediction for each sample."""
        assert evaluation.logits is not None
        self._tested.update(batch["sample_ids"], evaluation.labels, evaluation.logits)

    def gather_tested(self) -> None:
        """Let all ranks have the predictions of all."""
        self.predictions = self._tested.compute()
        self._tested.reset()
