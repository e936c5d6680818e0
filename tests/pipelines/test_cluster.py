"""Where stages train and which workers this machine can hold is known before Ray starts, and Ray is told the same."""

from __future__ import annotations

from typing import Any

import joblib
import pytest
import ray
import torch

from perceiver.errors import UserError
from pipelines.cluster import check_cluster, cluster, own_cores, trains_in_process, worker_resources
from pipelines.config import ScalingConfig


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A machine with 8 cores and 2 GPUs, and what `ray.init` was told about it."""
    told: dict[str, Any] = {}
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(joblib, "cpu_count", lambda: 8)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(ray, "init", lambda **options: told.update(options))
    monkeypatch.setattr(ray, "shutdown", lambda: told.update(stopped=True))
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": told["num_cpus"], "GPU": told["num_gpus"]})
    return told


@pytest.mark.parametrize(
    ("scaling", "resources"),
    [
        (ScalingConfig(num_workers=1), {"CPU": 8, "GPU": 1}),
        (ScalingConfig(num_workers=2), {"CPU": 4, "GPU": 1}),
        (ScalingConfig(num_workers=3, use_gpu=False), {"CPU": 2}),
        (ScalingConfig(num_workers=8, use_gpu=False), {"CPU": 1}),
        (ScalingConfig(num_workers=2, cpus_per_worker=3), {"CPU": 3, "GPU": 1}),
    ],
)
def test_workers_that_fit(
    scaling: ScalingConfig, resources: dict[str, float], monkeypatch: pytest.MonkeyPatch, machine: dict[str, Any]
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "local")
    check_cluster(scaling)
    with cluster(scaling):
        assert (machine["num_cpus"], machine["num_gpus"], machine["address"]) == (8, 2, "local")
        assert worker_resources(scaling) == (resources, "GPU" in resources)
        assert "stopped" not in machine
    assert machine["stopped"]


@pytest.mark.parametrize(
    ("scaling", "message"),
    [
        (
            ScalingConfig(num_workers=3),
            r"num_workers is 3, but this machine has 2 GPUs: .* set scaling.use_gpu to false",
        ),
        (ScalingConfig(num_workers=9, use_gpu=False), "num_workers is 9, but this machine has 8 cores: ask for fewer"),
        (
            ScalingConfig(num_workers=2, cpus_per_worker=5),
            "num_workers is 2, with scaling.cpus_per_worker 5, but this machine has 8 cores",
        ),
    ],
)
def test_workers_that_do_not_fit(scaling: ScalingConfig, message: str, machine: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=message):
        check_cluster(scaling)
    assert machine == {}


def test_a_cluster_that_is_named_may_grow(monkeypatch: pytest.MonkeyPatch, machine: dict[str, Any]) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    check_cluster(ScalingConfig(num_workers=100))
    with cluster(ScalingConfig(num_workers=100)):
        assert machine["address"] == "auto"
        assert "num_cpus" not in machine


@pytest.mark.parametrize("address", ["", "local"])
def test_an_address_that_means_this_machine(
    address: str, monkeypatch: pytest.MonkeyPatch, machine: dict[str, Any]
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(UserError, match="this machine has 8 cores"):
        check_cluster(ScalingConfig(num_workers=9, use_gpu=False))
    with cluster(ScalingConfig(num_workers=2)):
        assert (machine["address"], machine["num_cpus"]) == ("local", 8)


@pytest.mark.parametrize(
    ("num_workers", "address", "is_connected", "expected"),
    [
        (1, None, False, True),
        (1, "", False, True),
        (1, "local", False, False),
        (1, "auto", False, False),
        (1, None, True, False),
        (2, None, False, False),
        (0, None, False, True),
        (0, "auto", True, True),
    ],
)
def test_one_worker_needs_ray_only_where_a_cluster_is_asked_for(
    num_workers: int,
    address: str | None,
    is_connected: bool,
    expected: bool,
    monkeypatch: pytest.MonkeyPatch,
    machine: dict[str, Any],
) -> None:
    if address is not None:
        monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setattr(ray, "is_initialized", lambda: is_connected)
    scaling = ScalingConfig(num_workers)
    assert trains_in_process(scaling) is expected
    check_cluster(scaling)
    with cluster(scaling):
        assert bool(machine) is not (expected or is_connected)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_training_in_this_process_has_the_cores_of_a_worker(num_workers: int) -> None:
    assert own_cores(ScalingConfig(num_workers)) == 8
    assert own_cores(ScalingConfig(num_workers, cpus_per_worker=3)) == 3


def test_a_connected_cluster_is_used_and_left_running(monkeypatch: pytest.MonkeyPatch, machine: dict[str, Any]) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    check_cluster(ScalingConfig(num_workers=100))
    with cluster(ScalingConfig(num_workers=100)):
        assert machine == {}
    assert machine == {}
