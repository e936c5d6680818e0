"""The verbs that use trained models: their options, and where each is done.

Nothing here imports torch, so that a command line is checked at once.
"""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from perceiver.errors import UserError, one_line
from pipelines.cli import parse_options
from pipelines.models.compare_options import CompareOptions
from pipelines.models.export_options import ExportOptions
from pipelines.models.predict_options import INPUT_HELP, TEXT_HELP, BatchPredictConfig, PredictConfig
from pipelines.models.registry_options import PromoteOptions, RegisterOptions
from pipelines.models.serve_options import ServeOptions
from pipelines.report.options import ReportOptions


@dataclass(frozen=True)
class Tool:
    """A verb.

    Attributes:
        options: Dataclass of its options; its docstring says what the verb does.
        function: "module:function" that takes them, and returns an exit status or nothing.
        positional: Name of the option that needs no dashes, if there is one.
        meaning: What that option is.
        several: Whether it takes any number of values.
        repeated: Options that take any number of texts, and what they are.
    """

    options: type
    function: str
    positional: str = ""
    meaning: str = ""
    several: bool = False
    repeated: Mapping[str, str] = field(default_factory=dict)


TOOLS: dict[str, Tool] = {
    "predict": Tool(PredictConfig, "pipelines.models.predict:predict", repeated={"text": TEXT_HELP}),
    "batch-predict": Tool(
        BatchPredictConfig, "pipelines.models.batch_predict:batch_predict", repeated={"input": INPUT_HELP}
    ),
    "compare": Tool(
        CompareOptions,
        "pipelines.models.compare:compare",
        "runs",
        "Folders or URIs of runs, or their names in storage_path; the first is what the others are compared with.",
        several=True,
    ),
    "export": Tool(ExportOptions, "pipelines.models.export:export"),
    "register": Tool(
        RegisterOptions,
        "pipelines.models.register:register",
        "model",
        "A run's folder, whose last stage counts; a stage's folder; a model/ folder; or runs:/RUN_ID/model.",
    ),
    "promote": Tool(PromoteOptions, "pipelines.models.promote:promote", "name", "Name in the registry."),
    "serve": Tool(ServeOptions, "pipelines.models.serve:serve"),
    "report": Tool(
        ReportOptions,
        "pipelines.report.command:report",
        positional="run",
        meaning="Folder or URI of a run, or its name in storage_path.",
    ),
}


@dataclass(frozen=True)
class ToolCommand:
    """A parsed command line of one of the verbs."""

    tool: Tool
    options: Any

    def run(self) -> int:
        """Do it, and return the exit status.

        Raises:
            UserError: If the user made a mistake, or a file or an address can't be used.
        """
        module, _, function = self.tool.function.partition(":")
        try:
            return getattr(import_module(module), function)(self.options) or 0
        except OSError as error:
            if isinstance(error, BrokenPipeError) and _reader_has_enough():
                return 0
            what = str(error.filename)[:100] if error.filename else "a file or an address"
            reason = error.strerror or one_line(error)
            raise UserError(f"{what} can't be used ({reason}): mend that and start again") from error


def _reader_has_enough() -> bool:
    """Return whether nobody reads the standard output any more; what is left in its buffer is thrown away then."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)  # errors are told anyway
    has_enough = bool(poll.poll(0))
    if has_enough:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return has_enough


def parse_tool(verb: str, options: Sequence[str]) -> ToolCommand:
    """Turn the options of a verb into a checked command; exits with status 2 and one line if it can't be understood."""
    tool = TOOLS[verb]
    parsed = parse_options(verb, tool.options, options, tool.positional, tool.meaning, tool.several, tool.repeated)
    return ToolCommand(tool, parsed)
