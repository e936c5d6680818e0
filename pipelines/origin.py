"""Who runs what: the facts about a start of a pipeline that its settings don't hold."""

from __future__ import annotations

import getpass
import os
import subprocess
import sys
from pathlib import Path

GIT_COMMIT = "PERCEIVER_GIT_COMMIT"
"""Environment variable of a job, whose copy of the code has no history, with the commit that it is of."""


def origin_tags() -> dict[str, str]:
    """Return who runs what: the tags that MLflow's own runs have, and the commit of the checkout in use, if any."""
    script = Path(sys.argv[0])
    name = f"-m {script.parent.name}" if script.name == "__main__.py" else str(script)
    tags = {"mlflow.source.name": name, "mlflow.source.type": "LOCAL"}
    try:
        tags["mlflow.user"] = getpass.getuser()
    except (KeyError, OSError):  # a container may run as a user without a name
        tags["mlflow.user"] = "unknown"
    commit = git_commit()
    if commit:
        tags |= {"git_commit": commit, "mlflow.source.git.commit": commit}
        tags["git_dirty"] = str(bool(_git(".", "status", "--porcelain", "--untracked-files=no"))).lower()
    elif commit := os.environ.get(GIT_COMMIT, ""):
        tags |= {"git_commit": commit, "mlflow.source.git.commit": commit}
    return tags


def git_commit(folder: str | Path = ".") -> str:
    """Return the commit of the checkout that a folder belongs to; nothing if there is none."""
    return _git(folder, "rev-parse", "HEAD")


def _git(folder: str | Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return run.stdout.strip() if run.returncode == 0 else ""
