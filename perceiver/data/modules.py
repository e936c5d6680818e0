"""What the data modules share: from prepared samples to the batches that one worker trains on or evaluates.

A batch is a dictionary of tensors. Its `sample_ids` (B,) number the samples within their split. Where a small global
batch leaves a worker without rows, it gets one filler row: sample id -1, a valid input, and nothing but ignored labels.
With `Loading.micro_batch_size`, a training batch is a list of such dictionaries, one for each part.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TypeVar

import numpy as np
import torch
from pytorch_lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import Dataset

from perceiver.data.loader import ReadAheadLoader
from perceiver.data.sampling import GlobalBatchSampler, Index, IntArray, Loading, PartSampler

Batch = dict[str, Tensor]
T = TypeVar("T")

FILLER_ID = -1


class BatchSource(Dataset[Batch], ABC):
    """The samples of one split, assembled a batch at a time."""

    lengths: IntArray | None = None

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def read(self, samples: IntArray, epoch: int) -> Batch:
        """Assemble a batch without its sample ids.

        Args:
            samples: Sample ids (B,).
            epoch: Epoch that masks and crops belong to.
        """

    @abstractmethod
    def filler(self) -> Batch:
        """Assemble a batch of one row that adds nothing to loss, metrics and gradient."""

    def __getitems__(self, indices: list[Index]) -> Batch:
        if not indices:
            return {"sample_ids": torch.tensor([FILLER_ID]), **self.filler()}
        samples = np.array([index.sample for index in indices])
        return {"sample_ids": torch.from_numpy(samples), **self.read(samples, indices[0].epoch)}


class _InParts(Dataset[list[Batch]]):
    """The samples of one split, assembled a batch of several parts at a time."""

    def __init__(self, source: BatchSource) -> None:
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    def __getitems__(self, parts: list[list[Index]]) -> list[Batch]:
        return [self.source.__getitems__(part) for part in parts]


class DataModule(LightningDataModule):
    """The three splits of a data set as loaders of exact global batches."""

    def __init__(
        self,
        train: BatchSource,
        validation: BatchSource,
        test: BatchSource,
        loading: Loading,
        loader_workers: int = 0,
        length_pool: int = 1,
    ) -> None:
        """Set up the loaders.

        Args:
            train: Samples to train on.
            validation: Samples that select the best epoch.
            test: Samples to report on.
            loading: Batch size, seed, rank and start.
            loader_workers: Processes that assemble batches (0: the training process itself).
            length_pool: Batches whose samples are sorted by length together in training.
        """
        super().__init__()
        self.train, self.validation, self.test = train, validation, test
        self.loading, self.loader_workers, self.length_pool = loading, loader_workers, length_pool

    @property
    def num_train(self) -> int:
        """Samples to train on."""
        return len(self.train)

    @property
    def num_validation(self) -> int:
        """Samples to validate on."""
        return len(self.validation)

    @property
    def num_test(self) -> int:
        """Samples to test on."""
        return len(self.test)

    @property
    def steps_per_epoch(self) -> int:
        """Global batches, and so optimizer steps, in a whole epoch."""
        return len(self._sampler(self.train, shuffle=True))

    def train_dataloader(self) -> ReadAheadLoader:
        """Load the training samples, in a new order each epoch."""
        return self._loader(self.train, shuffle=True)

    def val_dataloader(self) -> ReadAheadLoader:
        """Load the validation samples, always in the same order."""
        return self._loader(self.validation, shuffle=False)

    def test_dataloader(self) -> ReadAheadLoader:
        """Load the test samples, always in the same order."""
        return self._loader(self.test, shuffle=False)

    def _sampler(self, source: BatchSource, shuffle: bool) -> GlobalBatchSampler:
        return GlobalBatchSampler(len(source), self.loading, shuffle, source.lengths, self.length_pool)

    def _loader(self, source: BatchSource, shuffle: bool) -> ReadAheadLoader:
        batches = self._sampler(source, shuffle)
        in_parts = shuffle and self.loading.micro_batch_size is not None
        return ReadAheadLoader(
            _InParts(source) if in_parts else source,
            batch_sampler=PartSampler(batches) if in_parts else batches,
            collate_fn=_unchanged,
            num_workers=self.loader_workers,
            persistent_workers=self.loader_workers > 0,
            pin_memory=torch.cuda.is_available(),
        )


def _unchanged(batch: T) -> T:
    return batch
