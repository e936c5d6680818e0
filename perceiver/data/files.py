"""Tables of texts in single files: comma-separated values, JSON and Parquet."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from perceiver.data.sources import FILE_SUFFIXES, one_line, require_columns
from perceiver.errors import UserError

_CSV_BLOCK_BYTES = 1 << 24  # a row must fit in a block


def read_table(path: str, columns: Sequence[str]) -> datasets.Dataset:
    """Read columns of a .csv, .jsonl, .json (a list of objects, or one object per line) or .parquet file.

    Args:
        path: The file.
        columns: Columns to read; the first is text even where it looks like numbers.

    Raises:
        UserError: If the file does not exist, lacks a column, has another suffix, is damaged or is not UTF-8.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise UserError(f"{path} is not a file: name a {', '.join(FILE_SUFFIXES)} file")
    match file.suffix.lower():
        case ".csv":
            table = _read_csv(file, columns)
        case ".jsonl" | ".json":
            table = _read_json(file, columns)
        case ".parquet":
            table = _read_parquet(file, columns)
        case suffix:
            raise UserError(f"{path} has the suffix {suffix!r}: convert it to {', '.join(FILE_SUFFIXES)}")
    return datasets.Dataset(datasets.table.InMemoryTable(table), fingerprint=file.name)


def read_text(path: Path) -> str:
    """Read a UTF-8 file, with or without a byte order mark.

    Raises:
        UserError: If it is not UTF-8.
    """
    content = path.read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}, line {line}: not UTF-8: convert the file to UTF-8") from None


def _read_csv(path: Path, columns: Sequence[str]) -> pa.Table:
    read_text(path)  # finds the line that is not UTF-8, which the reader does not tell
    try:
        table = pyarrow.csv.read_csv(
            path,
            pyarrow.csv.ReadOptions(block_size=_CSV_BLOCK_BYTES),
            pyarrow.csv.ParseOptions(newlines_in_values=True),
            pyarrow.csv.ConvertOptions(column_types={columns[0]: pa.string()}),
        )
    except pa.ArrowInvalid as error:
        raise UserError(f"{path} is not a table of comma-separated values: {one_line(error)}") from None
    require_columns(table.column_names, columns, str(path))
    return table.select(list(columns))


def _read_parquet(path: Path, columns: Sequence[str]) -> pa.Table:
    try:
        require_columns(pyarrow.parquet.read_schema(path).names, columns, str(path))
        table = pyarrow.parquet.read_table(path, columns=list(columns))
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path} is not a Parquet file: {one_line(error)}") from None
    for index, field in enumerate(table.schema):
        if pa.types.is_dictionary(field.type):  # pandas' categories
            table = table.set_column(index, field.name, table.column(index).cast(field.type.value_type))
    return table


def _read_json(path: Path, columns: Sequence[str]) -> pa.Table:
    rows = list(_json_rows(path, read_text(path)))
    names = dict.fromkeys(name for row in rows for name in row)
    if rows:
        require_columns(names, columns, str(path))
    return pa.table({name: _json_column([row.get(name) for row in rows], f"{path}: column {name}") for name in columns})


def _json_column(values: list[Any], where: str) -> pa.Array:
    try:
        return pa.array(values)
    except pa.ArrowException:
        first_rows: dict[str, int] = {}
        for number, value in enumerate(values, 1):
            first_rows.setdefault(type(value).__name__, number)
        found = ", ".join(f"{kind} (row {number})" for kind, number in first_rows.items())
        raise UserError(f"{where} mixes kinds of values, {found}: use one kind") from None


def _json_rows(path: Path, text: str) -> Iterator[dict[str, Any]]:
    if text.lstrip().startswith("["):
        rows: Iterable[tuple[int, Any]] = enumerate(_parse(path, text, 1), 1)
        place = "row"
    else:  # not splitlines: U+2028 may occur within a string
        lines = enumerate(text.split("\n"), 1)
        rows = ((number, _parse(path, line, number)) for number, line in lines if line.strip())
        place = "line"
    for number, row in rows:
        if not isinstance(row, dict):
            raise UserError(f'{path}, {place} {number}: not an object such as {{"text": "...", "label": 0}}')
        yield row


def _parse(path: Path, text: str, line: int) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{path}, line {line + error.lineno - 1}: not valid JSON: {error.msg}") from None
