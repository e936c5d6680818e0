"""Several workers test the same weights: those of the checkpoint that rank 0 has written and chosen."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed

from perceiver.config import TrainerConfig
from pipelines.callback import StageCallback
from pipelines.checkpoint import CheckpointStore, Position, StoreIO
from pipelines.control import DivergedError, Link
from pipelines.storage import Storage
from pipelines.worker import load_best
from tests.distributed import run_distributed
from tests.pipelines.ray_faults import wait_for

_LATE_SECONDS = 0.5


def write(store: CheckpointStore, step: int, loss: float) -> None:
    store.save({"state_dict": {"w": torch.full((2,), float(step))}}, Position(step, step, metrics={"val_loss": loss}))


@contextmanager
def process_group() -> Iterator[int]:
    torch.distributed.init_process_group("gloo")
    try:
        yield torch.distributed.get_rank()
    finally:
        torch.distributed.destroy_process_group()


def best_of(folder: str) -> tuple[int, float]:
    """Load the best checkpoint; rank 0 writes the best of all when rank 1 looks already, as after a short stage."""
    with process_group() as rank:
        store, looks = CheckpointStore(Storage.from_uri(folder)), Path(folder) / ".looks"
        if rank == 0:
            wait_for(looks.exists)
            time.sleep(_LATE_SECONDS)  # in which rank 1, if it didn't wait, would find the other one
            write(store, 2, loss=0.5)
        else:
            looks.touch()
        position, state = load_best(store, Link(print, rank=rank, world_size=2))
        return position.step, state["state_dict"]["w"][0].item()


def test_all_ranks_load_the_one_that_rank_0_has_written_last(tmp_path: Path) -> None:
    write(CheckpointStore(Storage.from_uri(str(tmp_path))), 1, loss=0.7)
    assert run_distributed(best_of, 2, str(tmp_path)) == [(2, 2.0), (2, 2.0)]


def end_of_training(folder: str) -> str:
    """End a training whose last checkpoint rank 0 can't write, since a weight is no number; return what is raised."""

    def broadcast(value: Any) -> Any:
        box = [value]
        torch.distributed.broadcast_object_list(box, src=0)
        return box[0]

    with process_group() as rank:
        checkpoints = StoreIO(CheckpointStore(Storage.from_uri(folder)))
        link = Link(print, rank=rank, world_size=2)
        callback = StageCallback(TrainerConfig(), None, link, checkpoints, Position(), 0.0)
        if rank == 0:
            checkpoints.save_checkpoint({"state_dict": {"w": torch.tensor([math.nan])}}, "", Position(1, 1))
        trainer: Any = SimpleNamespace(strategy=SimpleNamespace(broadcast=broadcast))
        module: Any = None
        try:
            callback.on_train_end(trainer, module)
        except DivergedError as error:
            return str(error)
        return "nothing"


def test_what_keeps_rank_0_from_writing_the_last_ends_all_ranks(tmp_path: Path) -> None:
    first, second = run_distributed(end_of_training, 2, str(tmp_path))
    assert first == second
    assert first.startswith("w has values that are no numbers, or infinite")
