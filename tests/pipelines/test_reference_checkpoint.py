"""Checkpoints are read whatever training left in them, but for code, which does not run."""

from __future__ import annotations

import os
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.perceiver.test_convert import reference_model
from tests.pipelines.test_convert import IMAGE_CLASSIFIER, check_parity, keywords, mistake, run, save_checkpoint


@dataclass
class EncoderConfig:
    """A class of the reference."""

    num_layers: int = 4
    num_cross_attention_heads: int = 3
    num_self_attention_heads: int = 3


class ModelCheckpoint:
    """A class of Lightning."""


def _gpus_arg_default() -> None:
    """A function of Lightning."""


def pretend_from(module: str, thing: Any, patch: pytest.MonkeyPatch) -> None:
    """Make a class or function one of a module that may not exist."""
    package, _, _ = module.partition(".")
    patch.setitem(sys.modules, package, sys.modules.get(package, types.ModuleType(package)))
    patch.setitem(sys.modules, module, types.ModuleType(module))
    patch.setattr(sys.modules[module], thing.__name__, thing, raising=False)
    patch.setattr(thing, "__module__", module)


def scheduler_method() -> Callable[[], Any]:
    """A method whose scheduler holds an optimizer, as the state of a OneCycleLR of torch 1.10 has it."""
    parameter = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.Adam([parameter])
    optimizer.state[parameter] = {"exp_avg": torch.ones(2)}
    scheduler = torch.optim.lr_scheduler.OneCycleLR.__new__(torch.optim.lr_scheduler.OneCycleLR)
    scheduler.optimizer = optimizer
    return scheduler.get_last_lr


def test_what_training_left_behind_does_no_harm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reference = reference_model(IMAGE_CLASSIFIER)
    path = tmp_path / "a.ckpt"
    with monkeypatch.context() as patch:
        pretend_from("perceiver.model.lightning", EncoderConfig, patch)
        pretend_from("pytorch_lightning.callbacks.model_checkpoint", ModelCheckpoint, patch)
        pretend_from("pytorch_lightning.utilities.argparse", _gpus_arg_default, patch)
        save_checkpoint(
            path,
            reference.state_dict(),
            {"encoder": EncoderConfig(), "decoder": {"num_cross_attention_heads": 2}, "tpu_cores": _gpus_arg_default},
            callbacks={ModelCheckpoint: {"monitor": "val_loss", "best_model_score": torch.tensor(0.5)}},
            lr_schedulers=[{"anneal_func": scheduler_method(), "total_steps": 5}],
        )
    references = set(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    assert {"builtins.getattr", "collections.defaultdict", "torch.optim.adam.Adam"} < references
    assert {"pytorch_lightning.utilities.argparse._gpus_arg_default"} < references
    check_parity(run(path, tmp_path / "out"), reference, IMAGE_CLASSIFIER)


class Code:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


class Command(Code):
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch '{self.path}'",)


@pytest.mark.parametrize(("kind", "name"), [(Code, "pathlib"), (Command, "posix.system")])
def test_code_in_a_checkpoint_does_not_run(
    kind: type[Code], name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = tmp_path / "ran"
    state = reference_model(IMAGE_CLASSIFIER).state_dict()
    path = save_checkpoint(tmp_path / "a.ckpt", state, keywords(IMAGE_CLASSIFIER), callbacks=[kind(trace)])
    message = mistake([path, tmp_path / "out"], tmp_path, capsys)
    assert "a.ckpt refers to " in message
    assert name in message
    assert not trace.exists()
    torch.load(path, weights_only=False)
    assert trace.exists(), "the checkpoint does hold code"


@pytest.mark.parametrize("content", [b"", b"weights", {"weights": torch.ones(2)}, {"state_dict": 1}, [1]])
def test_other_files_are_no_checkpoints(content: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.ckpt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    message = mistake([path, tmp_path / "out"], tmp_path, capsys)
    assert "a.ckpt can't be read" in message or "a.ckpt is not a checkpoint of PyTorch Lightning" in message


def test_missing_and_cut_checkpoints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = save_checkpoint(tmp_path / "a.ckpt", reference_model(IMAGE_CLASSIFIER).state_dict())
    assert "no.ckpt does not exist" in mistake([tmp_path / "no.ckpt", tmp_path / "out"], tmp_path, capsys)
    assert "does not exist" in mistake([tmp_path, tmp_path / "out"], tmp_path, capsys)
    path.write_bytes(path.read_bytes()[:-100])
    assert "can't be read" in mistake([path, tmp_path / "out"], tmp_path, capsys)
