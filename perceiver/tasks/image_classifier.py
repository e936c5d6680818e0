"""Image classification from the pixels."""

from __future__ import annotations

from torch import Tensor

from perceiver.tasks.base import Batch
from perceiver.tasks.classifier import Classifier


class ImageClassifier(Classifier):
    """Classifies images (B, height, width, channels)."""

    def logits(self, batch: Batch) -> Tensor:
        """Return the logits (B, num_classes) of images."""
        return self.model(batch["images"])
