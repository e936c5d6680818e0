"""Finds out whether a data set is there and can be read, without reading it."""

from __future__ import annotations

import os
from pathlib import Path

import datasets

from perceiver.config import ImageDataConfig, TextDataConfig
from perceiver.data.image_sources import DIGITS
from perceiver.data.sources import is_local, offline, quiet_datasets, why_unreachable
from perceiver.data.text_sources import TOY_REVIEWS
from perceiver.errors import UserError


def locate_data(config: TextDataConfig | ImageDataConfig) -> str:
    """Say where a data set and the files beside it are.

    Raises:
        UserError: If one of them is not there, or cannot be read.
    """
    if isinstance(config, ImageDataConfig):
        return f"{config.path}: {'built in' if config.path == DIGITS else _locate(config.path)}"
    for name in ("test_path", "unlabelled_path", "tokenizer"):
        if path := getattr(config, name):
            _check_file(Path(os.path.expanduser(path)), f"{name} {path}")
    return f"{config.path}: {'built in, synthetic' if config.path == TOY_REVIEWS else _locate(config.path)}"


def _locate(path: str) -> str:
    if not is_local(path):
        return _locate_on_hub(path)
    local = Path(os.path.expanduser(path))
    if not local.is_dir():
        _check_file(local, path)
        return "a file"
    try:
        is_empty = not any(local.iterdir())
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): mend its permissions") from None
    if is_empty:
        raise UserError(f"{path} is an empty folder: correct the path")
    return "a folder"


def _check_file(file: Path, name: str) -> None:
    try:
        with file.open("rb") as stream:
            is_empty = not stream.read(1)
    except OSError as error:
        raise UserError(f"{name} cannot be read ({error.strerror}): correct the path, or its permissions") from None
    if is_empty:
        raise UserError(f"{name} is empty: correct the path")


def _locate_on_hub(name: str) -> str:
    reason = why_unreachable(name)
    if reason is None:
        return "on the hub"
    try:
        with quiet_datasets(), offline():
            datasets.load_dataset_builder(name)
    except Exception:  # whatever the library raises
        raise UserError(
            f"{name} is neither a local path nor in the cache, and the hub cannot be reached ({reason}): go online, "
            "or name a local file or folder"
        ) from None
    return f"in the cache (the hub cannot be reached: {reason})"
