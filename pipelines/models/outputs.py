"""Predictions as JSON lines, as a table on a terminal, or in a file that is whole or absent."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import sys
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import IO, Any, Literal

from perceiver.errors import UserError, one_line
from perceiver.files import is_full

Result = dict[str, Any]
"""Of a classifier: text or path, label, probability and probabilities by class; of a masked language model: text, and
for each mask its fills, {"token": ..., "probability": ...}, best first. After text or path there may be an id."""
Write = Callable[[Sequence[Result]], None]
Columns = dict[str, type]
"""Columns of a flat table, and what they hold: str, int or float."""

_SHOWN_CHARACTERS = 200  # of a text, on a terminal


def columns_of(name: str, class_names: Sequence[str] | None, id_column: str | None = None) -> Columns:
    """Return the columns that results have in a .csv or .parquet file.

    Args:
        name: What the input is called: text or path.
        class_names: Classes of a classifier; None for a masked language model, which has a row per fill.
        id_column: Column of the input that is repeated.

    Raises:
        UserError: If that column is called like one of the others.
    """
    if class_names is None:
        found: Columns = {"mask": int, "rank": int, "token": str, "probability": float}
    else:
        found = {"label": str, "probability": float, **{f"probability_{c}": float for c in class_names}}
    check_id_column(id_column, [name, "fills", "probabilities", *found])
    return {name: str, **({id_column: str} if id_column else {}), **found}


def check_id_column(id_column: str | None, names: Sequence[str]) -> None:
    """Raise a UserError if the column of the input that is repeated is called like one of the predictions."""
    if id_column in names:
        raise UserError(f"id_column is {id_column}, but the predictions have a column of that name: rename it")


def flat(result: Result) -> list[Result]:
    """Turn a result into rows with the columns of a table; masks and ranks are numbered from 1."""
    if "fills" in result:
        named = {key: value for key, value in result.items() if key != "fills"}
        return [
            {**named, "mask": mask, "rank": rank, **fill}
            for mask, fills in enumerate(result["fills"], 1)
            for rank, fill in enumerate(fills, 1)
        ]
    probabilities = {f"probability_{name}": value for name, value in result["probabilities"].items()}
    return [{key: value for key, value in result.items() if key != "probabilities"} | probabilities]


def counted(number: int, noun: str) -> str:
    """Return a number of things as one says it: 1 row, 2,000 rows."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def output_of(
    path: str | None, kind: Literal["table", "jsonl"] | None, columns: Columns
) -> AbstractContextManager[Write]:
    """Return where results go.

    Args:
        path: File to write (none: print).
        kind: How to print (none: a table on a terminal, else JSON lines).
        columns: Columns of a file that is a flat table.
    """
    if path is not None:
        return _file(Path(path).expanduser(), columns)
    if kind == "table" or (kind is None and sys.stdout.isatty()):
        return contextlib.nullcontext(_print_table)
    return contextlib.nullcontext(_print_lines)


def _print_lines(results: Sequence[Result]) -> None:
    for result in results:
        print(json.dumps(result, ensure_ascii=False))
    sys.stdout.flush()


def _print_table(results: Sequence[Result]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD)
    is_fills = "fills" in results[0]
    shown = ("mask", "token", "probability") if is_fills else ("label", "probability", "probabilities")
    first, *others = (name for name in results[0] if name not in {*shown, "fills"})  # others: an id, if there is one
    table.add_column(first, no_wrap=True, overflow="ellipsis", ratio=1, min_width=20)
    for name in [*others, *shown]:
        table.add_column(Text(name), justify="right" if name in ("mask", "probability") else "left")
    for result in results:
        ids = [Text(result[name] or "") for name in others]
        for number, (name, *cells) in enumerate(_fill_cells(result) if is_fills else [_class_cells(result)]):
            table.add_row(name, *(ids if number == 0 else [""] * len(ids)), *cells)
    Console().print(table)


def _class_cells(result: Result) -> list[Any]:
    from rich.text import Text

    ranked = sorted(result["probabilities"].items(), key=lambda item: -item[1])
    probabilities = "  ".join(f"{name} {value:.1%}" for name, value in ranked)
    return [_shown(result), Text(result["label"]), f"{result['probability']:.1%}", Text(probabilities)]


def _fill_cells(result: Result) -> list[list[Any]]:
    from rich.text import Text

    rows: list[list[Any]] = []
    for mask, fills in enumerate(result["fills"], 1):
        for rank, fill in enumerate(fills):
            name = _shown(result) if not rows else ""
            rows.append([name, str(mask) if rank == 0 else "", Text(fill["token"]), f"{fill['probability']:.1%}"])
    return rows or [[_shown(result), "", "", ""]]


def _shown(result: Result) -> Any:
    from rich.text import Text

    name = str(next(iter(result.values())))
    return Text(" ".join(name[:_SHOWN_CHARACTERS].split()) + ("..." if len(name) > _SHOWN_CHARACTERS else ""))


@contextmanager
def _file(path: Path, columns: Columns) -> Iterator[Write]:
    """Write a file beside its place, and put it there at the end if all went well."""
    if path.is_dir():
        raise UserError(f"output {path} is a folder: name a file")
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("xb") as stream:
            writers = {".csv": _csv_writer, ".parquet": _parquet_writer, ".jsonl": _jsonl_writer}
            with writers[path.suffix.lower()](stream, columns) as write:
                yield write
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except OSError as error:
        reason = error.strerror or one_line(error)
        mend = "free some space or name another file" if is_full(error) else "name another file"
        raise UserError(f"output {path} cannot be written ({reason}): {mend}") from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextmanager
def _jsonl_writer(stream: IO[bytes], columns: Columns) -> Iterator[Write]:
    def write(results: Sequence[Result]) -> None:
        stream.writelines(json.dumps(result, ensure_ascii=False).encode() + b"\n" for result in results)

    yield write


@contextmanager
def _csv_writer(stream: IO[bytes], columns: Columns) -> Iterator[Write]:
    import codecs

    # Texts are quoted, for the module quotes no lone carriage return by itself, and readers take it for the row's end.
    options: Any = {"lineterminator": "\n", "quoting": csv.QUOTE_NONNUMERIC}
    writer = csv.DictWriter(codecs.getwriter("utf-8")(stream), list(columns), **options)
    writer.writeheader()
    yield lambda results: writer.writerows(row for result in results for row in flat(result))


@contextmanager
def _parquet_writer(stream: IO[bytes], columns: Columns) -> Iterator[Write]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    kinds = {str: pa.string(), int: pa.int64(), float: pa.float64()}
    schema = pa.schema([(name, kinds[kind]) for name, kind in columns.items()])
    with pq.ParquetWriter(stream, schema) as writer:

        def write(results: Sequence[Result]) -> None:
            rows = [row for result in results for row in flat(result)]
            if rows:
                writer.write_table(pa.Table.from_pylist(rows, schema))

        yield write
