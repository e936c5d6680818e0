"""Load, memory and operations."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pipelines.report import machines
from pipelines.report.parts import MissingSourceError, drawing_style
from tests.pipelines.report.folders import size_of, sources, system_record, train_records, write_system

GPU = {"gpu_memory_bytes": 7 * 10**9, "gpu_memory_total_bytes": 80 * 10**9}


def test_load_and_memory_are_those_of_each_node_and_gpu(tmp_path: Path) -> None:
    write_system(tmp_path, 0, [system_record(second, 0, "a") for second in (10, 20)])
    write_system(tmp_path, 1, [system_record(second, 1, "b", **GPU, gpu_percent=90) for second in (10, 20)])
    found = sources(tmp_path)
    assert len(found.system) == 4, "the torn lines are left out"
    with drawing_style():
        (load,), (memory,) = machines.load(found), machines.memory(found)
    assert load.caption == "CPU of each node; dashed: each worker's GPU."
    assert memory.caption == "In use; node a has 16 GB, node b has 16 GB, the GPU of worker 1 80 GB."
    assert size_of(load)
    assert size_of(memory)


def test_a_gpu_whose_load_is_not_told_still_has_memory(tmp_path: Path) -> None:
    write_system(tmp_path, 0, [system_record(10, 0, "a", **GPU)])
    with drawing_style():
        assert machines.load(sources(tmp_path))[0].caption == "CPU of each node."
        assert "the GPU of worker 0 80 GB" in machines.memory(sources(tmp_path))[0].caption


def test_operations_on_a_cpu_have_no_share_of_a_peak(tmp_path: Path) -> None:
    records = train_records(5, samples_per_second=500.0)
    (facts,) = machines.operations(sources(tmp_path, *records, flops_per_sample=2e6, device="cpu", num_workers=1))
    assert facts.rows == {
        "per sample": "2 MFLOP",
        "per step of 4 samples": "8 MFLOP",
        "achieved (median step)": "1 GFLOP/s",
        "on": "1 x cpu",
    }


def test_operations_on_gpus_are_a_share_of_their_peak(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machines._peak_of.cache_clear()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "NVIDIA A100-SXM4-40GB")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_: True)
    result = {"flops_per_sample": 312e12 / 1000, "device": "NVIDIA A100-SXM4-40GB", "num_workers": 2}
    (facts,) = machines.operations(sources(tmp_path, *train_records(5, samples_per_second=500.0), **result))
    assert facts.rows["share of the peak"] == "25.00% of 624 TFLOP/s"
    machines._peak_of.cache_clear()


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingSourceError, match="there is no system-RANK.jsonl"):
        machines.load(sources(tmp_path))
    with pytest.raises(MissingSourceError, match="no flops_per_sample"):
        machines.operations(sources(tmp_path))
