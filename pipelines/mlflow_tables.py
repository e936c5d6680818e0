"""What MLflow shows as tables: a stage's fills and its events, one row each."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from pipelines.journal import Record

FILLS, EVENTS = "fills.json", "events.json"
"""Names of the artifacts."""
RESTART = "restart"
"""Kind of event: the workers died and began again from a checkpoint."""

Columns = dict[str, list[Any]]
EventKey = tuple[str, str, int]
"""What tells events apart: the time, what happened, and the step."""

_FILL_COLUMNS = ("epoch", "step", "text", "mask", "prediction", "probability", "others")
_EVENT_COLUMNS = ("time", "event", "epoch", "step", "reason", "details")


def fills_table(records: Iterable[Record]) -> Columns:
    """Return records of fills as columns with one row per mask, to be read from top to bottom in MLflow's table."""
    columns: Columns = {name: [] for name in _FILL_COLUMNS}
    for record in records:
        for sample in record["samples"]:
            for mask, tokens in enumerate(sample["fills"], start=1):
                (prediction, probability), *others = tokens
                rest = ", ".join(f"{token} {float(value):.3f}" for token, value in others)
                place = (record["epoch"], record["step"], sample["text"], mask)
                _append(columns, (*place, prediction, round(float(probability), 4), rest))
    return columns


def events_table(records: Iterable[Record]) -> Columns:
    """Return records of events as columns; what only some kinds of events have is in the last one."""
    columns: Columns = {name: [] for name in _EVENT_COLUMNS}
    for record in records:
        details = [f"{name}={value}" for name, value in record.items() if name not in ("kind", *_EVENT_COLUMNS)]
        row = (
            _shown(record["time"]),
            str(record.get("event", "")),
            record["epoch"],
            record["step"],
            str(record.get("reason", "")),
            ", ".join(details),
        )
        _append(columns, row)
    return columns


def event_key(record: Record) -> EventKey:
    """Return what tells an event from others."""
    return _shown(record["time"]), str(record.get("event", "")), record["step"]


def row_keys(table: dict[str, Any]) -> list[EventKey]:
    """Return what tells the events apart that are in a table as MLflow keeps it."""
    time, event, step = (table["columns"].index(name) for name in ("time", "event", "step"))
    return [(row[time], row[event], row[step]) for row in table["data"]]


def _append(columns: Columns, row: tuple[Any, ...]) -> None:
    for column, value in zip(columns.values(), row, strict=True):
        column.append(value)


def _shown(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(sep=" ", timespec="milliseconds").replace("+00:00", " UTC")
