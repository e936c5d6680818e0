"""Options that mean something else on a cluster than here: relative paths and the default storage."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from perceiver.data.image_sources import DIGITS
from perceiver.data.sources import is_local
from perceiver.data.text_sources import TOY_REVIEWS
from perceiver.errors import UserError
from pipelines.config import RunConfig
from pipelines.package import Package
from pipelines.tool_cli import SubmitCommand

_SQLITE = "sqlite:///"
_DATA_PATHS = ("path", "test_path", "unlabelled_path", "tokenizer")


def check_options(command: SubmitCommand, package: Package) -> None:
    """Find options that would not do on a cluster.

    Raises:
        UserError: If there is one.
    """
    run, config = command.command.run, command.command.config
    if _is_relative(run.storage_path):
        raise UserError(
            f"storage_path is {run.storage_path}, which on the cluster would lie in the job's temporary folder and be "
            "lost: give a bucket (s3://..., gs://...) or a folder that all nodes share"
        )
    uri = run.tracking.uri or ""
    if uri.startswith(_SQLITE) and _is_relative(uri.removeprefix(_SQLITE)):
        raise UserError(
            f"tracking.uri is {uri}, which on the cluster would lie in the job's temporary folder and be lost: give "
            "the address of a server, or of a database in a shared folder"
        )
    for file in _config_files(command.options):
        if _is_relative(file):
            package.check_holds("--config", file)
        else:
            raise UserError(f"--config is {file}, which may not be there: give a relative path in {package.folder}")
    for name, path in _input_paths(config):
        if _is_relative(path) and is_local(path):
            package.check_holds(name, path)


def no_database(run: RunConfig) -> bool:
    """Return whether MLflow's database would lie in the folder that the job starts in."""
    return run.tracking.mlflow and not run.tracking.uri and "://" in run.storage_path


def _is_relative(path: str) -> bool:
    return not (path.startswith(("/", "~")) or "://" in path or "::" in path)


def _config_files(options: tuple[str, ...]) -> Iterator[str]:
    for option, following in zip(options, (*options[1:], ""), strict=True):
        if option == "--config":
            yield following
        elif option.startswith("--config="):
            yield option.partition("=")[2]


def _input_paths(config: Any) -> Iterator[tuple[str, str]]:
    """Yield the paths from which a run reads, but for data that is built in, each with the option that holds it."""
    for name in _DATA_PATHS:
        path = getattr(config.data, name, None)
        if path and path not in (TOY_REVIEWS, DIGITS):
            yield f"data.{name}", path
    if path := getattr(config, "init_from", None):
        yield "init_from", path
