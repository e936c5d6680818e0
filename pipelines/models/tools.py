"""The verbs that use trained models: their options, and where each is done.

Nothing here imports torch, so that a command line is checked at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

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
class ReportOptions:
    """Draw a run, or draw it again: report.html and pictures/ in its folder, and in MLflow if that has the run."""

    run: str
    """Folder or URI of a run, or its name in storage_path."""
    storage_path: str = "runs"
    """Folder or URI of all results."""


TOOLS: dict[str, Tool] = {
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
            UserError: If the user made a mistake.
        """
        module, _, function = self.tool.function.partition(":")
        return getattr(import_module(module), function)(self.options) or 0


def parse_tool(verb: str, options: Sequence[str]) -> ToolCommand:
    """Turn the options of a verb into a checked command; exits with status 2 and one line if it can't be understood."""
    tool = TOOLS[verb]
    return ToolCommand(tool, parse_options(verb, tool.options, options, tool.positional, tool.meaning, tool.several))
