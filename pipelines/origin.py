"""Who runs what: the facts about a start of a pipeline that its settings don't hold."""

from __future__ import annotations

import getpass
import subprocess
import sys
from pathlib import Path


def origin_tags() -> dict[str, str]:
    """Return who runs what: the tags that MLflow's own runs have, and the commit of the checkout in use, if any."""
    script = Path(sys.argv[0])
    name = f"-m {script.parent.name}" if script.name == "__main__.py" else str(script)
    tags = {"mlflow.source.name": name, "mlflow.source.type": "LOCAL"}
    try:
        tags["mlflow.user"] = getpass.getuser()
    except (KeyError, OSError):  # a container may run as a user without a name
        tags["mlflow.user"] = "unknown"
    commit = _git("rev-parse", "HEAD")
    if commit:
        tags |= {"git_commit": commit, "mlflow.source.git.commit": commit}
        tags["git_dirty"] = str(bool(_git("status", "--porcelain", "--untracked-files=no"))).lower()
    return tags


def _git(*arguments: str) -> str:
    try:
        run = subprocess.run(["git", *arguments], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return run.stdout.strip() if run.returncode == 0 else ""
