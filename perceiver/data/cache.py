"""A cache of folders that any number of processes may ask for at once."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from filelock import FileLock

from perceiver.errors import UserError
from perceiver.files import DamagedFolderError, is_full, read_manifest, write_manifest

_log = logging.getLogger(__name__)


def cached_folder(cache_dir: str, name: str, build: Callable[[Path], None]) -> Path:
    """Return a folder of the cache; build it first unless it is there, complete and undamaged.

    One process builds, the others wait. A folder appears under its name only when it is complete.

    Args:
        cache_dir: Folder of the cache; ~ stands for the home folder.
        name: Name of the folder, with a fingerprint of everything that its contents depend on.
        build: Called with an empty folder; writes the contents into it.

    Raises:
        UserError: If cache_dir cannot be written, or is full.
    """
    root = Path(cache_dir).expanduser().resolve()
    try:
        root.mkdir(parents=True, exist_ok=True)
        (root / f"{name}.lock").touch()
    except OSError as error:
        raise UserError(f"cache_dir {cache_dir} cannot be written ({error.strerror}): choose another folder") from None
    folder = root / name
    with FileLock(root / f"{name}.lock"):
        if not _is_intact(folder):
            _build(folder, build)
    return folder


def _is_intact(folder: Path) -> bool:
    if not folder.exists():
        return False
    try:
        read_manifest(folder)
    except DamagedFolderError as error:
        _log.warning("A cached folder is made again: %s", error)
        return False
    return True


def _build(folder: Path, build: Callable[[Path], None]) -> None:
    temporary = folder.with_name(f"{folder.name}.tmp")
    for old in (folder, temporary):  # a damaged one, and one left by a process that was killed
        shutil.rmtree(old, ignore_errors=True)
    temporary.mkdir()
    try:
        build(temporary)
        write_manifest(temporary)
        temporary.replace(folder)
    except Exception as error:
        if not is_full(error):
            raise
        message = f"cache_dir {folder.parent} has no space left: free some, or choose another folder"
        raise UserError(message) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def new_array(file: Path, dtype: npt.DTypeLike, shape: tuple[int, ...]) -> np.memmap[Any, Any]:
    """Make a .npy file, mapped for writing, whose space is set aside: without it, a full disk would kill the writer."""
    array = np.lib.format.open_memmap(file, mode="w+", dtype=dtype, shape=shape)
    if hasattr(os, "posix_fallocate"):  # not on macOS
        with file.open("r+b") as opened:
            os.posix_fallocate(opened.fileno(), 0, file.stat().st_size)
    return array
