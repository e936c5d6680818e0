"""Input that doesn't fit in memory, divided into numbered shards; each becomes one file of predictions."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from perceiver.data.fingerprint import fingerprint_of
from perceiver.errors import UserError
from perceiver.files import sha256_file, write_atomic
from pipelines.models.inputs import NO_ROWS, RecordReader, Row, Start, Wanted, find_starts, read_rows, reading

_METADATA = b"perceiver"


@dataclass(frozen=True)
class Piece:
    """Consecutive rows of a file.

    Attributes:
        file: The file.
        start: Where they begin.
        rows: Number of rows.
    """

    file: str
    start: Start
    rows: int


@dataclass(frozen=True)
class Shard:
    """Rows that are predicted for together.

    Attributes:
        number: Its number, from 0.
        pieces: Where the rows are.
    """

    number: int
    pieces: tuple[Piece, ...]

    @property
    def rows(self) -> int:
        """Number of rows."""
        return sum(piece.rows for piece in self.pieces)

    @property
    def name(self) -> str:
        """Name of the file of its predictions."""
        return f"part-{self.number:06}.parquet"

    def to_json(self) -> str:
        """Write the shard as JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Shard:
        """Read what `to_json` wrote."""
        values = json.loads(text)
        pieces = [Piece(piece["file"], Start(**piece["start"]), piece["rows"]) for piece in values["pieces"]]
        return cls(values["number"], tuple(pieces))

    def read(self, wanted: Wanted, reader: RecordReader | None = None) -> Iterator[tuple[str, int, Row]]:
        """Yield file, number in the file from 0, and content of each row.

        Args:
            wanted: What to read.
            reader: Reads Parquet files; the one that read the shard before goes on from there.
        """
        for piece in self.pieces:
            rows = islice(read_rows(Path(piece.file), wanted, piece.start, reader), piece.rows)
            for number, row in enumerate(rows, piece.start.row):
                yield piece.file, number, row


def divide(files: Sequence[Path], wanted: Wanted, rows_per_shard: int) -> list[Shard]:
    """Divide files into shards, always the same ones; small files share one.

    Args:
        files: The files, in order.
        wanted: What is to be read of them.
        rows_per_shard: Rows at most.

    Raises:
        UserError: If a file can't be read, lacks a column, or all are empty.
    """
    shards: list[Shard] = []
    pieces: list[Piece] = []
    room = rows_per_shard
    for file in files:
        for start, rows in find_starts(file, wanted, rows_per_shard):
            if rows > room:
                shards.append(Shard(len(shards), tuple(pieces)))
                pieces, room = [], rows_per_shard
            pieces.append(Piece(str(file), start, rows))
            room -= rows
    if pieces:
        shards.append(Shard(len(shards), tuple(pieces)))
    if not shards:
        raise UserError(f"{files[0] if len(files) == 1 else 'the input'} {NO_ROWS}")
    return shards


def fingerprint_of_files(files: Sequence[Path]) -> str:
    """Return what changes when the name, the order or the content of a file does.

    Raises:
        UserError: If a file can't be read.
    """
    parts = []
    for file in files:
        with reading(file):
            parts += [str(file), sha256_file(file)]
    return fingerprint_of(*parts)


def write_shard(folder: Path, shard: Shard, columns: dict[str, list[Any]], schema: pa.Schema, identity: str) -> None:
    """Write the predictions of a shard, whole or not at all.

    Args:
        folder: Where to.
        shard: The shard.
        columns: Values by column.
        schema: Types of the columns.
        identity: What the predictions depend on; the file bears it.
    """
    table = pa.table(columns, schema=schema.with_metadata({_METADATA: _seal(shard, identity)}))
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    write_atomic(folder / shard.name, sink.getvalue().to_pybytes())


def is_written(folder: Path, shard: Shard, identity: str) -> bool:
    """Tell whether a shard's predictions are there, whole, and of the same input and model."""
    try:
        metadata = pq.read_metadata(folder / shard.name)
    except (OSError, pa.ArrowException):
        return False
    return metadata.num_rows == shard.rows and (metadata.metadata or {}).get(_METADATA) == _seal(shard, identity)


def _seal(shard: Shard, identity: str) -> bytes:
    return hashlib.sha256(f"{identity} {shard.to_json()}".encode()).hexdigest().encode()
