"""What a test keeps beside its metrics: the prediction for each sample, and how well each token was restored."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat


class SamplePredictions(NamedTuple):
    """What a classifier said of each of n samples, in ascending order of their ids.

    Attributes:
        sample_ids: Number of each sample within its split, (n,).
        labels: True class, (n,).
        predicted: Predicted class, (n,).
        probabilities: Probability of every class, (n, num_classes).
    """

    sample_ids: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]
    predicted: npt.NDArray[np.int64]
    probabilities: npt.NDArray[np.float32]


class PredictionsPerSample(Metric):
    """Gathers predictions over batches and workers; they stay on the device until `compute`."""

    full_state_update = False

    ids: list[Tensor]
    probabilities: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("ids", default=[], dist_reduce_fx="cat")
        self.add_state("probabilities", default=[], dist_reduce_fx="cat")

    def update(self, sample_ids: Tensor, labels: Tensor, logits: Tensor) -> None:
        """Add a batch.

        Args:
            sample_ids: (B,); -1 where a row only fills the batch.
            labels: (B,).
            logits: (B, num_classes).
        """
        self.ids.append(torch.stack([sample_ids, labels, logits.argmax(dim=-1)], dim=1))
        self.probabilities.append(logits.float().softmax(dim=-1))

    def compute(self) -> SamplePredictions:
        """Return the predictions of all workers, without those for rows that only filled a batch."""
        ids, probabilities = dim_zero_cat(self.ids).cpu().numpy(), dim_zero_cat(self.probabilities).cpu().numpy()
        order = np.argsort(ids[:, 0], kind="stable")
        order = order[ids[order, 0] >= 0]
        sample_ids, labels, predicted = ids[order].T
        return SamplePredictions(sample_ids, labels, predicted, probabilities[order].astype(np.float32))


class TokenCounts(NamedTuple):
    """How often each token of the vocabulary was to be restored, and was.

    Attributes:
        masked: Times that the token was masked, (vocab_size,).
        restored: Times that it was the likeliest one, (vocab_size,).
    """

    masked: npt.NDArray[np.int64]
    restored: npt.NDArray[np.int64]


class AccuracyPerToken(Metric):
    """Counts restored tokens over batches and workers.

    Args:
        vocab_size: Number of tokens.
    """

    full_state_update = False

    counts: Tensor

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.add_state("counts", default=torch.zeros(2, vocab_size, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, predictions: Tensor, labels: Tensor) -> None:
        """Add masked tokens.

        Args:
            predictions: Likeliest token of each, (T,).
            labels: The token that was masked, (T,).
        """
        self.counts.index_add_(1, labels, torch.stack([torch.ones_like(labels), (predictions == labels).long()]))

    def compute(self) -> TokenCounts:
        """Return the counts of all workers together."""
        return TokenCounts(*self.counts.cpu().numpy())
