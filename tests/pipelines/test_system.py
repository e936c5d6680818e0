"""The machine is sampled beside training, which never notices."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from pipelines import system
from pipelines.control import Link
from pipelines.stages import StagePlan, prepare
from pipelines.storage import Storage
from pipelines.system import SystemSampler, system_file
from pipelines.worker import run_stage
from tests.pipelines.tiny import STEPS, image_config

CPU = torch.device("cpu")
FIELDS = {
    "time", "step", "node", "rank", "cpu_percent", "rss_bytes", "memory_used_bytes", "memory_total_bytes"
}  # fmt: skip


def read(folder: Storage, rank: int = 0) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / system_file(rank)).read_bytes().splitlines()]


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


@pytest.fixture(params=["local", "remote"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    return Storage.from_uri(tmp_path if request.param == "local" else f"memory://{tmp_path.name}")


def test_there_is_a_record_now_and_then_and_at_the_end(folder: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system, "_REMOTE_SECONDS", 0.0)
    step = iter(range(1, 10**6))
    with SystemSampler(folder, 3, lambda: next(step), CPU, seconds=0.01):
        wait_until(lambda: (folder / "system-3.jsonl").exists() and len(read(folder, 3)) >= 3)
    records = read(folder, 3)
    assert [record["step"] for record in records] == list(range(1, len(records) + 1))
    for record in records:
        assert record.keys() == FIELDS
        assert record["rank"] == 3
        assert 0 <= record["cpu_percent"] <= 100
        assert 0 < record["rss_bytes"] < record["memory_total_bytes"] == psutil.virtual_memory().total
        assert 0 < record["memory_used_bytes"] < record["memory_total_bytes"]
    assert all(thread.name != "system" for thread in threading.enumerate())


def test_records_are_added_after_a_restart_even_behind_a_torn_line(folder: Storage) -> None:
    for step in (1, 2):
        with SystemSampler(folder, 0, lambda step=step: step, CPU):
            pass
    (folder / system_file(0)).write_bytes((folder / system_file(0)).read_bytes() + b'{"time": 17')
    with SystemSampler(folder, 0, lambda: 3, CPU):
        pass
    lines = (folder / system_file(0)).read_bytes().splitlines()
    assert [json.loads(line)["step"] for line in (*lines[:2], lines[3])] == [1, 2, 3]


def test_a_sample_that_fails_is_left_out_and_the_next_one_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    folder, memory, calls = Storage.from_uri(tmp_path), psutil.virtual_memory, iter(range(10**6))

    def fail_at_first() -> Any:
        if next(calls) < 2:
            raise OSError
        return memory()

    monkeypatch.setattr(psutil, "virtual_memory", fail_at_first)
    with SystemSampler(folder, 0, lambda: 1, CPU, seconds=0.01):
        wait_until((folder / system_file(0)).exists)
    assert capfd.readouterr() == ("", "")


def test_a_storage_that_refuses_is_nobodys_concern(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("in the way")
    with SystemSampler(Storage.from_uri(tmp_path / "file"), 0, lambda: 1, CPU, seconds=0.01):
        time.sleep(0.05)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("tells_load", [True, False])
def test_the_gpu_of_the_worker_is_sampled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tells_load: bool) -> None:
    folder, device = Storage.from_uri(tmp_path), torch.device("cuda", 1)
    of_device = {"mem_get_info": (3, 10), "get_device_name": "A GPU", "utilization": 42}
    for name, value in of_device.items():
        monkeypatch.setattr(torch.cuda, name, lambda asked, value=value: {device: value}[asked])
    monkeypatch.setattr(system.importlib.util, "find_spec", lambda name: tells_load or None)
    with SystemSampler(folder, 0, lambda: 1, device):
        pass
    (record,) = read(folder)
    values = {"gpu_name": "A GPU", "gpu_memory_bytes": 7, "gpu_memory_total_bytes": 10}
    assert {name: value for name, value in record.items() if name not in FIELDS} == (
        {**values, "gpu_percent": 42} if tells_load else values
    )


def test_a_sample_takes_less_than_half_a_percent_of_the_time_between_two(tmp_path: Path) -> None:
    sampler, file = system._Sampler(0, CPU), system._Records(Storage.from_uri(tmp_path / "x.jsonl"))
    begun = time.thread_time()
    for _ in range(50):
        file.add(sampler.take(1))
    assert (time.thread_time() - begun) / 50 < 0.005 * system._SAMPLE_SECONDS


@pytest.mark.parametrize(("local_rank", "expected"), [(0, True), (1, False)])
def test_one_worker_of_each_node_samples_it(tmp_path: Path, local_rank: int, expected: bool) -> None:
    config = image_config(tmp_path)
    plan = StagePlan("stage", config, prepare(config), Storage.from_uri(tmp_path / "run"))
    run_stage(plan, Link(lambda state: None, local_rank=local_rank))
    assert (tmp_path / "run" / system_file(0)).exists() == expected
    if expected:
        assert read(plan.storage)[-1]["step"] == STEPS
