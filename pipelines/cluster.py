"""Where a pipeline's stages train: in this process, on the Ray cluster that RAY_ADDRESS names, or on one of our own.

Importing Ray takes a second and starting it ten more, so that nothing here imports it before it is needed.
"""

from __future__ import annotations

import logging
import os
import re
import signal
import socket
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from perceiver.config import TrainerConfig
from perceiver.errors import UserError
from pipelines.config import ScalingConfig, StageConfig
from pipelines.environment import environment

# The controller of a training looks at its workers this often (seconds); Ray's default of 2 makes short stages wait.
_POLL_SECONDS = "0.5"
_CONNECT_SECONDS = 5.0


def trains_in_process(scaling: ScalingConfig) -> bool:
    """Return whether stages train in this process, without Ray.

    They do if they have no workers, or one and no cluster: a worker that a cluster of this machine's own started would
    do the same half a minute later.
    """
    no_cluster = not os.environ.get("RAY_ADDRESS") and not _is_connected()
    return scaling.max_workers == 0 or (scaling.max_workers == 1 and no_cluster)


def check_workers(stages: Mapping[str, StageConfig], scaling: ScalingConfig) -> None:
    """Raise a UserError unless the workers can share the batches and the models of all stages."""
    for name, config in stages.items():
        _check_shares(f"{name}.trainer" if len(stages) > 1 else "trainer", config.trainer, scaling)


def _check_shares(name: str, trainer: TrainerConfig, scaling: ScalingConfig) -> None:
    if scaling.is_elastic and trainer.batch_size < scaling.max_workers:
        raise UserError(
            f"{name}.batch_size is {trainer.batch_size}, too little for {scaling.max_workers} workers: choose a larger "
            "one, or fewer workers in scaling.num_workers"
        )
    if not scaling.is_elastic and scaling.min_workers and trainer.batch_size % scaling.min_workers:
        raise UserError(
            f"{name}.batch_size is {trainer.batch_size}, which {scaling.min_workers} workers don't divide: choose a "
            "multiple of scaling.num_workers"
        )
    if scaling.strategy == "fsdp" and scaling.max_workers > 1 and trainer.precision == "16-mixed":
        raise UserError(
            f"{name}.precision is 16-mixed, which scaling.strategy fsdp can't do: choose bf16-mixed, or ddp"
        )


def check_cluster(scaling: ScalingConfig) -> None:
    """Find out, without starting or joining a cluster, whether the workers can be had.

    A cluster that RAY_ADDRESS names has to answer, but may yet grow: whether the workers fit is left to it.

    Raises:
        UserError: If this machine can't hold the workers, or RAY_ADDRESS leads nowhere.
    """
    if scaling.max_workers and _is_connected():
        return
    address = _address()
    if scaling.max_workers and address:
        _check_answers(address)
    else:
        _check_fits(scaling, _own_resources())


@contextmanager
def cluster(scaling: ScalingConfig) -> Iterator[None]:
    """Connect to the cluster that RAY_ADDRESS names, or start one on this machine and stop it at the end.

    Stages that train in this process need none.

    Raises:
        UserError: If RAY_ADDRESS leads nowhere.
    """
    if trains_in_process(scaling):
        yield
        return
    with connected():
        yield


@contextmanager
def connected() -> Iterator[None]:
    """Be connected to a Ray cluster: the one that this process is connected to, or that RAY_ADDRESS names, or our own.

    Raises:
        UserError: If RAY_ADDRESS leads nowhere.
    """
    if _is_connected():
        yield
        return
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", _POLL_SECONDS)
    # A process of Ray's that tells workers of nodes about to go: the driver of ours asks by itself.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    address = _address()
    options, variables = ({"address": address}, {}) if address else _local()
    with _own_signals(), environment(variables):
        import ray

        try:
            ray.init(**options, log_to_driver=False, logging_level=logging.ERROR)
        except Exception as error:
            if address is None:
                raise
            raise _wrong_address(address, str(error) or type(error).__name__) from error
    # Ray prints a page about each process that dies; what became of it is in the log and the journal of the run.
    ray._private.worker.print_to_stdstream = lambda *_, **__: None
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def _own_signals() -> Iterator[None]:
    """Keep what the program does at SIGTERM: Ray would end it at once, wherever it is."""
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)


def own_resources() -> dict[str, float] | None:
    """Return what a cluster of this machine's own would have; None where another one is used."""
    return None if _is_connected() or _address() else _own_resources()


def worker_resources(scaling: ScalingConfig) -> tuple[dict[str, float], bool]:
    """Return the resources of one worker on the connected cluster, and whether it has a GPU."""
    import ray

    return _share(scaling, ray.cluster_resources())


def own_cores(scaling: ScalingConfig) -> int:
    """Return the cores of this machine that training in this process may use."""
    return int(_share(scaling, _own_resources())[0]["CPU"])


def _share(scaling: ScalingConfig, total: Mapping[str, float]) -> tuple[dict[str, float], bool]:
    use_gpu = total.get("GPU", 0) > 0 if scaling.use_gpu is None else scaling.use_gpu
    cpus = scaling.cpus_per_worker or max(1, int(total.get("CPU", 1)) // max(1, scaling.max_workers))
    return {"CPU": float(cpus)} | ({"GPU": 1.0} if use_gpu else {}), use_gpu


def _is_connected() -> bool:
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())


def _address() -> str | None:
    """Return the address of the cluster to join; None if this machine starts one of its own."""
    address = os.environ.get("RAY_ADDRESS")
    return None if address in (None, "", "local") else address


def _check_answers(address: str) -> None:
    """Raise a UserError where nobody listens: Ray would try for minutes, and say so in many lines."""
    place = re.fullmatch(r"(?:\w+://)?\[?([^/\[\]]+)\]?:(\d{1,5})", address)
    if place is None:
        return
    try:
        socket.create_connection((place[1], int(place[2])), timeout=_CONNECT_SECONDS).close()
    except (OSError, OverflowError, ValueError) as error:
        raise _wrong_address(address, str(error)) from None


def _wrong_address(address: str, reason: str) -> UserError:
    return UserError(f"RAY_ADDRESS is {address}, but no Ray cluster answers there ({reason}): unset or mend it")


def _own_resources() -> dict[str, float]:
    """Return the cores and GPUs of this machine that a process may use."""
    import joblib  # knows the limits of containers and of affinity, which os.cpu_count does not
    import torch

    return {"CPU": float(joblib.cpu_count()), "GPU": float(torch.cuda.device_count())}


def _local() -> tuple[dict[str, Any], dict[str, str]]:
    """Return options and variables of a cluster of our own.

    Its parts find its dashboard even where another cluster runs too. They are told by variables that they inherit: with
    variables in a runtime environment, none of the processes that Ray has started ahead would serve.
    """
    port = _free_port()
    resources = _own_resources()
    options = {
        "address": "local",
        "num_cpus": int(resources["CPU"]),
        "num_gpus": int(resources["GPU"]),
        "include_dashboard": True,
        "dashboard_host": "127.0.0.1",
        "dashboard_port": port,
    }
    return options, {"RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{port}"}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _check_fits(scaling: ScalingConfig, total: Mapping[str, float]) -> None:
    cores, gpus, workers = total["CPU"], total["GPU"], scaling.min_workers
    if scaling.use_gpu and not gpus:
        raise UserError(
            "scaling.use_gpu is true, but this machine has no GPU that PyTorch can use: leave it out, or name a "
            "cluster in RAY_ADDRESS"
        )
    if workers == 0:
        return
    resources, use_gpu = _share(scaling, total)
    if workers * resources["CPU"] > cores:
        each = f", with scaling.cpus_per_worker {scaling.cpus_per_worker}" if scaling.cpus_per_worker else ""
        raise UserError(
            f"scaling.num_workers is {workers}{each}, but this machine has {cores:g} cores: ask for fewer, or name a "
            "cluster in RAY_ADDRESS"
        )
    if use_gpu and workers > gpus:
        raise UserError(
            f"scaling.num_workers is {workers}, but this machine has {gpus:g} GPUs: ask for fewer, set scaling.use_gpu "
            "to false, or name a cluster in RAY_ADDRESS"
        )
