"""Several workers test the same weights: those of the checkpoint that rank 0 has written and chosen."""

from __future__ import annotations

import time
from pathlib import Path

import torch
import torch.distributed

from pipelines.checkpoint import CheckpointStore, Position
from pipelines.control import Link
from pipelines.storage import Storage
from pipelines.worker import load_best
from tests.distributed import run_distributed

_LATE_SECONDS = 1.0


def write(store: CheckpointStore, step: int, loss: float) -> None:
    store.save({"state_dict": {"w": torch.full((2,), float(step))}}, Position(step, step, metrics={"val_loss": loss}))


def best_of(folder: str) -> tuple[int, float]:
    """Load the best checkpoint; the best of all is written late by rank 0, as the last one of a training is."""
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    store = CheckpointStore(Storage.from_uri(folder))
    if rank == 0:
        time.sleep(_LATE_SECONDS)
        write(store, 2, loss=0.5)
    position, state = load_best(store, Link(print, rank=rank, world_size=2))
    torch.distributed.destroy_process_group()
    return position.step, state["state_dict"]["w"][0].item()


def test_all_ranks_load_the_one_that_rank_0_has_written_last(tmp_path: Path) -> None:
    write(CheckpointStore(Storage.from_uri(str(tmp_path))), 1, loss=0.7)
    assert run_distributed(best_of, 2, str(tmp_path)) == [(2, 2.0), (2, 2.0)]
