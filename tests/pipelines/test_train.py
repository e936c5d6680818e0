"""Training in this process: Ray stays out of it, and the machine and the signals are left as they were."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from pipelines import worker
from pipelines.config import ScalingConfig
from pipelines.train import train
from tests.pipelines.mistakes import IMAGES, OPTIONS

DRIVER = """
import sys
from pipelines.__main__ import main
main(sys.argv[1:])
loaded = {unwanted} & sys.modules.keys()
sys.exit(f"loaded: {{loaded}}" if loaded else 0)
"""
UNWANTED = {"ray", "mlflow", "tensorboard", "sklearn.linear_model"}


def test_one_worker_loads_nothing_that_it_does_not_need(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    options = {**OPTIONS, **IMAGES, "trainer.max_epochs": 1}
    arguments = [f"--{name}={value}".replace("{root}", str(tmp_path)) for name, value in options.items()]
    for unwanted in (UNWANTED, {*UNWANTED, "pytorch_lightning"}):  # the second time there is nothing to train
        program = [sys.executable, "-c", DRIVER.format(unwanted=unwanted), "image-classifier", *arguments]
        process = subprocess.run(program, capture_output=True, text=True, check=False, timeout=240)
        assert process.returncode == 0, process.stderr
    assert (tmp_path / "runs" / "images" / "image-classifier" / "model" / "model.safetensors").exists()


def run(monkeypatch: pytest.MonkeyPatch, scaling: ScalingConfig, stage: Any) -> dict[str, Any]:
    """Train a stage that does nothing but what the test says."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(worker, "run_stage", stage)
    return train(None, scaling, print)  # type: ignore[arg-type]


def test_threads_are_those_that_a_worker_would_have(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(3)
    try:
        scaling = ScalingConfig(cpus_per_worker=2)
        result = run(monkeypatch, scaling, lambda plan, report: {"threads": torch.get_num_threads()})
        assert result == {"threads": 2}
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(1)


def test_sigterm_stops_training(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        run(monkeypatch, ScalingConfig(), lambda plan, report: signal.raise_signal(signal.SIGTERM))
    assert signal.getsignal(signal.SIGTERM) is before


def test_the_driver_of_workers_and_the_controller_of_ray_do_not_wait_for_lightning() -> None:
    code = "import sys, pipelines.train, pipelines.ray_train; sys.exit('pytorch_lightning' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
