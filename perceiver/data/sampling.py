"""Which samples make up which batch: exact, the same for any number of workers, and resumable at any step.

`batch_size` is the global batch: workers share its rows, and what a batch holds is a function of (seed, epoch) alone.
No sample is dropped or repeated, neither in training nor in evaluation.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from torch.utils.data import Sampler

from perceiver.random import Stream, permutation

IntArray = npt.NDArray[np.integer]


class Index(NamedTuple):
    """A sample to read, and the epoch that its random changes (masks, crops) belong to."""

    epoch: int
    sample: int


@dataclass(frozen=True)
class Loading:
    """How a run reads its samples: batch size, seed, share of the work and place to go on from."""

    batch_size: int
    """Samples per training step over all workers together."""
    seed: int
    """Seed of the run."""
    rank: int = 0
    """Rank of this worker."""
    world_size: int = 1
    """Number of workers."""
    start_epoch: int = 0
    """Epoch of the first pass over the training samples, counted from 0."""
    start_step: int = 0
    """Step at which the pass over epoch `start_epoch` starts; all other passes start at 0."""
    eval_batch_size: int | None = None
    """Samples per evaluation step over all workers together (none: batch_size)."""
    micro_batch_size: int | None = None
    """Samples that a worker trains on at once: a larger share of a batch comes in parts (none: always whole)."""

    def __post_init__(self) -> None:
        assert 0 <= self.rank < self.world_size
        assert self.start_epoch >= 0
        assert self.start_step >= 0
        assert self.micro_batch_size is None or self.micro_batch_size > 0


def epoch_batches(
    num_samples: int, batch_size: int, seed: int, epoch: int, lengths: IntArray | None = None, pool: int = 1
) -> list[IntArray]:
    """Divide a training epoch into global batches: each sample once, in an order that seed and epoch determine.

    Args:
        num_samples: Number of samples.
        batch_size: Samples per global batch; one batch of an epoch may be smaller.
        seed: Seed of the run.
        epoch: Epoch, counted from 0.
        lengths: Length of each sample (none: all alike).
        pool: Batches whose samples are sorted by length together, before they are cut into batches (1: no sorting).
            The batches come in random order nevertheless.

    Returns:
        The sample ids of each batch; within a batch, lengths ascend where they were sorted.
    """
    order = permutation((seed, Stream.ORDER, epoch), num_samples)
    if lengths is None or pool == 1:
        return _cut(order, batch_size)
    pools = np.arange(num_samples) // (batch_size * pool)
    batches = _cut(order[np.lexsort((lengths[order], pools))], batch_size)
    return [batches[i] for i in permutation((seed, Stream.BATCH_ORDER, epoch), len(batches))]


def evaluation_batches(num_samples: int, batch_size: int, lengths: IntArray | None = None) -> list[IntArray]:
    """Divide samples into global batches for evaluation, the longest first, so that too large a batch fails at once.

    Args:
        num_samples: Number of samples.
        batch_size: Samples per global batch; the last batch may be smaller.
        lengths: Length of each sample (none: all alike).
    """
    order = np.arange(num_samples) if lengths is None else np.argsort(-lengths, kind="stable")
    return _cut(order, batch_size)


def _cut(order: IntArray, batch_size: int) -> list[IntArray]:
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


class GlobalBatchSampler(Sampler[list[Index]]):
    """Batch sampler that yields this worker's rows of each global batch; of a small batch these may be none.

    A pass covers the epoch named last: by the constructor, then by `set_epoch`. It is whole, except that the pass over
    `loading.start_epoch` starts at `loading.start_step`. A pass depends on no earlier one: Lightning makes the first
    iterator before it calls `set_epoch`, and with loader processes that iterator is read ahead at once.
    """

    def __init__(
        self,
        num_samples: int,
        loading: Loading,
        shuffle: bool = True,
        lengths: IntArray | None = None,
        pool: int = 1,
    ) -> None:
        """Set up the passes.

        Args:
            num_samples: Number of samples over all workers.
            loading: Batch size, seed, rank and start.
            shuffle: Whether this is for training; otherwise all passes are alike and belong to epoch 0.
            lengths: Length of each sample (none: all alike).
            pool: Batches whose samples are sorted by length together in training (1: no sorting).
        """
        self.num_samples = num_samples
        self.loading = loading
        self.shuffle = shuffle
        self.lengths = lengths
        self.pool = pool
        self.batch_size = loading.batch_size if shuffle else loading.eval_batch_size or loading.batch_size
        self._start = self._first_pass() if shuffle else (0, 0)
        self._epoch = self._start[0]

    @property
    def sampler(self) -> GlobalBatchSampler:
        """The object whose `set_epoch` Lightning calls, which it looks for under this name."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Let later passes cover this epoch; evaluation ignores it."""
        if self.shuffle:
            self._epoch = epoch

    def __len__(self) -> int:
        """Number of global batches of a whole epoch, wherever the first pass starts."""
        return -(-self.num_samples // self.batch_size)

    def __iter__(self) -> Iterator[list[Index]]:
        for rows, _ in self.shares():
            yield rows

    def shares(self) -> Iterator[tuple[list[Index], int]]:
        """Yield this worker's rows of each global batch, and in how many parts all workers train on theirs."""
        epoch = self._epoch
        first = self._start[1] if epoch == self._start[0] else 0
        for batch in self._batches(epoch)[first:]:
            rows = batch[self.loading.rank :: self.loading.world_size]
            yield [Index(epoch, sample) for sample in rows.tolist()], self._num_parts(len(batch))

    def _num_parts(self, batch_size: int) -> int:
        largest_share = -(-batch_size // self.loading.world_size)
        return -(-largest_share // (self.loading.micro_batch_size or largest_share))

    def _first_pass(self) -> tuple[int, int]:
        epoch, step = self.loading.start_epoch, self.loading.start_step
        assert step <= len(self)
        # A run that was saved after the last step of an epoch goes on with the next one.
        return (epoch + 1, 0) if step == len(self) else (epoch, step)

    def _batches(self, epoch: int) -> list[IntArray]:
        if self.shuffle:
            return epoch_batches(self.num_samples, self.batch_size, self.loading.seed, epoch, self.lengths, self.pool)
        return evaluation_batches(self.num_samples, self.batch_size, self.lengths)


class PartSampler(Sampler[list[list[Index]]]):
    """Batch sampler that yields this worker's rows of each global training batch in parts, as even as can be.

    Args:
        batches: Sampler of the global batches.
    """

    def __init__(self, batches: GlobalBatchSampler) -> None:
        self.batches = batches

    @property
    def sampler(self) -> GlobalBatchSampler:
        """The object whose `set_epoch` Lightning calls."""
        return self.batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[list[Index]]]:
        for rows, num_parts in self.batches.shares():
            ends = np.arange(num_parts + 1) * len(rows) // num_parts
            yield [rows[start:end] for start, end in itertools.pairwise(ends.tolist())]
