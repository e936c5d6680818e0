"""The options of `python -m pipelines export`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class ExportOptions:
    """Write a trained model as one file for runtimes that don't know this project: ONNX, or a program of torch.export.

    It is compared with the model before it is put in its place. Configuration and tokenizer are in it, as text.
    """

    model: str
    """A run's, a stage's or a model's folder or URI, runs:/RUN_ID/model, models:/NAME@ALIAS or models:/NAME/VERSION."""
    output: str
    """File to write, which ends in .onnx or .pt2."""
    format: Literal["onnx", "torch-export"] = "onnx"
    """Format of the file."""
    opset: int | None = None
    """Version of ONNX's operators, 18 to 23 (null: torch's choice)."""
    batch: int | Literal["dynamic"] = "dynamic"
    """Inputs of a call: any number (dynamic), or exactly so many."""
    tracking_uri: str | None = None
    """MLflow that has the model (null: MLFLOW_TRACKING_URI, else mlflow.db in ./runs)."""

    def __post_init__(self) -> None:
        if isinstance(self.batch, int) and self.batch < 1:
            raise ValueError(f"batch is {self.batch}, but must be dynamic, or 1 or more")
        if self.opset is not None and self.format != "onnx":
            raise ValueError(f"opset is {self.opset}, but only onnx has one: leave it out")
        if self.opset is not None and not 18 <= self.opset <= 23:
            raise ValueError(f"opset is {self.opset}, but must be 18 to 23")
