"""Nodes of a cluster that are taken away from a training, for real: it waits for another one, or goes on without."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import psutil
import pytest
from ray.cluster_utils import Cluster

from tests.mlflow_server import free_port
from tests.pipelines.ray_faults import Run, assert_as_if_undisturbed, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

HEALTH_CHECKS = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 1000,
    "health_check_failure_threshold": 3,
}
# The worker that stays may notice the loss before Ray knows of the node's death.
ONE_LOST = [[f"worker {rank}: {what}"] for rank in (0, 1) for what in ("its node died", "lost another worker")]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A cluster whose head takes no workers."""
    folder = tempfile.mkdtemp(prefix="ray-")
    port = free_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_worker_niceness", "0")
        patch.setenv("RAY_API_SERVER_ADDRESS", f"http://127.0.0.1:{port}")
        head = {"num_cpus": 0, "include_dashboard": True, "dashboard_port": port, "_system_config": HEALTH_CHECKS}
        cluster = Cluster(initialize_head=True, head_node_args={**head, "temp_dir": folder})
        yield cluster
        cluster.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def _two_nodes(cluster: Cluster) -> None:
    """Let the cluster have two nodes that take a worker each."""
    while len(cluster.worker_nodes) < 2:
        cluster.add_node(num_cpus=1)


@pytest.fixture(scope="module")
def whole(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run whose nodes stay."""
    for _ in range(2):
        cluster.add_node(num_cpus=1)
    environment = {**os.environ, "RAY_ADDRESS": cluster.address}
    run = Run(tmp_path_factory.mktemp("nodes"), "whole", environment, {})
    assert run.end() == 0, run.log
    assert_as_if_undisturbed(run, run)
    return run


def remove_node_of(cluster: Cluster, worker: int) -> None:
    parents = {parent.pid for parent in psutil.Process(worker).parents()}
    (node,) = [node for node in cluster.worker_nodes if _raylet(node) in parents]
    cluster.remove_node(node, allow_graceful=False)


def _raylet(node: Any) -> int:
    pid: int = node.all_processes["raylet"][0].process.pid
    return pid


@pytest.mark.usefixtures("_two_nodes")
def test_a_fixed_number_of_workers_waits_for_another_node_and_says_so(cluster: Cluster, whole: Run) -> None:
    run = replace(whole, name="replaced")
    with run.started() as process:
        remove_node_of(cluster, run.wait_for_step(process, 10)[0])
        wait_for(lambda: "waits for 2 workers of 1 CPU each; the cluster has 1 CPU, 0 GPU" in run.log)
        cluster.add_node(num_cpus=1)
        assert process.wait(200) == 0, run.log
    assert run.reasons() in ONE_LOST
    assert_as_if_undisturbed(run, whole)


@pytest.mark.usefixtures("_two_nodes")
def test_an_elastic_number_of_workers_goes_on_without_the_node(cluster: Cluster, whole: Run) -> None:
    # Ray first tries to start as many workers as before, for so long; with a minute, the default, it ends alike.
    environment = {**whole.environment, "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "20"}
    run = replace(whole, name="smaller", environment=environment, options={"scaling.num_workers": "[1, 2]"})
    with run.started() as process:
        remove_node_of(cluster, run.wait_for_step(process, 10)[1])
        assert process.wait(200) == 0, run.log
    assert run.worlds() == [2, 1]
    assert run.reasons() in ONE_LOST
    assert_as_if_undisturbed(run, whole)
