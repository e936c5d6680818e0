"""Optimizers and learning rate schedules."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from perceiver.config import OptimizerConfig


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Split trainable parameters by whether decoupled weight decay applies to them.

    Only the weight matrices of linear layers decay; biases, norms, embeddings, latents, positions and output queries
    do not, since shrinking them to zero has no regularizing sense.

    Args:
        module: Module whose trainable parameters are grouped.
        weight_decay: Decay of the first group.
    """
    decayed = {id(m.weight) for m in module.modules() if isinstance(m, nn.Linear)}
    decayed -= {id(m.weight) for m in module.modules() if isinstance(m, nn.Embedding)}
    trainable = [p for p in module.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trainable if id(p) in decayed], "weight_decay": weight_decay},
        {"params": [p for p in trainable if id(p) not in decayed], "weight_decay": 0.0},
    ]


def build_optimizer(module: nn.Module, config: OptimizerConfig, fused: bool = True) -> torch.optim.Optimizer:
    """Build the optimizer of a module's trainable parameters.

    Args:
        module: Module to train; parameters without requires_grad are left out.
        config: Name, learning rate and weight decay; adam adds the decay to the gradient, adamw takes it from weights.
        fused: Whether one kernel updates all parameters, instead of one per operation and array. On a CPU it takes a
            quarter of the time.
    """
    if config.name == "adamw":
        return torch.optim.AdamW(parameter_groups(module, config.weight_decay), lr=config.learning_rate, fused=fused)
    trainable = [p for p in module.parameters() if p.requires_grad]
    return torch.optim.Adam(trainable, lr=config.learning_rate, weight_decay=config.weight_decay, fused=fused)


def can_fuse(precision: str) -> bool:
    """Tell whether the optimizer may be fused: not under float16, whose scaled gradients have to be clipped first."""
    return precision != "16-mixed"


def schedule_factor(config: OptimizerConfig, total_steps: int) -> Callable[[int], float]:
    """Return the learning rate at a step as a fraction of `config.learning_rate`.

    Args:
        config: Schedule and warm-up, in steps.
        total_steps: Optimizer steps of the whole run, at whose end a decaying schedule reaches zero.
    """

    def factor(step: int) -> float:
        if step < config.warmup_steps:
            return (step + 1) / (config.warmup_steps + 1)
        done = (step - config.warmup_steps) / max(1, total_steps - config.warmup_steps)
        if config.schedule == "linear":
            return max(0.0, 1.0 - done)
        if config.schedule == "cosine":
            return 0.5 * (1.0 + math.cos(math.pi * min(1.0, done)))
        return 1.0

    return factor
