"""The Ray cluster that a pipeline runs on: one that RAY_ADDRESS names, or one of this machine's own."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from perceiver.errors import UserError
from pipelines.config import ScalingConfig

# The controller of a training looks at its workers this often (seconds); Ray's default of 2 makes short stages wait.
_POLL_SECONDS = "0.5"


@contextmanager
def cluster(scaling: ScalingConfig) -> Iterator[None]:
    """Connect to the cluster that RAY_ADDRESS names, or start one on this machine and stop it at the end.

    A stage without workers of its own needs none.

    Raises:
        UserError: If RAY_ADDRESS leads nowhere.
    """
    if scaling.num_workers == 0:
        yield
        return
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", _POLL_SECONDS)
    import ray

    started = not ray.is_initialized()
    if started:
        address = os.environ.get("RAY_ADDRESS")
        try:
            ray.init(**(_attach(address) if address else _local()), log_to_driver=False, logging_level=logging.ERROR)
        except ConnectionError as error:
            raise UserError(f"RAY_ADDRESS is {address}, but no Ray cluster answers there: unset or mend it") from error
    try:
        yield
    finally:
        if started:
            ray.shutdown()


def _attach(address: str) -> dict[str, Any]:
    return {"address": address}


def _local() -> dict[str, Any]:
    """Options of a cluster of our own, whose parts find its dashboard even where another cluster runs too."""
    port = _free_port()
    env_vars = {"RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{port}"}
    return {
        "address": "local",
        "include_dashboard": True,
        "dashboard_host": "127.0.0.1",
        "dashboard_port": port,
        "runtime_env": {"env_vars": env_vars},
    }


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def worker_resources(scaling: ScalingConfig) -> tuple[dict[str, float], bool]:
    """Return the resources of one worker, and whether it has a GPU.

    Raises:
        UserError: If this machine's own cluster can't hold the workers.
    """
    import ray

    total = ray.cluster_resources()
    use_gpu = total.get("GPU", 0) > 0 if scaling.use_gpu is None else scaling.use_gpu
    cpus = scaling.cpus_per_worker or max(1, int(total.get("CPU", 1)) // scaling.num_workers)
    if "RAY_ADDRESS" not in os.environ:
        _check_fits("cores", cpus * scaling.num_workers, total.get("CPU", 0), scaling)
        _check_fits("GPUs", scaling.num_workers if use_gpu else 0, total.get("GPU", 0), scaling)
    return {"CPU": float(cpus)} | ({"GPU": 1.0} if use_gpu else {}), use_gpu


def _check_fits(what: str, needed: float, available: float, scaling: ScalingConfig) -> None:
    if needed > available:
        raise UserError(
            f"scaling.num_workers is {scaling.num_workers} and needs {needed:g} {what}, but this machine has "
            f"{available:g}: use fewer workers, or name a cluster in RAY_ADDRESS"
        )
