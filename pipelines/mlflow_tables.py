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

_EVENT_COLUMNS = ("time", "event", "epoch", "step", "reason", "details")


def fills_table(record: Record) -> Columns:
    """Return a record of fills as columns with one row per mask, to be read from top to bottom in MLflow's table."""
    names = ("epoch", "step", "text", "mask", "prediction", "probability", "others")
    columns: Columns = {name: [] for name in names}
    for sample in record["samples"]:
        for mask, tokens in enumerate(sample["fills"], start=1):
            (prediction, probability), *others = tokens
            rest = ", ".join(f"{token} {float(value):.3f}" for token, value in others)
            row = (
                record["epoch"],
                record["step"],
                sample["text"],
                mask,
                prediction,
                round(float(probability), 4),
                rest,
            )
            for name, value in zip(names, row, strict=True):
                columns[name].append(value)
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
        for name, value in zip(_EVENT_COLUMNS, row, strict=True):
            columns[name].append(value)
    return columns


def event_key(record: Record) -> EventKey:
    """Return what tells an event from others."""
    return _shown(record["time"]), str(record.get("event", "")), record["step"]


def row_keys(table: dict[str, Any]) -> list[EventKey]:
    """Return what tells the events apart that are in a table as MLflow keeps it."""
    time, event, step = (table["columns"].index(name) for name in ("time", "event", "step"))
    return [(row[time], row[event], row[step]) for row in table["data"]]


def _shown(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(sep=" ", timespec="milliseconds").replace("+00:00", " UTC")
