"""Text classification from scratch, from a masked language model's encoder or from another classifier."""

from __future__ import annotations

from torch import Tensor

from perceiver.tasks.base import Batch
from perceiver.tasks.classifier import Classifier


class TextClassifier(Classifier):
    """Classifies token sequences, or what a frozen encoder made of them before (see perceiver.data.encoded)."""

    def logits(self, batch: Batch) -> Tensor:
        """Return the logits (B, num_classes) of token ids (B, M) or of latents (B, N, D)."""
        if "latents" in batch:
            return self.model.decode(batch["latents"])
        return self.model(batch["input_ids"], batch["pad_mask"])
