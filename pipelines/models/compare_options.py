"""The options of `python -m pipelines compare`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


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
