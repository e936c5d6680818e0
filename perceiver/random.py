"""Stateless randomness: every draw is a function of a key and of counters, never of what was drawn before.

A key names the run and the purpose, such as (seed, Stream.MASK, epoch); counters name the element, such as a sample's
id. So a resumed run draws what the uninterrupted run would have drawn, and a sample's mask depends neither on the batch
that the sample lies in nor on the number of workers. The hash chains the finaliser of SplitMix64 (Steele, Lea and
Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014): integer arithmetic, alike on every platform.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt

_INCREMENT = np.uint64(0x9E3779B97F4A7C15)  # odd, about 2**64 divided by the golden ratio


class Stream(IntEnum):
    """What a draw is for. Part of every key, so that draws for different purposes never coincide.

    The numbers are part of every run's results: add new ones, never change or reuse old ones.
    """

    ORDER = 1
    """Order of the samples in an epoch."""
    BATCH_ORDER = 2
    """Order of the batches in an epoch."""
    MASK = 3
    """Tokens masked in training."""
    EVALUATION_MASK = 4
    """Tokens masked in validation and test."""
    CROP = 5
    """Offsets of random crops."""
    DROPOUT = 6
    """Dropout masks of a training step."""
    VALIDATION_SPLIT = 7
    """Training samples that are held out for validation."""
    TEST_SPLIT = 8
    """Samples that become the test split where a data set has none."""
    LIMIT = 9
    """Samples that a limited split keeps."""


def uniform(key: Sequence[int], *counters: npt.ArrayLike) -> npt.NDArray[np.float32]:
    """Draw uniform numbers in [0, 1), one for each combination of counters.

    Args:
        key: Integers that name the run and the purpose; holds a `Stream`.
        *counters: Integers or arrays of integers that broadcast against each other. Their order matters; it is
            cheapest to let the smaller arrays come first.

    Returns:
        Multiples of 2**-24, in the shape that the counters broadcast to.
    """
    return (_hash(key, *counters) >> np.uint64(40)).astype(np.float32) * np.float32(2**-24)


def permutation(key: Sequence[int], size: int) -> npt.NDArray[np.int64]:
    """Draw an order of the integers below `size`.

    Args:
        key: Integers that name the run and the purpose; holds a `Stream`.
        size: Number of integers to order.
    """
    return np.argsort(_hash(key, np.arange(size)), kind="stable")


def generator(*key: int) -> np.random.Generator:
    """Make a NumPy generator, for draws of other distributions, that starts where the key says.

    Args:
        *key: Integers that name the run and the purpose; hold a `Stream`.
    """
    return np.random.Generator(np.random.Philox(key=_hash(key, np.arange(2))))


def step_seed(seed: int, step: int, rank: int) -> int:
    """Return the 63-bit seed for PyTorch's generator before a training step, so that dropout depends on these alone.

    Args:
        seed: Seed of the run.
        step: Optimizer steps before this one, counted from the start of the run.
        rank: Rank of the worker.
    """
    return int(_hash((seed, Stream.DROPOUT, step), rank)) >> 1


def _hash(key: Sequence[int], *counters: npt.ArrayLike) -> Any:
    """Mix key and counters into 64 bits each, in the shape that the counters broadcast to."""
    state = _INCREMENT
    # With the key's length first, a key and a counter never pass for a longer key.
    for number in (len(key), *key, *counters):
        with np.errstate(over="ignore"):
            state = _finalise(state + np.asarray(number, dtype=np.uint64) * _INCREMENT)
    return state


def _finalise(bits: Any) -> Any:
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))
