"""What of a folder travels to a cluster with a job, and the runtime environment that says so."""

from __future__ import annotations

import logging
import os
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import yaml

from perceiver.errors import UserError
from pipelines.tool_cli import SubmitConfig

_SECRET_NAME = re.compile(r"PASSWORD|PASSWD|SECRET|CREDENTIAL|(^|_)(TOKEN|KEY)(_|$)", re.IGNORECASE)
_PACKAGES = ("perceiver", "pipelines")


@dataclass(frozen=True)
class Package:
    """What travels with a job.

    Attributes:
        folder: The folder that it is made of.
        files: Paths of its files, relative to the folder.
        size: Bytes, compressed.
        runtime_env: Ray's runtime environment.
    """

    folder: Path
    files: frozenset[str]
    size: int
    runtime_env: Mapping[str, Any]

    def check_holds(self, name: str, path: str) -> None:
        """Raise a UserError unless a file, or a whole folder, travels.

        Args:
            name: Option that holds it.
            path: Its path, relative to the current folder.
        """
        place = Path(os.path.abspath(path))
        if self.folder != Path.cwd():
            raise UserError(f"{name} is {path}, but the job starts in {self.folder}: start the command there")
        if not place.is_relative_to(self.folder):
            raise UserError(f"{name} is {path}, which lies outside {self.folder}: move it there, or to a shared folder")
        wanted = [place] if place.is_file() else [file for file in place.rglob("*") if file.is_file()]
        for file in wanted:
            if (relative := file.relative_to(self.folder).as_posix()) not in self.files:
                raise UserError(
                    f"{name} is {path}, but {relative} does not travel to the cluster: add it to those that "
                    "runtime-env.yaml lets through (and .gitignore), or put it into a shared folder"
                )


def make_package(config: SubmitConfig) -> Package:
    """Find out what would travel, as Ray will pack it.

    Raises:
        UserError: If it could not run there, or holds what others must not read.
    """
    folder = Path(config.working_dir).expanduser().resolve()
    for name in _PACKAGES:
        if not (folder / name / "__init__.py").is_file():
            raise UserError(f"working_dir {config.working_dir} holds no {name}/: name the folder of the project")
    runtime_env = _read_runtime_env(config.runtime_env)
    files, size = _pack(folder, runtime_env.get("excludes") or [])
    for name in _PACKAGES:
        if f"{name}/__init__.py" not in files:
            raise UserError(f"runtime_env {config.runtime_env} keeps {name}/ from travelling: mend its excludes")
    return Package(folder, files, size, {**runtime_env, "working_dir": str(folder)})


def _read_runtime_env(name: str | None) -> dict[str, Any]:
    file = Path(name).expanduser() if name else None
    if file is None or (not file.exists() and name == SubmitConfig.runtime_env):
        return {}
    try:
        content = yaml.safe_load(file.read_text()) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise UserError(f"runtime_env {name} cannot be read ({reason}): correct it") from None
    variables = content.get("env_vars") or {} if isinstance(content, dict) else None
    if not isinstance(content, dict) or not isinstance(variables, dict):
        raise UserError(f"runtime_env {name} holds no options, such as excludes: and env_vars: correct it")
    if secret := next(filter(_SECRET_NAME.search, variables), None):
        raise UserError(
            f"runtime_env {name} holds {secret}, which everybody who may look at jobs could read: remove it, and set "
            "it on the cluster's nodes"
        )
    return content


def _silent() -> logging.Logger:
    logger = logging.Logger("package")
    logger.disabled = True
    return logger


def _pack(folder: Path, excludes: list[str]) -> tuple[frozenset[str], int]:
    """Return the names of the files, and the size of the archive."""
    from ray._private.ray_constants import get_runtime_env_default_excludes
    from ray._private.runtime_env.packaging import GCS_STORAGE_MAX_SIZE, create_package

    with tempfile.TemporaryDirectory() as temporary:
        archive = Path(temporary) / "package.zip"
        create_package(
            str(folder),
            archive,
            include_gitignore=os.environ.get("RAY_RUNTIME_ENV_IGNORE_GITIGNORE", "0") != "1",
            excludes=[*get_runtime_env_default_excludes(), *excludes],
            logger=_silent(),
        )
        size = archive.stat().st_size
        with ZipFile(archive) as file:
            names = frozenset(name for name in file.namelist() if not name.endswith("/"))
    if size >= GCS_STORAGE_MAX_SIZE:
        raise UserError(
            f"working_dir {folder} makes a package of {size / 1e6:.0f} MB, more than {GCS_STORAGE_MAX_SIZE / 1e6:.0f}: "
            "exclude data and results in the runtime_env file"
        )
    return names, size
