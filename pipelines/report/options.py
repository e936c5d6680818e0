"""The options of `python -m pipelines report`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ReportOptions:
    """Draw a run, or draw it again: report.html and pictures/ in its folder, and in MLflow if that has the run."""

    run: str
    """Folder or URI of a run, or its name in storage_path."""
    storage_path: str = "runs"
    """Folder or URI of all results."""
