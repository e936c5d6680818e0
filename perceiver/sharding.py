"""Models whose parameters, gradients and optimizer states are divided among workers (fully sharded data parallelism).

What is saved and loaded is whole: a checkpoint does not tell how many workers wrote it, nor whether they shared it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils._pytree import tree_map

from perceiver.attention import SelfAttentionLayer


def shard(model: nn.Module, mesh: DeviceMesh) -> None:
    """Divide a model among the workers of a mesh, in place; each self-attention layer is gathered when it is used.

    The rest, which is what is computed with all the time, is gathered for a whole step.

    Args:
        model: A PerceiverIO or PerceiverMLM, with the same weights on all workers.
        mesh: The workers, in one dimension.
    """
    for module in model.modules():
        if isinstance(module, SelfAttentionLayer):
            fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh, reshard_after_forward=False)
    if hasattr(model, "decode_masked"):
        register_fsdp_forward_method(model, "decode_masked")


def is_sharded(model: nn.Module) -> bool:
    """Tell whether `shard` divided a model."""
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


def whole(state: Any, keep: bool = True) -> Any:
    """Gather what is divided in a nested state; all workers call it.

    Args:
        state: Dictionaries, lists and tuples of tensors and other values.
        keep: Whether this worker wants the result, on its CPU; None stands for the tensors otherwise.
    """

    def gather(value: Any) -> Any:
        if not isinstance(value, DTensor):
            return value
        gathered = value.full_tensor()
        return gathered.cpu() if keep else None

    return tree_map(gather, state)


def load_weights(module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Give a divided module its parts of whole weights, which each worker has."""
    current = module.state_dict()
    module.load_state_dict({name: _like(value, current[name]) for name, value in weights.items()})


def divided_optimizer_state(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parts of a whole optimizer state that belong to the parameters that an optimizer has."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    divided = {
        number: {name: _like(value, parameters[number]) for name, value in values.items()}
        for number, values in state["state"].items()
    }
    return {**state, "state": divided}


def _like(value: Any, model: Any) -> Any:
    """Divide a tensor as another of the same shape is; a scalar, such as a count of steps, stays whole."""
    if not isinstance(value, Tensor) or not isinstance(model, DTensor) or value.shape != model.shape:
        return value
    return distribute_tensor(value.to(model.device), model.device_mesh, model.placements)
