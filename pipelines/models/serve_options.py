"""Options of `python -m pipelines serve`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pipelines.config import check_no_password

Device = Literal["auto", "cpu", "cuda"]


@dataclass(frozen=True)
class ServeOptions:
    """Answer HTTP requests with a trained model, on Ray Serve. What arrives at the same time is computed together."""

    model: str
    """A run's folder, whose last stage counts; a model/ folder; runs:/RUN_ID/model; models:/NAME@ALIAS or
    models:/NAME/VERSION."""
    host: str = "127.0.0.1"
    """Address to listen at. Nobody is asked for a password: any other than the default lets others in."""
    port: int = 8000
    """Port to listen at."""
    num_replicas: int = 1
    """Copies of the model, each in a process of its own."""
    max_batch_size: int = 32
    """Inputs that are computed together at most: whatever has come while the model was busy."""
    max_inputs: int = 64
    """Inputs in a request at most."""
    max_bytes: int = 1_000_000
    """Size of a request at most, in bytes."""
    device: Device = "auto"
    """Where the model computes (auto: on GPUs if there are any)."""
    tracking_uri: str | None = None
    """MLflow tracking URI of a model that MLflow has (null: MLFLOW_TRACKING_URI, else mlflow.db in ./runs)."""

    def __post_init__(self) -> None:
        for name in ("num_replicas", "max_batch_size", "max_inputs", "max_bytes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, but must be 1 or more")
        if not 1 <= self.port <= 65535:
            raise ValueError(f"port is {self.port}, but must be from 1 to 65535")
        if self.device not in ("auto", "cpu", "cuda"):
            raise ValueError(f"device is {self.device!r}, but must be auto, cpu or cuda")
        check_no_password(self.tracking_uri)
