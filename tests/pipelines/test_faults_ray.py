"""What can happen to the workers or the driver of a training, for real: the run ends as if nothing had happened."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import replace

import pytest
from ray.train.v2._internal.constants import CHECKPOINT_MANAGER_SNAPSHOT_FILENAME

from tests.pipelines.ray_faults import (
    STEPS,
    Run,
    assert_as_if_undisturbed,
    assert_in_mlflow,
    newest_checkpoint,
    wait_for,
)
from tests.ray_head import ray_head

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

TIMEOUT_SECONDS = 12
WAITED = "waited too long for another worker"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """A run that nothing happens to, on a cluster that the others share."""
    with ray_head(OMP_NUM_THREADS="1", RAY_worker_niceness="0") as head:
        environment = {**head.environment, "RAY_ADDRESS": head.address}
        run = Run(tmp_path_factory.mktemp("faults"), "whole", environment, {})
        assert run.end() == 0, run.log
        assert_as_if_undisturbed(run, run)
        yield run


def test_workers_that_are_killed_frozen_or_asleep_are_started_again(whole: Run) -> None:
    options = {"scaling.max_failures": 4, "scaling.timeout_seconds": TIMEOUT_SECONDS}
    run = replace(whole, name="workers", options=options, sleeps_at=23)
    faults = [(0, 5, signal.SIGKILL), (1, 11, signal.SIGKILL), (1, 17, signal.SIGSTOP)]
    with run.started() as process:
        for attempt, (rank, step, fault) in enumerate(faults, start=1):
            os.kill(run.wait_for_step(process, step, attempt)[rank], fault)
        assert process.wait(240) == 0, run.log
    killed_first, killed_second, frozen, asleep = run.reasons()
    assert killed_first == "worker 0: its process died"
    assert killed_second == "worker 1: its process died"
    assert frozen in ("worker 1: its process did not answer", f"worker 0: {WAITED}")
    assert asleep == f"worker 1: {WAITED}"
    assert run.result()["restarts"] == 4
    assert_as_if_undisturbed(run, whole)


def test_a_driver_is_killed_and_stopped_with_a_torn_snapshot_of_ray_and_a_second_driver(whole: Run) -> None:
    run = replace(whole, name="driver")
    with run.started() as process:
        run.wait_for_step(process, 5)
        process.kill()
        process.wait(10)
    empty_snapshot_of_ray(run)

    run = replace(run, environment={**run.environment, "RAY_ADDRESS": "local"})
    with run.started() as process:
        wait_for(lambda: "goes on from its newest checkpoint" in run.log)
        assert_second_driver_is_refused(run, process.pid)
        run.wait_for_step(process, 12, attempts=2)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        assert process.wait(60) == 130, run.log
    assert_stopped(run)

    assert run.end() == 0, run.log
    assert_as_if_undisturbed(run, whole)


def empty_snapshot_of_ray(run: Run) -> None:
    """Leave an empty snapshot, where Ray writes none, since nothing goes through its own reports."""
    (folder,) = (run.folder / ".ray").iterdir()
    (folder / CHECKPOINT_MANAGER_SNAPSHOT_FILENAME).write_bytes(b"")


def assert_second_driver_is_refused(run: Run, holder: int) -> None:
    second = replace(run, log_name="second")
    assert second.end() == 2
    (line,) = second.log.splitlines()
    assert line.startswith(f"error: {run.folder.parent} is in use by process {holder} of ")


def assert_stopped(run: Run) -> None:
    assert "stopped; the same command goes on from the newest checkpoint" in run.log
    last = max(run.trained())
    assert newest_checkpoint(run) == last < STEPS
    assert_in_mlflow(run, "KILLED", last)


def test_two_workers_then_one_then_two_train_the_same_samples(whole: Run) -> None:
    two = replace(whole, name="sizes")
    with two.started() as process:
        two.wait_for_step(process, 8)
        process.terminate()
        assert process.wait(60) == 130, two.log
    assert_stopped(two)
    one = replace(two, options={"scaling.num_workers": 0})
    with one.started() as process:
        one.wait_for_step(process, 17, attempts=2)
        process.terminate()
        assert process.wait(60) == 130, one.log
    assert two.end() == 0, two.log
    assert two.worlds() == [2, 1, 2]
    assert_as_if_undisturbed(two, whole)


def test_without_restarts_the_first_death_ends_the_run(whole: Run) -> None:
    run = replace(whole, name="final", options={"scaling.max_failures": 0})
    with run.started() as process:
        os.kill(run.wait_for_step(process, 5)[1], signal.SIGKILL)
        assert process.wait(60) == 1, run.log
    reason = "worker 1: its process died, and scaling.max_failures allows no more restarts"
    story = f"the whole story is in {run.folder}/error.txt"
    assert run.log.splitlines()[-1] == f"error: stage image-classifier failed: {reason}; {story}"
    assert "its worker process has died" in (run.folder / "error.txt").read_text()
    assert run.mlflow()["status"] == ["FAILED", "FAILED"]
