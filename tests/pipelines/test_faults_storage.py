"""Storage that fails: damaged checkpoints, full disks, places that cannot be written."""

from __future__ import annotations

import os
import resource
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from perceiver.data.cache import new_array
from pipelines.checkpoint import STATE, Position
from pipelines.journal import JournalWriter
from pipelines.storage import Storage
from tests.pipelines.faults import Outcome, Run, assert_same_end, before_step, fill_disk, limit_file_size, tree


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that was killed after its checkpoint of step 9, the one before which is that of step 8."""
    run = Run(tmp_path_factory.mktemp("interrupted"))
    run.run_until(9)
    return run


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 4
    path.write_bytes(content)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "truncated": lambda folder: os.truncate(folder / STATE, (folder / STATE).stat().st_size // 2),
    "emptied": lambda folder: os.truncate(folder / STATE, 0),
    "one bit flipped": lambda folder: flip_a_bit(folder / STATE),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one_and_says_so(
    undisturbed: Run, interrupted: Run, tmp_path: Path, damage: str
) -> None:
    run = interrupted.copied_to(tmp_path)
    DAMAGES[damage](run.checkpoint(9))
    outcome = run.run()
    assert outcome.status == 0
    lines = [line for line in outcome.said.splitlines() if "damaged" in line]
    assert lines == [f"image-classifier  {Position(9).name} is damaged: goes on from {Position(8).name}"]
    assert_same_end(run, undisturbed)


def test_a_run_whose_checkpoints_are_all_damaged_starts_anew(
    undisturbed: Run, interrupted: Run, tmp_path: Path
) -> None:
    run = interrupted.copied_to(tmp_path)
    for step in (8, 9):
        DAMAGES["truncated"](run.checkpoint(step))
    outcome = run.run()
    assert outcome.status == 0
    names = f"{Position(9).name}, {Position(8).name}"
    assert f"image-classifier  {names} are damaged: starts anew" in outcome.said.splitlines()
    assert_same_end(run, undisturbed)


@contextmanager
def mounted(place: Path, *options: str) -> Iterator[None]:
    """Mount something, where that is allowed, at a place."""
    done = subprocess.run(["mount", *options, str(place)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"mounting is not allowed: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    with mounted(disk, "-t", "tmpfs", "-o", "size=4m", "tmpfs"):
        yield disk


def assert_one_line(outcome: Outcome, reason: str) -> None:
    """Check that a stage failed with one line, which is the last."""
    assert outcome.status == 1
    assert reason in outcome.errors[0]
    assert outcome.errors == outcome.said.splitlines()[-1:]


@pytest.mark.parametrize(("left", "newest"), [(0, {3, 6}), (50_000, {6})])
def test_a_run_whose_disk_is_full_keeps_its_checkpoint_and_goes_on_when_there_is_space(
    undisturbed: Run, small_disk: Path, tmp_path: Path, left: int, newest: set[int]
) -> None:
    run, filler = Run(tmp_path, storage=small_disk / "runs"), small_disk / "filler"
    outcome = run.run(partial(before_step, 8, partial(fill_disk, filler, left)))
    assert_one_line(outcome, "No space left on device")
    found = run.store.newest()
    assert found is not None
    assert found.step in newest
    run.store.load(found)

    filler.unlink()
    outcome = run.run()
    assert outcome.status == 0
    assert "goes on from its newest checkpoint" in outcome.said
    assert_same_end(run, undisturbed)


@pytest.mark.slow
def test_a_full_disk_that_mlflow_and_tensorboard_write_to_as_well_is_one_line(
    undisturbed: Run, small_disk: Path, tmp_path: Path
) -> None:
    tracking = {"tracking.mlflow": "true", "tracking.tensorboard": "true"}
    run, filler = Run(tmp_path, storage=small_disk / "runs", **tracking), small_disk / "filler"
    outcome = run.run(partial(before_step, 8, partial(fill_disk, filler, 0)))
    assert_one_line(outcome, "No space left on device")
    filler.unlink()
    assert run.run().status == 0
    assert_same_end(run, undisturbed)


def test_a_file_system_that_takes_no_large_file_is_one_line_and_goes_on_later(undisturbed: Run, tmp_path: Path) -> None:
    """As where a quota ends; it needs neither a disk of its own nor the right to mount one."""
    run = Run(tmp_path)
    limit = (undisturbed.checkpoint(16) / STATE).stat().st_size // 2
    outcome = run.run(partial(before_step, 8, partial(limit_file_size, limit)))
    assert_one_line(outcome, f"File too large: '{run.folder / 'checkpoints'}'; the whole story is in {run.folder}/")
    found = run.store.newest()
    assert found is not None
    assert found.step == 6
    assert run.run().status == 0
    assert_same_end(run, undisturbed)


def test_a_record_that_the_disk_takes_in_part_is_an_error(tmp_path: Path) -> None:
    journal = JournalWriter(Storage.from_uri(tmp_path))
    record = {"kind": "train", "epoch": 0, "step": 1}
    journal.write(record)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, ((tmp_path / "metrics.jsonl").stat().st_size + 10, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            journal.write(record)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(("left", "status"), [(0, 2), (9_000, 2), (30_000, 1)])
def test_a_command_that_finds_its_disk_full_is_one_line(
    small_disk: Path, tmp_path: Path, left: int, status: int
) -> None:
    fill_disk(small_disk / "filler", left)
    outcome = Run(tmp_path, storage=small_disk / "runs").run()
    assert len(outcome.errors) == 1
    assert outcome.errors == outcome.said.splitlines()[-1:]
    assert "no space left" in outcome.errors[0].lower()
    assert outcome.status == status


@pytest.mark.parametrize(("verb", "left"), [("image-classifier", 16_384), ("mlm", 0)])
def test_a_cache_whose_disk_is_full_is_one_line(small_disk: Path, tmp_path: Path, verb: str, left: int) -> None:
    fill_disk(small_disk / "filler", left)
    run = Run(tmp_path, verb, **{"data.cache_dir": small_disk / "cache", "trainer.max_epochs": 1})
    outcome = run.run()
    assert outcome.status == 2
    expected = f"error: cache_dir {small_disk / 'cache'} has no space left: free some, or choose another folder"
    assert outcome.said.splitlines() == [expected]


def test_space_for_a_mapped_file_is_set_aside_since_a_full_disk_would_kill_who_writes_it(small_disk: Path) -> None:
    with pytest.raises(OSError, match="No space left on device"):
        new_array(small_disk / "large.npy", np.uint8, (8 * 2**20,))


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Make a folder one that nobody may write in, by its mode or, as root may write everywhere, by a mount."""
    if os.geteuid():
        folder.chmod(0o500)
        yield
        folder.chmod(0o700)
        return
    with mounted(folder, "-o", "bind,ro", str(folder)):
        yield


@pytest.mark.parametrize("kind", ["new", "interrupted"])
def test_storage_that_cannot_be_written_is_one_line_before_anything_starts(
    interrupted: Run, tmp_path: Path, kind: str
) -> None:
    run = Run(tmp_path) if kind == "new" else interrupted.copied_to(tmp_path)
    run.storage.mkdir(exist_ok=True)
    before = tree(run.storage)
    with read_only(run.storage):
        outcome = run.run()
    assert outcome.status == 2
    assert outcome.said.count("\n") == 1
    assert outcome.said.startswith(f"error: storage_path '{run.storage}' cannot be written (")
    assert tree(run.storage) == before
