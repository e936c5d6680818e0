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


class Cursor:
    """A place in a file, from which later rows are read on.

    To begin in the middle of a row group is to decode it from its start. Whoever reads one piece of a group after the
    other, in their order, therefore keeps the cursor: each row is decoded once.
    """

    def __init__(self) -> None:
        self._of: tuple[Path, Wanted, int] | None = None  # the file, what is read, and the row group it began with
        self._batches: Iterator[pa.RecordBatch] = iter(())
        self._batch: pa.RecordBatch | None = None
        self._batch_row = 0  # number in the file of the batch's first row
        self._row = 0  # and of the next one

    def read(self, path: Path, wanted: Wanted, start: Start) -> Iterator[Record]:
        """Yield the records of a file.

        Args:
            path: The file.
            wanted: Its columns.
            start: Where to begin.

        Raises:
            UserError: If it is no Parquet file, or lacks a column.
        """
        of = (path, wanted, start.row_group)
        if self._of != of or self._row > start.row:
            self._of = None
            self._batches = _batches(path, wanted, start.row_group)
            self._batch, self._batch_row = next(self._batches, None), start.row - start.offset
            self._of = of
        self._row = start.row
        while self._batch is not None:
            for record in self._batch.slice(self._row - self._batch_row).to_pylist():
                self._row += 1
                yield record
            self._of = None  # until the next batch has been read
            self._batch_row += len(self._batch)
            self._batch = next(self._batches, None)
            self._of = of


def _batches(path: Path, wanted: Wanted, row_group: int) -> Iterator[pa.RecordBatch]:
    with _opened(path, wanted) as file:
        groups = list(range(row_group, file.num_row_groups))
        yield from file.iter_batches(_ROWS, row_groups=groups, columns=wanted.columns, use_threads=False)


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
