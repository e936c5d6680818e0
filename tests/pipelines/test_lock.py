"""A run has one driver: a second one is told who holds it, and a holder that died holds nothing."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines import lock as lock_module
from pipelines.lock import HOLDER, LockedError, check_unlocked, run_lock
from pipelines.storage import Storage

DEFAULT_RENEWAL, DEFAULT_WATCH = lock_module.RENEWAL_SECONDS, lock_module.WATCH_SECONDS


@pytest.fixture(params=["local", "remote"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Storage]:
    if request.param == "local":
        yield Storage.from_uri(tmp_path / "run")
        return
    storage = Storage.from_uri(f"memory://{tmp_path.name}/run")
    yield storage
    storage.delete()


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock_module, "RENEWAL_SECONDS", 0.1)
    monkeypatch.setattr(lock_module, "WATCH_SECONDS", 0.6)


def test_a_second_driver_is_refused_and_told_who_holds_the_run(folder: Storage) -> None:
    with run_lock(folder):
        with pytest.raises(LockedError, match=rf"is in use by process {os.getpid()} of .* on .* since \d{{4}}-"):
            check_unlocked(folder)
        with pytest.raises(LockedError, match="choose another run_name"), run_lock(folder):
            pass
    check_unlocked(folder)
    with run_lock(folder):
        pass
    assert not (folder / HOLDER).exists()


def test_the_default_times_refuse_within_five_seconds() -> None:
    assert 3 * DEFAULT_RENEWAL < DEFAULT_WATCH < 5 - DEFAULT_RENEWAL / 2


def test_looking_leaves_nothing_where_no_driver_ever_was(folder: Storage) -> None:
    check_unlocked(folder)
    assert not folder.exists()


def hold(path: str) -> None:
    with run_lock(Storage.from_uri(path)):
        time.sleep(600)


def test_the_lock_of_a_killed_process_is_taken_over(tmp_path: Path) -> None:
    folder = Storage.from_uri(tmp_path)
    process = multiprocessing.get_context("spawn").Process(target=hold, args=(str(tmp_path),))
    process.start()
    try:
        end = time.monotonic() + 60
        while not (folder / HOLDER).exists():
            assert time.monotonic() < end
            time.sleep(0.05)
        with pytest.raises(LockedError, match=f"process {process.pid} of"):
            check_unlocked(folder)
    finally:
        process.kill()
        process.join()
    with run_lock(folder):
        assert (folder / HOLDER).read_json()["pid"] == os.getpid()


@pytest.mark.parametrize("host", ["elsewhere", None], ids=["of-another-machine", "of-this-machine"])
def test_a_lease_that_nobody_renews_is_taken_over(tmp_path: Path, host: str | None) -> None:
    folder = Storage.from_uri(f"memory://{tmp_path.name}/lease")
    mine = lock_module._identity()
    (folder / HOLDER).write_json({**mine, "host": host or mine["host"], "pid": 2**22 + 1, "token": "x", "renewed": 0})
    with run_lock(folder):
        assert (folder / HOLDER).read_json()["pid"] == os.getpid()
    folder.delete()


def test_a_driver_whose_lease_was_taken_over_stops(tmp_path: Path) -> None:
    folder = Storage.from_uri(f"memory://{tmp_path.name}/taken")
    interrupted = threading.Event()
    before = signal.signal(signal.SIGINT, lambda *_: interrupted.set())
    try:
        with run_lock(folder):
            (folder / HOLDER).write_json({"token": "other", "pid": 1, "user": "somebody", "host": "elsewhere"})
            assert any(interrupted.wait(0.1) for _ in range(100))
        assert (folder / HOLDER).read_json()["token"] == "other", "the other driver's lease stays"
    finally:
        signal.signal(signal.SIGINT, before)
        folder.delete()
