"""metrics.jsonl: what a stage measured, one JSON object per line, written by one worker and read while it grows.

Every record has `kind` ("train", "validation", "test", "fills" or "event"), `time` (unix seconds), `epoch` (from 0)
and `step` (optimizer steps done), and the metrics of its kind. A record of kind "fills" has `samples`, each a `text`
and, for every mask in it, the likeliest tokens: `"fills": [[["movie", 0.31], ["film", 0.28]], ...]`.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from pipelines.storage import Storage

JOURNAL = "metrics.jsonl"

Record = dict[str, Any]

_SPECIAL_NAMES = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


def encode_record(record: Mapping[str, Any]) -> bytes:
    """Return a record as one line of strict JSON; NaN and infinities become "nan", "inf" and "-inf"."""
    text = json.dumps(_without_specials(record), allow_nan=False, separators=(",", ":"))
    return text.encode() + b"\n"


def decode_record(line: bytes) -> Record | None:
    """Return the record in a line; None where a line is no record (a write that a crash tore)."""
    try:
        record = json.loads(line)
    except ValueError:
        return None
    if not isinstance(record, dict) or not isinstance(record.get("step"), int) or "kind" not in record:
        return None
    return {key: _SPECIAL_NAMES.get(value, value) if isinstance(value, str) else value for key, value in record.items()}


def _without_specials(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {key: _without_specials(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_without_specials(part) for part in value]
    return value


class JournalWriter:
    """Appends records to a stage's journal; only one may be open at a time.

    On local storage a record can be read as soon as it is written, and outlives a power cut after `flush`. On remote
    storage, where files cannot grow, records appear with `flush`.

    Args:
        folder: The stage's folder.
        after_step: Step of the checkpoint that training resumes from: what was recorded up to it is kept, what came
            later, which any test did, is cut, since it will come again (-1: begin anew).
    """

    def __init__(self, folder: Storage, after_step: int = -1) -> None:
        self._target = folder / JOURNAL
        kept = self._cut(after_step)
        if self._target.is_local:
            self._file = open(self._target.path, "ab", buffering=0)  # noqa: SIM115
        else:
            self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115
            self._file.write(kept)
        self._dirty = False

    def _cut(self, after_step: int) -> bytes:
        """Drop the records after a step, and torn lines; return what remains."""
        content = self._target.read_bytes() if self._target.exists() else None
        lines = (content or b"").splitlines(keepends=True)
        records = [decode_record(line) if line.endswith(b"\n") else None for line in lines]
        kept = b"".join(line for line, record in zip(lines, records, strict=True) if _is_kept(record, after_step))
        if kept != content:
            self._target.write_bytes(kept)
        return kept

    def write(self, record: Mapping[str, Any]) -> None:
        """Append a record; `time` is filled in where it is missing."""
        assert {"kind", "epoch", "step"} <= record.keys(), f"a record lacks kind, epoch or step: {record}"
        line = encode_record({"time": round(time.time(), 3), **record})
        while line:  # a disk that is nearly full takes a part of it, and says so at the next attempt
            line = line[self._file.write(line) :]
        self._dirty = True

    def flush(self) -> None:
        """Put what was written where neither a crash nor a power cut can take it."""
        if not self._dirty:
            return
        if self._target.is_local:
            os.fsync(self._file.fileno())
        else:
            self._file.seek(0)
            self._target.write_bytes(self._file.read())
        self._dirty = False

    def close(self) -> None:
        """Flush and close."""
        if not self._file.closed:
            self.flush()
            self._file.close()


def _is_kept(record: Record | None, after_step: int) -> bool:
    """Return whether a record was written before the checkpoint of a step; tests come after the last checkpoint."""
    return record is not None and record["step"] <= after_step and record["kind"] != "test"


@dataclass(frozen=True)
class Cursor:
    """How far a reader has come: a number of bytes, and the line that ended there, by which a cut is noticed."""

    offset: int = 0
    last_line: bytes = b""


class Reading(NamedTuple):
    """What one look into a journal found."""

    records: list[Record]
    """The records from the cursor on; after a cut, all of them."""
    cursor: Cursor
    """Where to go on."""
    restarted: bool
    """Whether the journal was cut behind the cursor, so that records come that were read before."""


def read_journal(folder: Storage, cursor: Cursor | None = None) -> Reading:
    """Read the complete records that were added since the last look.

    A resumed run cuts its journal and writes the steps that were lost again. The journal is then read again from the
    start: nothing is missed, and a `StepMarks` passes over what was read before.

    Args:
        folder: The stage's folder.
        cursor: Where the last look ended (none: the start).
    """
    cursor = cursor or Cursor()
    start = cursor.offset - len(cursor.last_line)
    try:
        content = (folder / JOURNAL).read_bytes(start)
    except FileNotFoundError:
        return Reading([], Cursor(), cursor.offset > 0)
    if not content.startswith(cursor.last_line):
        return read_journal(folder)._replace(restarted=True)
    complete = content[len(cursor.last_line) : content.rfind(b"\n") + 1]
    if not complete:
        return Reading([], cursor, False)
    lines = complete.splitlines(keepends=True)
    records = [record for record in map(decode_record, lines) if record is not None]
    return Reading(records, Cursor(cursor.offset + len(complete), lines[-1]), False)


class StepMarks:
    """The last step seen of every kind of record, by which records that come again are told from new ones.

    Args:
        marks: Steps by kind to begin with.
    """

    def __init__(self, marks: Mapping[str, int] | None = None) -> None:
        self.steps = dict(marks or {})

    def is_new(self, record: Mapping[str, Any]) -> bool:
        """Return whether a record lies beyond the mark of its kind."""
        return int(record["step"]) > self.steps.get(record["kind"], -1)

    def advance(self, record: Mapping[str, Any]) -> None:
        """Set the mark of a record's kind to the record's step."""
        self.steps[record["kind"]] = max(int(record["step"]), self.steps.get(record["kind"], -1))

    def take(self, records: list[Record]) -> list[Record]:
        """Return the new ones of some records, in order, and advance over them."""
        new = []
        for record in records:
            if self.is_new(record):
                self.advance(record)
                new.append(record)
        return new
