"""A run that is killed and started again ends with the weights of the run that was not, bit for bit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tests.commands import Start, commands

STEPS_PER_EPOCH = 63  # ceil(500 / 8)
EPOCHS = 3


def command(tmp_path: Path, run_name: str, mlflow: bool = False) -> list[str]:
    options = {
        "run_name": run_name,
        "storage_path": tmp_path / "runs",
        "data.path": "toy_reviews",
        "data.limit": 500,
        "data.max_seq_len": 48,
        "data.cache_dir": tmp_path / "cache",
        "encoder.num_latents": 8,
        "encoder.num_latent_channels": 32,
        "encoder.num_layers": 2,
        "encoder.num_self_attention_layers_per_block": 1,
        "dropout": 0.2,
        "optimizer.schedule": "cosine",
        "trainer.max_epochs": EPOCHS,
        "trainer.batch_size": 8,
        "trainer.checkpoint_every_n_steps": 10,
        "scaling.cpus_per_worker": 1,
        "tracking.mlflow": str(mlflow).lower(),
        "tracking.tensorboard": "false",
        "tracking.report": "false",
    }
    return [sys.executable, "-m", "pipelines", "mlm", *(f"--{name}={value}" for name, value in options.items())]


IN_PROCESS, RAY_WORKER = "", "local"  # RAY_ADDRESS for a worker in the command's own process, and for one of Ray's


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log.txt"


@pytest.fixture
def start(log: Path, ray_address: str) -> Iterator[Start]:
    """Start commands whose output goes to the log; none outlives the test."""
    with commands(log, {**os.environ, "RAY_ADDRESS": ray_address}) as start:
        yield start


def wait_for_step(journal: Path, step: int, process: subprocess.Popen[bytes], deadline: float = 150.0) -> int:
    """Wait until the journal holds a record of at least `step`; return the newest."""
    end = time.monotonic() + deadline
    while time.monotonic() < end:
        assert process.poll() is None, "training ended before it could be killed"
        lines = journal.read_text().splitlines() if journal.exists() else []
        newest = max((json.loads(line)["step"] for line in lines if line.endswith("}")), default=0)
        if newest >= step:
            return newest
        time.sleep(0.02)
    raise AssertionError(f"no step {step} within {deadline} s")


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "ray_address",
    [
        pytest.param(IN_PROCESS, id="in-process"),
        pytest.param(RAY_WORKER, id="ray-worker", marks=pytest.mark.slow),
    ],
)
def test_killed_run_ends_with_the_same_weights(tmp_path: Path, log: Path, start: Start) -> None:
    whole, killed = tmp_path / "runs" / "whole" / "mlm", tmp_path / "runs" / "killed" / "mlm"
    assert start(command(tmp_path, "whole")).wait(300) == 0, log.read_text()

    process = start(command(tmp_path, "killed"))
    step = wait_for_step(killed / "metrics.jsonl", STEPS_PER_EPOCH + 15, process)
    os.kill(process.pid, signal.SIGKILL)
    process.wait(30)
    assert step % STEPS_PER_EPOCH != 0, "killed in the middle of an epoch"
    assert step < EPOCHS * STEPS_PER_EPOCH
    assert json.loads((killed / "stage.json").read_text())["status"] == "running"
    assert not (killed / "model").exists()

    assert start(command(tmp_path, "killed")).wait(300) == 0, log.read_text()
    assert "goes on from its newest checkpoint" in log.read_text()
    assert (killed / "model" / "model.safetensors").read_bytes() == (whole / "model" / "model.safetensors").read_bytes()
    assert losses(killed) == losses(whole)


@pytest.mark.parametrize("ray_address", [pytest.param(IN_PROCESS, id="in-process")])
def test_sigterm_ends_training_as_ctrl_c_does(tmp_path: Path, log: Path, start: Start) -> None:
    process = start(command(tmp_path, "stopped", mlflow=True))
    wait_for_step(tmp_path / "runs" / "stopped" / "mlm" / "metrics.jsonl", 5, process)
    process.terminate()
    assert process.wait(60) == 130, log.read_text()
    assert "stopped; the same command goes on from the newest checkpoint" in log.read_text()
    client = MlflowClient(f"sqlite:///{tmp_path}/runs/mlflow.db")
    experiment = client.get_experiment_by_name("perceiver")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    assert {run.info.run_name: run.info.status for run in runs} == {"stopped": "KILLED", "mlm": "KILLED"}


def losses(folder: Path) -> list[tuple[str, int, float]]:
    """Return kind, step and loss of every record; a gap or a repetition shows as a difference."""
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(r["kind"], r["step"], r.get("loss", r.get("val_loss"))) for r in records if r["kind"] != "event"]
