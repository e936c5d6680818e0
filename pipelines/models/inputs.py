"""Files of texts and images, found and read a row at a time, so that they may be larger than the memory."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, Protocol

from perceiver.data.image_folders import IMAGE_SUFFIXES
from perceiver.data.tokenizer import has_half_character
from perceiver.errors import UserError, one_line

Kind = Literal["text", "image"]

NO_ROWS = "has no rows: there is nothing to predict"
_LINES = {".csv", ".jsonl", ".json", ".txt"}
_TABLES = (".csv", ".jsonl", ".json", ".parquet")
_SHOWN = 40  # characters of a value that is none


@dataclass(frozen=True)
class Wanted:
    """What is to be read of files.

    Attributes:
        kind: Texts or images.
        column: Column of a table that holds them.
        id_column: Another column to read, as text.
    """

    kind: Kind
    column: str
    id_column: str | None = None

    @property
    def columns(self) -> list[str]:
        """The columns that are read."""
        return list(dict.fromkeys([self.column, *([self.id_column] if self.id_column else [])]))


@dataclass(frozen=True)
class Row:
    """A text or an image.

    Attributes:
        name: The text itself, the path of the image, or else its place.
        content: The text, or the path or the content of the image; None if there is none.
        id: Value of the id column.
        error: Why there is no content; what place it is about, `name` says.
    """

    name: str
    content: str | bytes | Path | None
    id: str | None = None
    error: str | None = None


@dataclass(frozen=True)
class Start:
    """Where reading a file begins.

    Attributes:
        row: Number of the row, from 0.
        offset: Its place: bytes in a file of lines, rows in a row group of Parquet.
        row_group: The row group.
    """

    row: int = 0
    offset: int = 0
    row_group: int = 0


Record = dict[str, Any] | str
"""The values of a row by column, or what is wrong with it."""


class RecordReader(Protocol):
    """Reads Parquet files; one that is used for several reads may know where the last one has stopped."""

    def read(self, path: Path, wanted: Wanted, start: Start) -> Iterator[Record]:
        """Yield the records of a file from a start on."""


def find_files(paths: Sequence[str], kind: Kind) -> list[Path]:
    """Return the files of a kind among and below paths: those of a folder sorted, without hidden ones.

    Raises:
        UserError: If a path leads to no file of the kind.
    """
    files = [file for path in paths for file in _files_at(Path(path).expanduser(), kind)]
    return list(dict.fromkeys(files))


def _files_at(path: Path, kind: Kind) -> list[Path]:
    if not path.exists():
        raise UserError(f"{path} does not exist: correct the path (relative ones start from {Path.cwd()})")
    if path.is_dir():
        return _files_below(path, kind)
    suffix = path.suffix.lower()
    if kind == "text" and suffix in IMAGE_SUFFIXES:
        raise UserError(f"{path} is an image, but the model reads texts: name a file of texts, or another model")
    if kind == "image" and suffix == ".txt":
        raise UserError(f"{path} holds texts, but the model reads images: name images, or another model")
    if suffix not in {*IMAGE_SUFFIXES, *_TABLES, ".txt"}:
        known = ", ".join([*_TABLES, ".txt"])
        raise UserError(f"{path} has the suffix {suffix!r}, which is not known: convert it to {known} or an image")
    return [path]


def _files_below(folder: Path, kind: Kind) -> list[Path]:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not _is_hidden(path.relative_to(folder)))
    images = [path for path in files if path.suffix.lower() in IMAGE_SUFFIXES]
    tables = [path for path in files if path.suffix.lower() in {*_TABLES, ".txt"}]
    found = tables if kind == "text" else images or [path for path in tables if path.suffix.lower() != ".txt"]
    if not found:
        other = "images" if images else "texts" if tables else "neither texts nor images"
        raise UserError(f"{folder} holds {other}, but the model reads {kind}s: name another folder, or another model")
    return found


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def read_rows(
    path: Path, wanted: Wanted, start: Start | None = None, reader: RecordReader | None = None
) -> Iterator[Row]:
    """Yield the rows of a file; one that can't be used has an error.

    Args:
        path: A file of a known kind.
        wanted: What to read.
        start: Where to begin (none: at the first row).
        reader: Reads a Parquet file (none: one of its own).

    Raises:
        UserError: If the file as a whole can't be read, or lacks a column.
    """
    start = start or Start()
    with reading(path):
        if path.suffix.lower() in IMAGE_SUFFIXES:
            _refuse_id(path, wanted)
            yield Row(str(path), path)
            return
        if path.suffix.lower() in _LINES:
            records: Iterator[Record] = (record for record, _ in _records(path, wanted, start.offset))
        else:
            from pipelines.models.parquet_input import Cursor

            records = (reader or Cursor()).read(path, wanted, start)
        for number, record in enumerate(records, start.row + 1):
            yield _row(record, path, number, wanted)


def find_starts(path: Path, wanted: Wanted, rows: int) -> Iterator[tuple[Start, int]]:
    """Divide a file into pieces, always the same ones.

    Args:
        path: A file of a known kind.
        wanted: What is to be read.
        rows: Rows of a piece at most.

    Yields:
        Where each piece begins, and its number of rows.

    Raises:
        UserError: If the file can't be read, or lacks a column.
    """
    suffix = path.suffix.lower()
    with reading(path):
        if suffix in IMAGE_SUFFIXES:
            _refuse_id(path, wanted)
            yield Start(), 1
        elif suffix in _LINES:
            yield from _starts_of_lines(path, wanted, rows)
        else:
            from pipelines.models.parquet_input import find_parquet_starts

            yield from find_parquet_starts(path, wanted, rows)


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn an error of the file system into one line about a file that is read."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or one_line(error)}): mend it") from None


def _starts_of_lines(path: Path, wanted: Wanted, rows: int) -> Iterator[tuple[Start, int]]:
    start, number = Start(), 0
    for number, (_, end) in enumerate(_records(path, wanted, 0), 1):
        if number - start.row == rows:
            yield start, rows
            start = Start(number, end)
    if number > start.row:
        yield start, number - start.row


class _Lines:
    """The lines of a file, and how many bytes they take so far."""

    def __init__(self, stream: BinaryIO, path: Path) -> None:
        self.stream, self.path, self.offset, self.number = stream, path, 0, 0

    def seek(self, offset: int) -> None:
        if offset > self.offset:
            self.stream.seek(offset)
            self.offset = offset

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = self.stream.readline()
        if not line:
            raise StopIteration
        encoding = "utf-8" if self.offset else "utf-8-sig"
        self.offset += len(line)
        self.number += 1
        try:
            return line.decode(encoding)
        except UnicodeDecodeError:
            raise UserError(f"{self.path}, line {self.number}: not UTF-8: convert the file to UTF-8") from None


def _records(path: Path, wanted: Wanted, offset: int) -> Iterator[tuple[Record, int]]:
    """Yield the records of a file of lines from an offset in bytes on, and the offset after each."""
    with path.open("rb") as stream:
        lines = _Lines(stream, path)
        read = _READERS[path.suffix.lower()]
        for record in read(lines, wanted, offset):
            yield record, lines.offset


def _texts(lines: _Lines, wanted: Wanted, offset: int) -> Iterator[Record]:
    _refuse_id(lines.path, wanted)
    lines.seek(offset)
    for line in lines:
        if line.strip():
            yield {wanted.column: line.rstrip("\r\n")}


def _csv_records(lines: _Lines, wanted: Wanted, offset: int) -> Iterator[Record]:
    csv.field_size_limit(sys.maxsize)
    reader = csv.reader(lines, strict=True)
    try:
        header = next(reader, [])
        check_columns(lines.path, header, wanted)
        lines.seek(offset)
        for values in reader:
            if len(values) == len(header):
                yield dict(zip(header, values, strict=True))
            elif values:
                yield f"{len(values)} values for {len(header)} columns"
    except csv.Error as error:
        place = f"{lines.path}, line {lines.number}" if offset == 0 else f"{lines.path}"
        raise UserError(f"{place}: not comma-separated values ({error}): mend it") from None


def _json_records(lines: _Lines, wanted: Wanted, offset: int) -> Iterator[Record]:
    lines.seek(offset)
    for line in lines:
        if not line.strip():
            continue
        is_first = lines.number == 1 and offset == 0
        try:
            record = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            if is_first:
                raise UserError(f"{lines.path} is not JSON, an object per line ({one_line(error)}): mend it") from None
            yield f"not valid JSON: {one_line(error)}"
            continue
        if is_first and isinstance(record, dict):
            check_columns(lines.path, list(record), wanted)
        yield record if isinstance(record, dict) else 'not an object such as {"text": "..."}'


_READERS: dict[str, Callable[[_Lines, Wanted, int], Iterator[Record]]] = {
    ".csv": _csv_records,
    ".txt": _texts,
    ".jsonl": _json_records,
    ".json": _json_records,
}


def _refuse_id(path: Path, wanted: Wanted) -> None:
    if wanted.id_column:
        raise UserError(f"{path} has no columns: leave --id_column out")


def check_columns(path: Path, names: Sequence[str], wanted: Wanted) -> None:
    """Raise a UserError unless a file has the wanted columns."""
    if not names:
        raise UserError(f"{path} {NO_ROWS}")
    for column in wanted.columns:
        if column not in names:
            option = f"{wanted.kind}_column" if column == wanted.column else "id_column"
            raise UserError(f"{path} has no column {column}: set --{option} to one of {', '.join(names)}")


def _row(record: Record, path: Path, number: int, wanted: Wanted) -> Row:
    place = f"{path}, row {number}"
    if isinstance(record, str):
        return Row(place, None, None, record)
    value = record.get(wanted.column)
    id_value = record.get(wanted.id_column) if wanted.id_column else None
    id_text = None if id_value is None else str(id_value)
    if broken := next((name for name in wanted.columns if has_half_character(record.get(name))), None):
        return Row(place, None, None, f"{broken} has half a character (a lone surrogate): mend or remove the row")
    if wanted.kind == "text":
        if isinstance(value, str):
            return Row(value, value, id_text)
        found = "is missing" if value is None else f"is {str(value)[:_SHOWN]}, but must be a text"
        return Row(place, None, id_text, f"{wanted.column} {found}: mend or remove the row")
    if isinstance(value, dict):  # as the hub has images
        value = value.get("bytes") or value.get("path")
    if isinstance(value, str) and value:
        image = path.parent / value
        return Row(str(image), image, id_text)
    if isinstance(value, bytes):
        return Row(place, value, id_text)
    return Row(place, None, id_text, f"{wanted.column} holds no image: mend or remove the row")
