"""Reads Lightning checkpoints of krasserm/perceiver-io without running anything that they hold."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from perceiver.errors import UserError

# Checkpoints refer to these beside tensors: parsed arguments, callbacks, an optimizer that hangs on its scheduler. A
# stand-in is put in the place of each, none is imported or called. All else that could run code is refused.
_HARMLESS = ("argparse.Namespace", "builtins.dict", "builtins.getattr", "collections.defaultdict")
_HARMLESS_PACKAGES = ("pytorch_lightning.", "torch.optim.", "jsonargparse.", "perceiver.")


class _StandIn:
    """An object of any class, which has that object's attributes and does nothing."""

    def __new__(cls, *args: Any) -> _StandIn:
        return super().__new__(cls)


def _stand_in_dict(*args: Any) -> dict[Any, Any]:
    return {}


@dataclass(frozen=True)
class ReferenceCheckpoint:
    """A model of the reference.

    Attributes:
        path: File that it was read from.
        state: Its parameters, by names that begin with `encoder.` or `decoder.`.
        is_mlm: Whether it is a masked language model, not a classifier.
        settings: What it was trained with, as num_encoder_layers.
    """

    path: str
    state: Mapping[str, Tensor]
    is_mlm: bool
    settings: Mapping[str, Any]

    def shape(self, name: str, num_axes: int) -> tuple[int, ...]:
        """Return the shape of a parameter.

        Raises:
            UserError: If there is no such parameter, or it has another number of axes.
        """
        if name not in self.state or self.state[name].ndim != num_axes:
            raise UserError(
                f"{self.path} is not a checkpoint of the first versions of krasserm/perceiver-io: "
                f"it has no parameter {name} with {num_axes} axes"
            )
        return tuple(self.state[name].shape)


def read_checkpoint(path: str) -> ReferenceCheckpoint:
    """Read a checkpoint.

    Raises:
        UserError: If it can't be read, could run code, or is not one of Lightning.
    """
    checkpoint = _load(path)
    state = checkpoint.get("state_dict") if isinstance(checkpoint, dict) else None
    if not isinstance(state, dict) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise UserError(f"{path} is not a checkpoint of PyTorch Lightning: it has no state_dict")
    state = {str(name).removeprefix("model."): tensor for name, tensor in state.items()}
    is_mlm = any(name.startswith("encoder.") for name in state)
    settings = dict(_flatten(checkpoint.get("hyper_parameters")))
    return ReferenceCheckpoint(path, {_full_name(name): state[name] for name in state}, is_mlm, settings)


def _load(path: str) -> Any:
    if not Path(path).is_file():
        raise UserError(f"{path} does not exist: name a checkpoint file (.ckpt) of PyTorch Lightning")
    try:
        references = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        with torch.serialization.safe_globals([(_stand_in(path, name), name) for name in references]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except UserError:
        raise
    except Exception as error:  # of any kind, as the file can hold anything
        raise UserError(f"{path} can't be read: name a checkpoint file (.ckpt) of PyTorch Lightning") from error


def _stand_in(path: str, name: str) -> Callable[..., Any]:
    if name not in _HARMLESS and not name.startswith(_HARMLESS_PACKAGES):
        raise UserError(f"{path} refers to {name}, which could run code: save a checkpoint without it")
    return _stand_in_dict if name == "collections.defaultdict" else _StandIn


def _flatten(saved: Any) -> Iterator[tuple[str, Any]]:
    """Yield settings, which versions of the reference saved as keywords, as parsed arguments or in two sections."""
    if isinstance(saved, _StandIn):
        saved = vars(saved)
    if not isinstance(saved, dict):
        return
    for name, value in saved.items():
        if name in ("encoder", "decoder"):
            # num_layers of the section encoder is num_encoder_layers elsewhere.
            for part, setting in _flatten(value):
                yield f"num_{name}_{part.removeprefix('num_')}", setting
        elif isinstance(value, _StandIn):
            yield from _flatten(value)
        else:
            yield str(name), value


def _full_name(name: str) -> str:
    """Name a classifier's parameters, 0.* and 1.*, as those of a masked language model."""
    part, dot, rest = name.partition(".")
    return {"0": "encoder", "1": "decoder"}.get(part, part) + dot + rest
