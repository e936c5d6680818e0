"""Models whose parameters, gradients and optimizer states are divided among workers (fully sharded data parallelism).

What is saved and loaded is whole: a checkpoint does not tell how many workers wrote it, nor whether they shared it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pytorch_lightning.strategies import DDPStrategy
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
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
    for other_forward in ("decode", "decode_masked"):
        if hasattr(model, other_forward):
            register_fsdp_forward_method(model, other_forward)


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


def divided_optimizer_state(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parts of a whole optimizer state that belong to the parameters that an optimizer has."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    divided = {
        number: {name: _like(value, parameters[number]) for name, value in values.items()}
        for number, values in state["state"].items()
    }
    return {**state, "state": divided}


class ShardedStrategy(DDPStrategy):
    """Lightning's strategy of one process per device, for a task whose `model` is divided among the workers.

    Weights are loaded before they are divided; what is saved is whole.
    """

    def configure_ddp(self) -> None:
        """Divide the model where it would be wrapped."""
        task = self.lightning_module
        assert task is not None
        assert isinstance(task.model, nn.Module)
        shard(task.model, init_device_mesh(self.root_device.type, (self.world_size,)))

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Return the whole weights on rank 0; all ranks call it."""
        state: dict[str, Any] = whole(super().lightning_module_state_dict(), keep=self.is_global_zero)
        return state

    def optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """Return the whole state of an optimizer on rank 0; all ranks call it."""
        state: dict[str, Any] = whole(super().optimizer_state(optimizer), keep=self.is_global_zero)
        return state

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Give the optimizer its part of the state."""
        (optimizer,) = self.optimizers
        (state,) = checkpoint["optimizer_states"]
        optimizer.load_state_dict(divided_optimizer_state(optimizer, state))


def _like(value: Any, model: Any) -> Any:
    """Divide a tensor as another of the same shape is; a scalar, such as a count of steps, stays whole."""
    if not isinstance(value, Tensor) or not isinstance(model, DTensor) or value.shape != model.shape:
        return value
    return distribute_tensor(value.to(model.device), model.device_mesh, model.placements)
