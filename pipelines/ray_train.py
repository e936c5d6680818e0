"""Train one stage on the workers of a Ray cluster: a TorchTrainer around the worker's function."""

from __future__ import annotations

import os
import queue
import threading
import time
import uuid
from typing import Any

import ray
import ray.train
from ray.train import FailureConfig
from ray.train.torch import TorchConfig, TorchTrainer

from pipelines.cluster import worker_resources
from pipelines.config import ScalingConfig
from pipelines.control import DivergedError, Link, Report, StoppedError, Wish, stop_requests
from pipelines.mailbox import Failures, Relay, WishReader
from pipelines.stages import StagePlan

_LOOK_SECONDS = 0.2
_HEALTH_CHECK = "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S"
_DIVERGED, _STOPPED = "diverged", "stopped"


def train_on_workers(plan: StagePlan, scaling: ScalingConfig, report: Report) -> dict[str, Any]:
    """Train a stage on the workers that the config asks for; the cluster must be connected.

    Args:
        plan: What to train.
        scaling: Workers.
        report: Called on the driver with the state of the training.

    Returns:
        The stage's result, as `pipelines.worker.run_stage` returns it.

    Raises:
        ray.train.TrainingFailedError: If training failed more often than the config allows.
        DivergedError: If the numbers make no sense any more.
        KeyboardInterrupt: If the user stopped it, by Ctrl-C or SIGTERM.
    """
    resources, use_gpu = worker_resources(scaling)
    os.environ.setdefault(_HEALTH_CHECK, str(scaling.timeout_seconds))
    relay = Relay(report, f"{scaling.min_workers} workers of {_listed(resources)} each")
    scratch = plan.storage / ".ray"
    scratch.delete()  # what a driver that died left there
    trainer = TorchTrainer(
        _worker,
        train_loop_config={"plan": plan, "mailbox": relay.mailbox, "strategy": scaling.strategy},
        torch_config=_GroupIfNeeded(timeout_s=scaling.timeout_seconds),
        scaling_config=ray.train.ScalingConfig(
            num_workers=scaling.num_workers, use_gpu=use_gpu, resources_per_worker=resources
        ),
        # A name of its own: Ray's notes about a run are of no use to us, and a torn one would stop a resumed run.
        run_config=ray.train.RunConfig(
            name=uuid.uuid4().hex[:8],
            storage_path=scratch.path,
            storage_filesystem=scratch.filesystem,
            failure_config=FailureConfig(max_failures=scaling.max_failures),
            callbacks=[Failures(relay.mailbox)],
        ),
    )
    with relay.running():
        result = _fit(trainer, relay, scaling.timeout_seconds)
    scratch.delete()
    if _DIVERGED in result:
        raise DivergedError(result[_DIVERGED])
    if _STOPPED in result:
        raise KeyboardInterrupt
    return result


def _listed(resources: dict[str, float]) -> str:
    return ", ".join(f"{amount:g} {name}" for name, amount in resources.items())


def _fit(trainer: TorchTrainer, relay: Relay, seconds_to_stop: float) -> dict[str, Any]:
    """Fit in a thread, while this one, the main one, takes the signals that ask to stop.

    The workers are asked to stop after a checkpoint. Where they can't, because they don't train at the moment, or
    don't within some seconds, KeyboardInterrupt is raised and they die with the connection to the cluster.
    """
    outcome: queue.Queue[dict[str, Any] | BaseException] = queue.Queue()

    def fit() -> None:
        try:
            outcome.put(trainer.fit().return_value)
        except BaseException as error:  # it is raised where the outcome is waited for
            outcome.put(error)

    with stop_requests() as requests:
        threading.Thread(target=fit, name="fit", daemon=True).start()
        deadline = float("inf")
        while True:
            if requests.wish() and deadline == float("inf"):
                deadline = time.monotonic() + (seconds_to_stop if relay.phase == "training" else 0.0)
                relay.ask(Wish.STOP)
            if time.monotonic() > deadline:
                raise KeyboardInterrupt
            try:
                result = outcome.get(timeout=_LOOK_SECONDS)
            except queue.Empty:
                continue
            if isinstance(result, BaseException):
                raise result
            return result


def _worker(config: dict[str, Any]) -> dict[str, Any]:
    """Run on each training worker. What another attempt would not mend is returned, so that Ray makes none."""
    from pipelines.worker import run_stage  # Lightning takes seconds to import, and Ray's controller reads this module

    context = ray.train.get_context()
    rank, mailbox = context.get_world_rank(), config["mailbox"]
    reasons = ray.get(mailbox.join.remote(rank, ray.get_runtime_context().get_node_id()))

    def report(state: dict[str, Any]) -> None:
        mailbox.put.remote(state)

    link = Link(
        report, WishReader(mailbox), rank, context.get_world_size(), reasons, local_rank=context.get_local_rank()
    )
    try:
        return run_stage(config["plan"], link, config["strategy"])
    except StoppedError:
        return {_STOPPED: True}
    except DivergedError as error:
        return {_DIVERGED: str(error)}


class _GroupIfNeeded(TorchConfig):
    """Sets up torch's process group for several workers, and none for one."""

    @property
    def backend_cls(self) -> type:
        """The backend that starts the group."""
        base = super().backend_cls

        class Backend(base):  # type: ignore[misc, valid-type]
            def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
                if len(worker_group) > 1:
                    super().on_start(worker_group, backend_config)

            def on_shutdown(self, worker_group: Any, backend_config: TorchConfig) -> None:
                pass  # the processes end, and their group with them; Ray would wait 30 s for one that is frozen

        return Backend
