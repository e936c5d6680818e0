"""Where something was measured."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import joblib
import torch

from tests.benchmarks.settings import REPOSITORY, Settings

_PACKAGES = ("torch", "pytorch-lightning", "perceiver-pytorch", "transformers")


def describe(settings: Settings) -> dict[str, str]:
    """Return what has to be known about a measurement, by what it is called on the page."""
    sets = {"imdb": "reviews of IMDB", "mnist": "MNIST"}
    found = [shown for name, shown in sets.items() if settings.find_data(name)]
    facts = {
        "command": f"`{settings.command}`",
        "data": " and ".join(found) or "built-in toy reviews and random images",
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "commit": _commit(),
        "processor": f"{_processor()}, {joblib.cpu_count()} cores, {torch.get_num_threads()} threads, {_memory()}",
        "system": f"{platform.system()}, {' '.join(platform.libc_ver()).strip()}, Python {platform.python_version()}",
        "packages": ", ".join(f"{package} {_version(package)}" for package in _PACKAGES),
    }
    if settings.device == "cuda":
        facts["GPU"] = f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}, bf16 mixed precision for all"
    if settings.size != "default":
        facts["size"] = f"{settings.size}: for tests, these figures mean nothing"
    return facts


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _memory() -> str:
    return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "(missing)"


def _commit() -> str:
    """Return the commit, and whether the code that is measured was changed since."""
    try:
        commit = _git("describe", "--always")
        changes = _git("status", "--porcelain", "--", "perceiver", "pipelines", "tests", "pyproject.toml")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{commit}, changed" if changes else commit


def _git(*arguments: str) -> str:
    return subprocess.run(
        ["git", *arguments], cwd=REPOSITORY, capture_output=True, text=True, check=True
    ).stdout.strip()
