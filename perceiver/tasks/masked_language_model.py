"""Masked language modeling: restore the tokens that were masked (BERT, arXiv:1810.04805)."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from tokenizers import Tokenizer
from torchmetrics.classification import MulticlassAccuracy

from perceiver.config import OptimizerConfig
from perceiver.inference import Fills, fill_masks
from perceiver.model import PerceiverMLM
from perceiver.tasks.base import Batch, LossTerms, Task


class MaskedLanguageModel(Task):
    """Trains a PerceiverMLM on batches whose tokens are masked already, decoding the masked positions alone.

    Args:
        model: The network.
        vocab_size: Number of tokens.
        optimizer: Optimizer and schedule.
        total_steps: Optimizer steps of the whole run.
        seed: Seed of the dropout masks.
        tokenizer: Tokenizer of the sample texts.
        samples: Texts with [MASK], filled after every validation.
        num_predictions: Fills k per mask.
    """

    model: PerceiverMLM

    def __init__(
        self,
        model: PerceiverMLM,
        vocab_size: int,
        optimizer: OptimizerConfig,
        total_steps: int,
        seed: int = 0,
        tokenizer: Tokenizer | None = None,
        samples: Sequence[str] = (),
        num_predictions: int = 5,
    ) -> None:
        accuracy = MulticlassAccuracy(vocab_size, average="micro", ignore_index=-100)
        super().__init__(model, optimizer, accuracy, total_steps, seed)
        self.tokenizer = tokenizer
        self.samples = tuple(samples)
        self.num_predictions = num_predictions
        self.fills: list[Fills] = []

    def loss_terms(self, batch: Batch) -> LossTerms:
        """Sum of the cross-entropies of the masked tokens; a term is a masked token."""
        logits, labels = self.model.masked_logits(batch["input_ids"], batch["labels"], batch["pad_mask"])
        total = F.cross_entropy(logits.float(), labels, reduction="sum")
        return LossTerms(total, (labels != -100).sum(), logits.argmax(dim=-1), labels)

    def on_validation_epoch_end(self) -> None:
        """Log the metrics and fill the sample texts."""
        super().on_validation_epoch_end()
        if self.samples and self.tokenizer is not None:
            self.fills = fill_masks(self.model, self.tokenizer, self.samples, self.num_predictions)
