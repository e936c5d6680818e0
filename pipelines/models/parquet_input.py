"""Parquet files of texts and images, read a few rows at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from perceiver.errors import UserError, one_line
from pipelines.models.inputs import Record, Start, Wanted, check_columns

_ROWS = 64  # at a time


def read_records(path: Path, wanted: Wanted, start: Start) -> Iterator[Record]:
    """Yield the records of a file.

    Args:
        path: The file.
        wanted: Its columns.
        start: Where to begin.

    Raises:
        UserError: If it is no Parquet file, or lacks a column.
    """
    with _opened(path, wanted) as file:
        groups = list(range(start.row_group, file.num_row_groups))
        passed = 0
        for batch in file.iter_batches(_ROWS, row_groups=groups, columns=wanted.columns, use_threads=False):
            first = max(0, start.offset - passed)
            passed += len(batch)
            if first < len(batch):
                yield from batch.slice(first).to_pylist()


def find_parquet_starts(path: Path, wanted: Wanted, rows: int) -> Iterator[tuple[Start, int]]:
    """Divide a file into pieces of some rows of one row group each; see `pipelines.models.inputs.find_starts`."""
    with _opened(path, wanted) as file:
        row = 0
        for group in range(file.num_row_groups):
            size = file.metadata.row_group(group).num_rows
            for offset in range(0, size, rows):
                yield Start(row + offset, offset, group), min(rows, size - offset)
            row += size


@contextmanager
def _opened(path: Path, wanted: Wanted) -> Iterator[pq.ParquetFile]:
    try:
        with pq.ParquetFile(path) as file:
            check_columns(path, file.schema_arrow.names, wanted)
            yield file
    except pa.ArrowInvalid as error:
        raise UserError(f"{path} is not a Parquet file ({one_line(error)}): mend it") from None
