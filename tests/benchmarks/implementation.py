"""What all implementations have in common: a model, and the work that is timed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from perceiver.config import OptimizerConfig
from perceiver.masking import IGNORED_LABEL

Batch = dict[str, Any]
"""What one unit of work is done on: tensors, texts or an array of images, see tests.benchmarks.data."""
Rounds = dict[str, list[list[Batch]]]
"""For each order of the samples the batches of each round."""
Order = Literal["like length", "shuffled"]
Padding = Literal["longest", "full"]


@dataclass
class Implementation:
    """A model and what is timed.

    Attributes:
        model: The network.
        work: One training step, or one call of the trained model, on a batch.
        order: Whether texts of like length share a batch.
        padding: Whether texts are padded to the longest of the batch, or all of them to the model's limit.
        convert: Turns a batch into what work is done on, untimed, as it is done once for all epochs (none: as it is).
    """

    model: nn.Module
    work: Callable[[Batch], Any]
    order: Order = "shuffled"
    padding: Padding = "longest"
    convert: Callable[[Batch], Batch] | None = None

    @property
    def num_parameters(self) -> int:
        """Number of parameters, trained or not."""
        return sum(p.numel() for p in self.model.parameters())


def training_step(
    loss: Callable[[Batch], Tensor], optimizer: torch.optim.Optimizer, device: str
) -> Callable[[Batch], Tensor]:
    """Make a training step out of a loss, on a GPU in bf16 mixed precision, as `precision: auto` has it.

    Args:
        loss: Mean loss of a batch.
        optimizer: Optimizer of the parameters.
        device: cpu or cuda.
    """

    def step(batch: Batch) -> Tensor:
        optimizer.zero_grad()
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            value = loss(batch)
        value.backward()
        optimizer.step()
        return value.detach()

    return step


def usual_adam(model: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """Build the optimizer as one usually does, without a word on how it is carried out."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    return torch.optim.Adam(trainable, lr=config.learning_rate, weight_decay=config.weight_decay)


def pad_fully(batch: Batch, max_seq_len: int) -> Batch:
    """Pad the texts of a batch to max_seq_len tokens."""
    if "pad_mask" not in batch:
        return batch
    missing = max_seq_len - batch["input_ids"].shape[1]
    padded = {
        **batch,
        "input_ids": F.pad(batch["input_ids"], (0, missing), value=0),
        "pad_mask": F.pad(batch["pad_mask"], (0, missing), value=True),
    }
    if batch["labels"].ndim == 2:
        padded["labels"] = F.pad(batch["labels"], (0, missing), value=IGNORED_LABEL)
    return padded
