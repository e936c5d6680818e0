"""Checkpoints are written whole, verified when read, and the right ones are kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from perceiver.files import MANIFEST, DamagedFolderError, write_manifest
from pipelines.checkpoint import STATE, CheckpointStore, Position, StoreIO
from pipelines.storage import Storage


@pytest.fixture(params=["local", "memory"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    name = f"memory://{tmp_path.name}" if request.param == "memory" else tmp_path
    return Storage.from_uri(name) / "checkpoints"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "checkpoints"


def local_store(folder: Path, **options: Any) -> CheckpointStore:
    return CheckpointStore(Storage.from_uri(folder), **options)


def position(step: int, **metrics: float) -> Position:
    return Position(step=step, epoch=step // 10, batch=0 if metrics else step % 10, seconds=1.5, metrics=metrics)


def fill(store: CheckpointStore, *positions: Position) -> CheckpointStore:
    for p in positions:
        store.save({"step": torch.tensor(p.step)}, p)
    return store


def names(store: CheckpointStore) -> list[int]:
    return [int(name.removeprefix("step-")) for name in store.storage.names()]


def test_what_is_saved_is_loaded(storage: Storage) -> None:
    store = CheckpointStore(storage)
    state: dict[str, Any] = {"weights": torch.randn(3, 2), "nested": {"lr": [0.1, None], "name": "adam"}}
    where = Position(step=12, epoch=1, batch=2, seconds=3.25, metrics={"val_loss": 0.5, "val_samples": 9.0})
    store.save(state, where)
    loaded = store.load(where)
    assert torch.equal(loaded["weights"], state["weights"])
    assert loaded["nested"] == state["nested"]
    assert CheckpointStore(storage).newest() == where


def test_nothing_there(storage: Storage) -> None:
    assert CheckpointStore(storage).newest() is None


def test_newest_best_and_pruning_on_any_storage(storage: Storage) -> None:
    store = CheckpointStore(storage)
    fill(store, position(5), position(10, val_loss=0.3), position(15), position(20, val_loss=0.4), position(25))
    assert names(store) == [10, 20, 25]
    assert store.newest() == position(25)
    best, state = store.load_best()
    assert best == position(10, val_loss=0.3)
    assert state["step"] == 10


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def alter(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES = {
    "state truncated": lambda folder: cut_off(folder / STATE),
    "state altered": lambda folder: alter(folder / STATE),
    "state missing": lambda folder: (folder / STATE).unlink(),
    "manifest missing": lambda folder: (folder / MANIFEST).unlink(),
    "manifest truncated": lambda folder: cut_off(folder / MANIFEST),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_newest_passes_over_damaged_ones(folder: Path, damage: str) -> None:
    store = fill(local_store(folder), position(10, val_loss=0.5), position(15))
    DAMAGES[damage](folder / "step-000000015")
    assert store.newest() == position(10, val_loss=0.5)


@pytest.mark.parametrize("damage", DAMAGES)
def test_best_passes_over_damaged_ones(folder: Path, damage: str) -> None:
    store = fill(local_store(folder), position(10, val_loss=0.5), position(20, val_loss=0.6))
    DAMAGES[damage](folder / "step-000000010")
    assert store.load_best()[0] == position(20, val_loss=0.6)


def test_damaged_checkpoint_is_refused(folder: Path) -> None:
    store = fill(local_store(folder), position(10))
    alter(folder / "step-000000010" / STATE)
    with pytest.raises(DamagedFolderError, match=r"step-000000010/state\.ckpt was altered"):
        store.load(position(10))


def test_without_the_metric_there_is_no_best(folder: Path) -> None:
    store = fill(local_store(folder, select_by="val_accuracy"), position(5), position(10, val_loss=0.5))
    with pytest.raises(DamagedFolderError, match="no whole checkpoint with val_accuracy"):
        store.load_best()


@pytest.mark.parametrize(("select_by", "best_step"), [("val_loss", 20), ("val_accuracy", 30)])
def test_best_is_the_earliest_of_equals_by_either_metric(folder: Path, select_by: str, best_step: int) -> None:
    figures = {10: (0.9, 0.1), 20: (0.3, 0.2), 30: (0.3, 0.8), 40: (0.5, 0.8), 50: (0.6, 0.7)}
    store = local_store(folder, select_by=select_by)
    fill(store, *(position(step, val_loss=loss, val_accuracy=acc) for step, (loss, acc) in figures.items()))
    best, state = store.load_best()
    assert best.step == best_step
    assert state["step"] == best_step
    assert names(store) == [best_step, 40, 50]


def test_new_checkpoints_outlive_damaged_ones_of_later_steps(folder: Path) -> None:
    store = fill(local_store(folder), position(10, val_loss=0.5), position(14), position(18))
    for name in ("step-000000014", "step-000000018"):
        alter(folder / name / STATE)
    fill(store, position(12))
    assert names(store) == [10, 12]
    assert store.newest() == position(12)


def test_pickled_objects_are_refused(folder: Path) -> None:
    store = fill(local_store(folder), position(10))
    checkpoint = folder / "step-000000010"
    torch.save({"state_dict": Path("/")}, checkpoint / STATE)
    facts = json.loads((checkpoint / MANIFEST).read_text())
    del facts["files"]
    write_manifest(checkpoint, **facts)
    assert store.newest() == position(10), "the manifest fits, so that only the content is wrong"
    with pytest.raises(DamagedFolderError, match=r"step-000000010/state\.ckpt holds more than tensors, .*: delete"):
        store.load(position(10))


def test_lightning_saves_loads_and_removes_by_name(folder: Path) -> None:
    store = local_store(folder)
    plugin = StoreIO(store)
    plugin.save_checkpoint({"epoch": 3}, "anywhere/step-000000007", position(7))
    assert plugin.load_checkpoint("anywhere/step-000000007") == {"epoch": 3}
    plugin.remove_checkpoint("anywhere/step-000000007")
    assert store.newest() is None


def test_the_writer_has_one_core_and_training_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    monkeypatch.setattr(CheckpointStore, "save", lambda *_: seen.append(torch.get_num_threads()))
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        saving = StoreIO(CheckpointStore(Storage.from_uri(tmp_path)))
        assert torch.get_num_threads() == 2
        saving.save_checkpoint({}, "step-1", Position(1))
        saving.close()
        assert (seen, torch.get_num_threads()) == ([1], 2)
    finally:
        torch.set_num_threads(before)
