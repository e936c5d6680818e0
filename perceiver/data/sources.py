"""Data sets of the hub and of local folders and files, read as they are; labels; fixed subsets."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import datasets
import huggingface_hub
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError

from perceiver.errors import UserError, one_line
from perceiver.random import Stream, permutation

FILE_SUFFIXES = (".csv", ".jsonl", ".json", ".parquet")
_SIGNS_OF_NO_ROWS = ("corresponds to no data", "BatchSize must be greater than 0")
_HUB_TIMEOUT_S = 8.0
_SPLIT_SEED = 0  # subsets are the same whatever the seed of a run


def is_local(path: str) -> bool:
    """Tell whether a path names a local file or folder, rather than a data set of the hub.

    Raises:
        UserError: If it can only mean a local file or folder, and does not exist.
    """
    if not path.strip():
        raise UserError("path is empty: name a file, a folder or a data set of the hub")
    if Path(os.path.expanduser(path)).exists():  # Path's own expanduser refuses an unknown user
        return True
    if path.startswith((".", "/", "~")) or path.count("/") > 1 or path.endswith(FILE_SUFFIXES):
        raise UserError(f"{path} does not exist: correct the path (relative ones start from {Path.cwd()})")
    return False


def load_splits(path: str, forms: str) -> datasets.DatasetDict:
    """Load all splits of a data set of the hub, or of a local folder in the hub's layout.

    Args:
        path: Folder, or name on the hub.
        forms: What path may be locally, for the message that there is no such data set.

    Raises:
        UserError: If there is no such data set, it cannot be read, or the hub cannot be reached.
    """
    with quiet_datasets():
        if not is_local(path):
            return _load_from_hub(path, forms)
        try:
            return datasets.load_dataset(str(Path(path).expanduser().resolve()))
        except Exception as error:  # whatever the readers of the many formats raise
            cause = one_line(error.__cause__ or error)
            if any(sign in cause for sign in _SIGNS_OF_NO_ROWS):
                raise UserError(f"{path} has a split without rows: add rows or remove its file") from error
            raise UserError(
                f"{path} cannot be read as a folder in the hub's layout: {cause}: mend it, or set path to {forms}"
            ) from error


@contextlib.contextmanager
def quiet_datasets() -> Iterator[None]:
    """Keep the libraries that read and download data sets from showing progress bars and log lines."""
    loggers = [logging.getLogger(name) for name in ("datasets", "huggingface_hub")]
    levels = [logger.level for logger in loggers]
    had_bars = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if had_bars:
            datasets.enable_progress_bars()


def require_columns(names: Iterable[str], columns: Iterable[str], where: str) -> None:
    """Raise a UserError unless all columns are among the names that exist.

    Args:
        names: Columns that exist.
        columns: Columns that are needed.
        where: What to call the table in the error message.
    """
    names, columns = list(names), list(columns)
    for column in columns:
        if column not in names:
            shown = ", ".join(names)
            raise UserError(f"{where} has no column {column}: set text_column or label_column to one of {shown}")
    if len(set(columns)) < len(columns):
        raise UserError(f"text_column and label_column are both {column}: set them to different columns of {where}")


def class_names_of(split: datasets.Dataset, column: str, where: str) -> tuple[str, ...]:
    """Return the names of the classes: those that the data set declares, the integers from 0, or the sorted labels.

    Args:
        split: Training split.
        column: Column that holds the labels.
        where: What to call the split in an error message.

    Raises:
        UserError: If the column cannot hold labels, its integers do not run from 0, or there is one class alone.
    """
    feature = split.features[column]
    names = tuple(feature.names) if isinstance(feature, datasets.ClassLabel) else _names_in_use(split, column, where)
    if len(names) < 2 and len(split):
        raise UserError(f"{where}: column {column} knows only the class {names[0]}: a classifier needs 2 or more")
    return names


def _names_in_use(split: datasets.Dataset, column: str, where: str) -> tuple[str, ...]:
    labels = pc.unique(_labels_as_names(split, column, where)).to_pylist()
    if not pa.types.is_integer(split.data.column(column).type):
        return tuple(sorted(labels))
    found = sorted(map(int, labels))
    if found != list(range(len(found))):
        shown = ", ".join(map(str, found[:5])) + (", ..." if len(found) > 5 else "")
        raise UserError(f"{where}: column {column} holds the labels {shown}: number the classes 0, 1, 2, ...")
    return tuple(map(str, found))


def encode_labels(split: datasets.Dataset, column: str, class_names: tuple[str, ...], where: str) -> pa.Array:
    """Return the class of each row as an int64 array.

    Args:
        split: Split without an indices mapping.
        column: Column that holds the labels: names, or integers from 0.
        class_names: Names of the classes.
        where: What to call the split in an error message.

    Raises:
        UserError: If the column cannot hold labels, or a label is not among the classes.
    """
    labels = _labels_as_names(split, column, where)
    classes = pc.index_in(labels, value_set=pa.array(class_names, pa.string())).combine_chunks()
    row = pc.index(classes.is_null(), True).as_py()
    if row >= 0:
        label, known = labels[row].as_py(), ", ".join(class_names[:10]) + (", ..." if len(class_names) > 10 else "")
        raise UserError(
            f"{where}, row {row + 1}: {column} is {label!r}, but the training split's labels are {known}: correct it"
        )
    return classes.cast(pa.int64())


def _labels_as_names(split: datasets.Dataset, column: str, where: str) -> pa.ChunkedArray:
    values, feature = split.data.column(column), split.features[column]
    is_text = pa.types.is_string(values.type) or pa.types.is_large_string(values.type)
    row = pc.index(pc.or_kleene(values.is_null(), pc.equal(values, "")) if is_text else values.is_null(), True).as_py()
    if row >= 0:
        raise UserError(f"{where}, row {row + 1}: {column} is missing: label the row or remove it")
    if isinstance(feature, datasets.ClassLabel):
        known = range(len(feature.names))
        names = [feature.names[value] if value in known else str(value) for value in values.to_pylist()]
        return pa.chunked_array([pa.array(names, pa.string())])
    kind = values.type
    if not (is_text or pa.types.is_integer(kind) or pa.types.is_boolean(kind)):
        raise UserError(f"{where}: column {column} holds {kind} values, but labels must be integers from 0 or names")
    return values.cast(pa.string())


def hold_out_tenth(split: datasets.Dataset, stream: Stream, where: str) -> tuple[datasets.Dataset, datasets.Dataset]:
    """Divide a split into nine tenths and a fixed tenth, both in the order of the split.

    Args:
        split: Split to divide.
        stream: What the tenth is for.
        where: What to call the split in an error message.

    Raises:
        UserError: If the split has fewer than two rows.
    """
    if len(split) < 2:
        raise UserError(f"{where} has {len(split)} row, too few to hold out a tenth: add rows")
    order = permutation((_SPLIT_SEED, stream), len(split))
    size = max(1, len(split) // 10)
    return split.select(np.sort(order[size:])), split.select(np.sort(order[:size]))


def limited(split: datasets.Dataset, limit: int | None) -> datasets.Dataset:
    """Return a fixed subset of at most `limit` rows, in the order of the split.

    Args:
        split: Split to draw from.
        limit: Rows at most (none: all of them).
    """
    if limit is None or limit >= len(split):
        return split
    return split.select(np.sort(permutation((_SPLIT_SEED, Stream.LIMIT), len(split))[:limit]))


def _load_from_hub(name: str, forms: str) -> datasets.DatasetDict:
    reason = why_unreachable(name)
    if reason is None:
        try:
            return datasets.load_dataset(name)
        except Exception as error:  # whatever download and readers raise
            raise UserError(f"{name} cannot be loaded from the hub: {one_line(error.__cause__ or error)}") from error
    try:
        with offline():
            return datasets.load_dataset(name)
    except Exception as error:
        raise UserError(
            f"{name} is neither a local path nor in the cache, and the hub cannot be reached ({reason}): go online, or "
            f"set path to {forms}"
        ) from error


def why_unreachable(name: str) -> str | None:
    """Ask the hub for a data set once (`datasets` would retry for half a minute); None if it has it."""
    try:
        huggingface_hub.HfApi().dataset_info(name, timeout=_HUB_TIMEOUT_S)
    except HFValidationError as error:
        raise UserError(f"{name!r} is neither a local path nor a name on the hub: {one_line(error)}") from None
    except RepositoryNotFoundError:
        raise UserError(
            f"{name} is neither a local path nor a data set on the hub that can be read: correct the name, or log in "
            f"with `hf auth login` if it is private"
        ) from None
    except Exception as error:  # among others those of the HTTP client, which is the hub library's choice
        return one_line(error)
    return None


@contextlib.contextmanager
def offline() -> Iterator[None]:
    """Let `datasets` look into its cache at once, instead of trying to reach the hub first."""
    before = datasets.config.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE = before
