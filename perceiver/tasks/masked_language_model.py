"""Masked language modeling: restore the tokens that were masked (BERT, arXiv:1810.04805)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor
from torchmetrics.classification import MulticlassAccuracy

from perceiver.config import OptimizerConfig
from perceiver.inference import Fills, fill_masks
from perceiver.masking import Selection
from perceiver.model import PerceiverMLM
from perceiver.tasks.base import Batch, Evaluation, LossTerms, Task
from perceiver.tasks.tested import AccuracyPerToken, TokenCounts

_EVALUATED_ROWS = 256


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

    Attributes:
        token_counts: How often each token was masked and restored in the last test, by all ranks; None before.
    """

    model: PerceiverMLM
    token_counts: TokenCounts | None = None

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
        self._tested = AccuracyPerToken(vocab_size)
        self.tokenizer = tokenizer
        self.samples = tuple(samples)
        self.num_predictions = num_predictions
        self.fills: list[Fills] = []

    def loss_terms(self, batch: Batch) -> LossTerms:
        """Sum of the cross-entropies of the masked tokens; a term is a masked token."""
        decoded, labels = self._decode(batch)
        total = self.model.decoder.output_adapter.cross_entropy(decoded, labels)
        return LossTerms(total, decoded.new_tensor(len(labels)))

    def count_terms(self, batch: Batch) -> Tensor:
        """Number of masked tokens."""
        return batch["label_places"].new_tensor(len(batch["label_places"]))

    def evaluate(self, batch: Batch) -> Evaluation:
        """The same, with the likeliest token for each masked one."""
        decoded, labels = self._decode(batch)
        total, predictions = decoded.new_zeros((), dtype=torch.float32), []
        for rows, row_labels in zip(decoded.split(_EVALUATED_ROWS), labels.split(_EVALUATED_ROWS), strict=True):
            logits = self.model.decoder.output_adapter(rows).float()  # (rows, vocab_size): for all at once a lot
            total += F.cross_entropy(logits, row_labels, reduction="sum")
            predictions.append(logits.argmax(dim=-1))
        return Evaluation(LossTerms(total, total.new_tensor(len(labels))), torch.cat(predictions), labels)

    def keep_tested(self, batch: Batch, evaluation: Evaluation) -> None:
        """Count the masked tokens."""
        self._tested.update(evaluation.predictions, evaluation.labels)

    def gather_tested(self) -> None:
        """Let all ranks have the counts of all."""
        self.token_counts = self._tested.compute()
        self._tested.reset()

    def _decode(self, batch: Batch) -> tuple[Tensor, Tensor]:
        selection = Selection(batch["label_indices"], batch["label_places"])
        return self.model.decode_masked(batch["input_ids"], batch["labels"], batch["pad_mask"], selection)

    def on_validation_epoch_end(self) -> None:
        """Log the metrics and fill the sample texts."""
        super().on_validation_epoch_end()
        if self.samples and self.tokenizer is not None:
            self.fills = fill_masks(self.model, self.tokenizer, self.samples, self.num_predictions)
