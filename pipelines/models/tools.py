"""The verbs that use trained models: their options, and where each is done.

Nothing here imports torch, so that a command line is checked at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal

from pipelines.cli import parse_options


@dataclass(frozen=True)
class Tool:
    """A verb.

    Attributes:
        options: Dataclass of its options; its docstring says what the verb does.
        function: "module:function" that takes them, and returns an exit status or nothing.
        positional: Name of the option that needs no dashes, if there is one.
        meaning: What that option is.
        several: Whether it takes any number of values.
    """

    options: type
    function: str
    positional: str = ""
    meaning: str = ""
    several: bool = False


@dataclass(frozen=True)
class CompareOptions:
    """Say how runs of one task differ: in settings, metrics, cost, and the test samples that they predict differently.

    The first run is what the others are compared with.
    """

    runs: tuple[str, ...]
    """Folders, URIs or names of runs."""
    storage_path: str = "runs"
    """Folder or URI of all results."""
    num_samples: int = 10
    """Samples shown whose prediction differs, at most."""
    format: Literal["table", "json"] = "table"
    """What to print."""

    def __post_init__(self) -> None:
        if len(self.runs) < 2:
            raise ValueError(f"runs is {', '.join(self.runs)}, but must be two or more")
        if self.num_samples < 0:
            raise ValueError(f"num_samples is {self.num_samples}, but must be 0 or more")


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


TOOLS: dict[str, Tool] = {
    "compare": Tool(
        CompareOptions,
        "pipelines.models.compare:compare",
        "runs",
        "Folders or URIs of runs, or their names in storage_path; the first is what the others are compared with.",
        several=True,
    ),
    "export": Tool(ExportOptions, "pipelines.models.export:export"),
}


@dataclass(frozen=True)
class ToolCommand:
    """A parsed command line of one of the verbs."""

    tool: Tool
    options: Any

    def run(self) -> int:
        """Do it, and return the exit status.

        Raises:
            UserError: If the user made a mistake.
        """
        module, _, function = self.tool.function.partition(":")
        return getattr(import_module(module), function)(self.options) or 0


def parse_tool(verb: str, options: Sequence[str]) -> ToolCommand:
    """Turn the options of a verb into a checked command; exits with status 2 and one line if it can't be understood."""
    tool = TOOLS[verb]
    return ToolCommand(tool, parse_options(verb, tool.options, options, tool.positional, tool.meaning, tool.several))
