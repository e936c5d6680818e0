"""Checkpoints of a stage: written whole or not at all, verified when read, the newest valid one wins.

A checkpoint is a folder `checkpoints/step-000000123/` with Lightning's checkpoint in `state.ckpt` and a manifest that
holds its sha256 and where in the training it was taken. The manifest is written last.
"""

from __future__ import annotations

import pickle
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.plugins.io import CheckpointIO
from torch import Tensor
from torch.utils._pytree import tree_map

from perceiver.cores import cores_kept, use_one_core
from perceiver.files import MANIFEST, DamagedFolderError, read_manifest, write_manifest
from pipelines.control import HOW_TO_CONVERGE, DivergedError
from pipelines.storage import Storage

STATE = "state.ckpt"

_PROBE_BYTES = 2**20


@dataclass(frozen=True)
class Position:
    """Where in the training a checkpoint was taken.

    Attributes:
        step: Optimizer steps done.
        epoch: Epoch that training goes on in, from 0.
        batch: Batches of that epoch that are done.
        seconds: Seconds of training so far, over all attempts.
        metrics: Validation metrics, at the end of an epoch.
    """

    step: int = 0
    epoch: int = 0
    batch: int = 0
    seconds: float = 0.0
    metrics: Mapping[str, float] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Name of the checkpoint's folder."""
        return f"step-{self.step:09d}"


class CheckpointStore:
    """The checkpoints of one stage.

    Args:
        storage: Folder of the checkpoints.
        select_by: Validation metric that tells which checkpoint is best: val_loss or val_accuracy.
        keep: Newest checkpoints that are kept, beside the best one.
    """

    def __init__(self, storage: Storage, select_by: str = "val_loss", keep: int = 2) -> None:
        self.storage = storage
        self.select_by = select_by
        self.keep = keep

    def save(self, state: Mapping[str, Any], position: Position) -> None:
        """Write a checkpoint, then delete those that are neither new nor best.

        Checkpoints of later steps go too: training went back behind them because they are damaged.

        Raises:
            DivergedError: If a weight is not a number, or infinite; the earlier checkpoints stay.
        """

        def write(folder: Path) -> None:
            folder.mkdir()
            _save(state, folder / STATE)
            write_manifest(folder, **asdict(position))

        _check_finite(state)
        (self.storage / position.name).write_folder(write)
        self._prune(position.name)

    def load(self, position: Position) -> dict[str, Any]:
        """Read a checkpoint; nothing in it is unpickled but tensors and plain containers.

        Raises:
            DamagedFolderError: If it is damaged, or holds anything else.
        """
        with self._verified(position.name) as folder:
            try:
                return torch.load(folder / STATE, map_location="cpu", weights_only=True)
            except pickle.UnpicklingError:
                place = self.storage / position.name
        raise DamagedFolderError(
            f"{place / STATE} holds more than tensors, which could run code: delete {place}, then the same command "
            "goes on from the checkpoint before it"
        )

    def newest(self) -> Position | None:
        """Return the newest checkpoint whose files are whole, or None."""
        return self.newest_and_damaged()[0]

    def newest_and_damaged(self) -> tuple[Position | None, list[str]]:
        """Return the newest checkpoint whose files are whole, and the names of newer ones, whose files are not."""
        damaged: list[str] = []
        for name in reversed(self._names()):
            try:
                with self._verified(name) as folder:
                    return self._position(read_manifest(folder, verify=False)), damaged
            except DamagedFolderError:
                damaged.append(name)
        return None, damaged

    def load_best(self) -> tuple[Position, dict[str, Any]]:
        """Read the checkpoint with the best validation metric, the earliest of equals, of those that are whole.

        Raises:
            DamagedFolderError: If no whole checkpoint has the metric.
        """
        for position in self._ranking():
            try:
                return position, self.load(position)
            except DamagedFolderError:
                continue
        raise DamagedFolderError(
            f"{self.storage} has no whole checkpoint with {self.select_by}: delete it, start again"
        )

    def _ranking(self) -> list[Position]:
        """Return the checkpoints that have the validation metric, the best first; damaged ones may be among them."""
        positions = [p for p in map(self._peek, self._names()) if p is not None and self.select_by in p.metrics]
        sign = 1.0 if self.select_by == "val_loss" else -1.0
        return sorted(positions, key=lambda p: (sign * p.metrics[self.select_by], p.step))

    def _names(self) -> list[str]:
        return [name for name in self.storage.names() if name.startswith("step-")]

    def _peek(self, name: str) -> Position | None:
        """Read where a checkpoint was taken, without verifying its large file."""
        try:
            manifest = (self.storage / name / MANIFEST).read_json()
        except ValueError:  # it was cut off or altered
            return None
        return self._position(manifest) if manifest is not None else None

    @staticmethod
    def _position(manifest: Mapping[str, Any]) -> Position:
        return Position(**{name: manifest[name] for name in Position.__dataclass_fields__})

    @contextmanager
    def _verified(self, name: str) -> Iterator[Path]:
        with (self.storage / name).as_local_folder() as folder:
            read_manifest(folder)
            yield folder

    def _prune(self, newest: str) -> None:
        names = self._names()
        kept = [name for name in names if name <= newest][-self.keep :]
        kept += [p.name for p in self._ranking() if p.name <= newest][:1]
        for name in names:
            if name not in kept:
                (self.storage / name).delete()


class StoreIO(CheckpointIO):
    """Lets a Lightning Trainer save to and restore from a CheckpointStore; a path is a checkpoint's name.

    Saving takes a copy of the state and returns; a thread writes it while training goes on. An error that the thread
    meets is raised by the next call.

    Args:
        store: Where the checkpoints lie.
        in_background: Whether training goes on meanwhile.

    Attributes:
        written: The newest position whose checkpoint is whole on the storage.
        seconds_waited: Time for which training waited for checkpoints.
    """

    def __init__(self, store: CheckpointStore, in_background: bool = True) -> None:
        self.store = store
        self.in_background = in_background
        self.written: Position | None = None
        self.seconds_waited = 0.0
        self._writer = ThreadPoolExecutor(1, "checkpoint", use_one_core)
        with cores_kept():
            self._writer.submit(int).result()  # an executor starts its thread with the first task
        self._writing: Future[None] | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write a checkpoint, after the one before it; `storage_options` is its Position."""
        asked = time.perf_counter()
        self.wait()
        self._writing = self._writer.submit(self._write, _copy(checkpoint), storage_options)
        if not self.in_background:
            self.wait()
        self.seconds_waited += time.perf_counter() - asked

    def _write(self, state: dict[str, Any], position: Position) -> None:
        self.store.save(state, position)
        self.written = position

    def wait(self) -> None:
        """Wait until what was saved is on the storage, and raise what kept it from getting there."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def close(self) -> None:
        """Write what was saved, and end the thread."""
        try:
            self.wait()
        finally:
            self._writer.shutdown()

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = True
    ) -> dict[str, Any]:
        """Read the checkpoint of a name."""
        self.wait()
        return self.store.load(Position(step=int(Path(path).name.removeprefix("step-"))))

    def remove_checkpoint(self, path: str | Path) -> None:
        """Delete the checkpoint of a name."""
        self.wait()
        (self.store.storage / Path(path).name).delete()


def _save(state: Mapping[str, Any], file: Path) -> None:
    """Write a state; where that fails, the operating system says why, as torch does not."""
    try:
        torch.save(state, file)
    except RuntimeError:
        try:
            with file.open("ab") as end:
                end.write(bytes(_PROBE_BYTES))
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(file.parents[1])) from None
        raise


def _copy(state: dict[str, Any]) -> dict[str, Any]:
    """Copy a state to memory that the next step leaves alone; a GPU's copies go there all at once."""

    def copy(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        if not value.is_cuda:
            return value.detach().clone()
        return torch.empty_like(value, device="cpu", pin_memory=True).copy_(value.detach(), non_blocking=True)

    copied: dict[str, Any] = tree_map(copy, state)
    if torch.cuda.is_available():
        torch.cuda.current_stream().synchronize()
    return copied


def _check_finite(state: Mapping[str, Any]) -> None:
    for name, value in state.get("state_dict", {}).items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise DivergedError(f"{name} has values that are no numbers, or infinite: {HOW_TO_CONVERGE}")
