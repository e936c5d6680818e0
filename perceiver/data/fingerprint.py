"""Fingerprints: sha256 sums that tell whether data or settings are the same, wherever they lie."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

if TYPE_CHECKING:  # for it takes seconds
    import datasets

_BLOCK_BYTES = 1 << 20


def fingerprint_of(*parts: str) -> str:
    """Return the fingerprint of a sequence of strings, in their order.

    Args:
        *parts: The strings; ("ab", "c") and ("a", "bc") differ.
    """
    digest = hashlib.sha256()
    for part in parts:
        _update_with_length(digest, part.encode())
    return digest.hexdigest()


def fingerprint_files(paths: Iterable[str | Path]) -> str:
    """Return the fingerprint of files: their names, relative to the folder they share, and their contents.

    Args:
        paths: Files, or folders whose files count with all below them; their order does not matter.

    Raises:
        FileNotFoundError: If one of the paths does not exist.
    """
    files = sorted({file for path in paths for file in _files_below(Path(path).resolve())})
    digest = hashlib.sha256()
    if files:
        root = Path(os.path.commonpath([file.parent for file in files]))
        for file in files:
            _update_with_length(digest, file.relative_to(root).as_posix().encode())
            digest.update(file.stat().st_size.to_bytes(8, "little"))
            _update_with_file(digest, file)
    return digest.hexdigest()


def fingerprint_dataset(dataset: datasets.Dataset) -> str:
    """Return the fingerprint of the rows of a data set, whatever file they came from.

    Args:
        dataset: Data set whose columns are text or integers, without nulls.
    """
    # Lengths and bytes go to separate sums, so that the size of the batches has no influence.
    sums = {(name, part): hashlib.sha256() for name in sorted(dataset.column_names) for part in ("lengths", "bytes")}
    for batch in dataset.with_format("arrow").iter(batch_size=4096):
        for name in dataset.column_names:
            column = batch.column(name)
            if pa.types.is_integer(column.type):
                sums[name, "bytes"].update(column.cast(pa.int64()).to_numpy().tobytes())
            else:
                values = column.cast(pa.large_binary()).to_pylist()
                sums[name, "bytes"].update(b"".join(values))
                sums[name, "lengths"].update(np.array([len(value) for value in values], np.int64).tobytes())
    return fingerprint_of(*(f"{name} {part} {digest.hexdigest()}" for (name, part), digest in sums.items()))


def _files_below(path: Path) -> list[Path]:
    if path.is_dir():
        return [file for file in path.rglob("*") if file.is_file()]
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist")
    return [path]


def _update_with_length(digest: hashlib._Hash, data: bytes) -> None:
    digest.update(len(data).to_bytes(8, "little"))
    digest.update(data)


def _update_with_file(digest: hashlib._Hash, path: Path) -> None:
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK_BYTES):
            digest.update(block)
