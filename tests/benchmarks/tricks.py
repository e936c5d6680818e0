"""What makes our implementation fast, and how to do without each of these things in turn.

A trick is taken away in the process that measures, by putting something plainer in the place of a function: a predicate
that says no, or the textbook form. Add a trick by adding a line to TRICKS; one whose function does not exist (yet, or
any more) is left out of the measurement.
"""

from __future__ import annotations

import functools
import pkgutil
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from einops import repeat
from torch import Tensor, nn

from perceiver.adapter import ImageInputAdapter
from perceiver.attention import CrossAttentionLayer
from perceiver.masking import IGNORED_LABEL
from perceiver.tasks.base import Batch, LossTerms
from perceiver.tasks.masked_language_model import MaskedLanguageModel
from tests.benchmarks.implementation import Order, Padding

_TEXTS = ("mlm", "frozen", "joint")
_ALL = (*_TEXTS, "images")


class Count:
    """Counts the calls of functions. A Mock would keep their arguments, and with these the memory that is measured."""

    def __init__(self) -> None:
        self.calls = 0

    def counted(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function with its calls counted."""

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            return function(*args, **kwargs)

        return call


@dataclass(frozen=True)
class Trick:
    """One thing that makes our implementation faster.

    Attributes:
        description: What it is, for the page.
        workloads: Workloads that it is for.
        without: Takes it away for as long as the context is open; yields the count of calls, if any.
        needs: Dotted name of the function that is replaced (none: it always exists).
        order: Order of the samples without it (none: as ever).
        padding: Padding without it (none: as ever).
    """

    description: str
    workloads: tuple[str, ...]
    without: Callable[[], AbstractContextManager[Count | None]] = nullcontext
    needs: str | None = None
    order: Order | None = None
    padding: Padding | None = None

    @property
    def exists(self) -> bool:
        """Whether the function that it is about exists."""
        if self.needs is None:
            return True
        try:
            pkgutil.resolve_name(self.needs)
        except (ImportError, AttributeError):
            return False
        return True


@contextmanager
def replaced(target: str, plainer: Callable[..., Any]) -> Iterator[Count]:
    """Put another function in the place of one of ours, in each module of ours that has it.

    Args:
        target: Dotted name of the function, where it is defined.
        plainer: What is called instead.
    """
    original = pkgutil.resolve_name(target)
    count = Count()
    counted = count.counted(plainer)
    with ExitStack() as stack:
        for name, module in list(sys.modules.items()):
            if name.partition(".")[0] not in ("perceiver", "pipelines"):
                continue
            for attribute in [key for key, value in vars(module).items() if value is original]:
                stack.enter_context(patch.object(module, attribute, counted))
        yield count


def _predicate(name: str, description: str, workloads: tuple[str, ...]) -> Trick:
    """Make a trick of a predicate that decides whether it is used."""
    return Trick(description, workloads, lambda: replaced(name, lambda *args, **kwargs: False), needs=name)


def _function(name: str, plainer: Callable[..., Any], description: str, workloads: tuple[str, ...]) -> Trick:
    """Make a trick of a function that has a plainer form with the same arguments."""
    return Trick(description, workloads, lambda: replaced(name, plainer), needs=name)


def _plain_linear_cross_entropy(x: Tensor, linear: nn.Linear, labels: Tensor) -> Tensor:
    return F.cross_entropy(linear(x).float(), labels, reduction="sum")


def _plain_linears(x: Tensor, *layers: nn.Linear) -> tuple[Tensor, ...]:
    return tuple(layer(x) for layer in layers)


def _decode_all_positions(task: MaskedLanguageModel, batch: Batch) -> LossTerms:
    logits, _ = task.model(batch["input_ids"], batch["pad_mask"], masking=False)
    labels = batch["labels"]
    total = F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORED_LABEL, reduction="sum")
    return LossTerms(total, (labels != IGNORED_LABEL).sum())


@contextmanager
def _all_positions() -> Iterator[Count]:
    count = Count()
    with patch.object(MaskedLanguageModel, "loss_terms", count.counted(_decode_all_positions)):
        yield count


@contextmanager
def _project_in_each_layer() -> Iterator[Count]:
    """Let each application of a cross-attention layer project the inputs to keys and values for itself."""
    project, forward = CrossAttentionLayer.project, CrossAttentionLayer.forward
    count = Count()

    def project_later(layer: CrossAttentionLayer, *inputs: Any) -> Any:
        return inputs

    def project_now(layer: CrossAttentionLayer, x: Tensor, inputs: Any, *args: Any, **kwargs: Any) -> Tensor:
        return forward(layer, x, project(layer, *inputs), *args, **kwargs)

    with (
        patch.object(CrossAttentionLayer, "project", project_later),
        patch.object(CrossAttentionLayer, "forward", count.counted(project_now)),
    ):
        yield count


@contextmanager
def _whole_images() -> Iterator[Count]:
    """Give the encoder pixels and position encodings concatenated, for each image."""
    inputs, count = ImageInputAdapter.inputs, Count()

    def concatenated(adapter: ImageInputAdapter, x: Tensor) -> Tensor:
        features, positions = inputs(adapter, x)
        return torch.cat([features, repeat(positions, "m c -> b m c", b=len(x))], dim=-1)

    with patch.object(ImageInputAdapter, "inputs", count.counted(concatenated)):
        yield count


@contextmanager
def _separate_adam() -> Iterator[Count]:
    """Let Adam be carried out as torch does it unless told otherwise."""
    adam, count = torch.optim.Adam, Count()

    def unfused(*args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        return adam(*args, **{**kwargs, "fused": None})

    with patch.object(torch.optim, "Adam", count.counted(unfused)):
        yield count


TRICKS: dict[str, Trick] = {
    "masked positions": Trick(
        "decode the masked positions alone (off: all positions, all logits)", ("mlm",), _all_positions
    ),
    "chunked loss": _function(
        "perceiver.loss.linear_cross_entropy",
        _plain_linear_cross_entropy,
        "cross-entropy in chunks that never hold all logits",
        ("mlm",),
    ),
    "like length": Trick(
        "batches of texts of like length, sorted within a pool of 50 batches", _TEXTS, order="shuffled"
    ),
    "trimmed padding": Trick(
        "texts padded to the longest of the batch (off: all to 512 tokens)", _TEXTS, padding="full"
    ),
    "shared keys": Trick(
        "keys and values of the layers that share weights computed once", _TEXTS, _project_in_each_layer
    ),
    "packed projections": _function(
        "perceiver.attention.packed_linear", _plain_linears, "projections of the same input in one product", _ALL
    ),
    "split images": Trick(
        "keys and values of images in a part per position and a part per pixel (off: of each pixel with its position)",
        ("images", "classify"),
        _whole_images,
        needs="perceiver.grid.GridInputs",
    ),
    "in place": _predicate(
        "perceiver.grid.attends_in_place",
        "attention to images that never writes their keys and values (off: written out of the two parts)",
        ("images", "classify"),
    ),
    "kept memory": _function(
        "perceiver.allocator.keep_freed_memory",
        lambda: False,
        "glibc keeps up to 64 MB of freed memory instead of giving it back (on a CPU)",
        _ALL,
    ),
    "fused Adam": Trick("Adam as one kernel for all parameters", _ALL, _separate_adam),
}
"""Each trick by its name."""
