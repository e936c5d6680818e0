"""Train one stage on the workers of a Ray cluster: a TorchTrainer around the worker's function."""

from __future__ import annotations

import signal
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ray
import ray.train
from ray.train import FailureConfig
from ray.train.torch import TorchConfig, TorchTrainer

from pipelines.build import Report
from pipelines.cluster import worker_resources
from pipelines.config import ScalingConfig
from pipelines.stages import StagePlan
from pipelines.worker import run_stage

_POLL_SECONDS = 0.5


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
    """
    resources, use_gpu = worker_resources(scaling)
    scratch = plan.storage / ".ray"
    with _relay(report) as mailbox:
        trainer = TorchTrainer(
            _worker,
            train_loop_config={"plan": plan, "mailbox": mailbox},
            torch_config=_GroupIfNeeded(),
            scaling_config=ray.train.ScalingConfig(
                num_workers=scaling.num_workers, use_gpu=use_gpu, resources_per_worker=resources
            ),
            # A name of its own: Ray's notes about a run are of no use to us, and a torn one would stop a resumed run.
            run_config=ray.train.RunConfig(
                name=uuid.uuid4().hex[:8],
                storage_path=scratch.path,
                storage_filesystem=scratch.filesystem,
                failure_config=FailureConfig(max_failures=scaling.max_failures),
            ),
        )
        with _interrupt_as_usual():
            result = trainer.fit().return_value
    scratch.delete()
    return result


@contextmanager
def _interrupt_as_usual() -> Iterator[None]:
    """Let Ctrl-C raise KeyboardInterrupt, here and afterwards: Ray stops the workers, but then exits with status 0."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as stop:
        raise KeyboardInterrupt from stop
    finally:
        signal.signal(signal.SIGINT, handler)


def _worker(config: dict[str, Any]) -> dict[str, Any]:
    """Run on each training worker."""
    context = ray.train.get_context()
    mailbox = config["mailbox"]

    def report(state: dict[str, Any]) -> None:
        mailbox.put.remote(state)

    return run_stage(config["plan"], report, context.get_world_rank(), context.get_world_size())


class _Mailbox:
    """Holds what the workers report until the driver takes it."""

    def __init__(self) -> None:
        self.states: list[dict[str, Any]] = []

    def put(self, state: dict[str, Any]) -> None:
        self.states.append(state)

    def take(self) -> list[dict[str, Any]]:
        states, self.states = self.states, []
        return states


@contextmanager
def _relay(report: Report) -> Iterator[Any]:
    """Pass what the workers report on to the driver, from a thread."""
    mailbox = ray.remote(num_cpus=0)(_Mailbox).remote()
    stopped = threading.Event()

    def deliver() -> None:
        for state in ray.get(mailbox.take.remote()):
            report(state)

    thread = threading.Thread(target=_poll, args=(deliver, stopped), daemon=True)
    thread.start()
    try:
        yield mailbox
    finally:
        stopped.set()
        thread.join()
        ray.kill(mailbox)


def _poll(deliver: Callable[[], None], stopped: threading.Event) -> None:
    while True:
        last = stopped.wait(_POLL_SECONDS)
        try:
            deliver()
        except ray.exceptions.RayError:
            return
        if last:
            return


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

        return Backend
