"""What the command line sets, and where results lie."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.benchmarks.workloads import Size

REPOSITORY = Path(__file__).parents[2]


def say(message: str) -> None:
    """Tell the user how far the measurement is."""
    print(message, file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Settings:
    """How everything is measured.

    Attributes:
        device: cpu or cuda.
        size: default, or tiny for tests.
        rounds: Rounds that count; one more comes before them.
        batches: Batches in a round.
        steps: Steps of the loss curves.
        data: Folder with imdb/ and mnist/ (none: built-in data).
        results: Folder of the raw results.
        out: Page to write.
        regimes: Names of the allocator's regimes, see tests.benchmarks.processes.
        timeout: Seconds after which a size is given up in the section on growth.
        command: The command line, for the page.
    """

    device: str = "cpu"
    size: Size = "default"
    rounds: int = 5
    batches: int = 5
    steps: int = 200
    data: Path | None = None
    results: Path = REPOSITORY / "build" / "benchmarks"
    out: Path = REPOSITORY / "docs" / "benchmarks.md"
    regimes: tuple[str, ...] = ("as run", "tuned")
    timeout: float = 120.0
    command: str = ""

    @property
    def cache(self) -> Path:
        """Folder of tokenized reviews and decoded images."""
        return self.results / "cache"

    def find_data(self, name: str) -> str | None:
        """Return the folder of a data set; None if there is none."""
        folder = None if self.data is None else self.data / name
        return str(folder) if folder is not None and folder.is_dir() else None

    def picture(self, name: str) -> Path:
        """Return the file of a picture beside the page."""
        return self.out.with_suffix("") / f"{name}-{self.device}.png"

    def save(self, section: str, result: Mapping[str, Any]) -> None:
        """Keep the raw result of a section, in place of the one that was there."""
        self.results.mkdir(parents=True, exist_ok=True)
        file = self.results / f"{section}.{self.device}.json"
        file.write_text(json.dumps(result, indent=1) + "\n")

    def load(self, section: str) -> dict[str, Any] | None:
        """Return the raw result of a section; None if it was not measured."""
        file = self.results / f"{section}.{self.device}.json"
        if not file.exists():
            return None
        result: dict[str, Any] = json.loads(file.read_text())
        return result
