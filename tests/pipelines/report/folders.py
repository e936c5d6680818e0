"""Stages that never ran, and the files that a stage leaves behind, made up so that pictures can be drawn of them."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from pipelines.journal import Record
from pipelines.measures import TOKEN_ACCURACY
from pipelines.past_run import PastStage
from pipelines.predictions import PREDICTIONS
from pipelines.report.parts import Picture
from pipelines.report.sources import Sources
from pipelines.sink import StageRun
from pipelines.storage import Storage

CLASSIFIER = {"trainer": {"batch_size": 4}, "data": {"path": "toy_reviews"}, "freeze_encoder": False}
LANGUAGE_MODEL = {**CLASSIFIER, "masking": {"mask_p": 0.15}, "samples": ["a [MASK] film"]}


def past_stage(
    folder: Path,
    records: Sequence[Record] = (),
    result: dict[str, Any] | None = None,
    settings: dict[str, Any] = CLASSIFIER,
) -> PastStage:
    """Return a stage as its folder, whose name is the stage's, would tell it."""
    folder.mkdir(parents=True, exist_ok=True)
    run = StageRun(folder.name, Storage.from_uri(folder), settings, {"data_fingerprint": "?"}, status="FINISHED")
    return PastStage(run, list(records), result or {}, False)


def sources(folder: Path, *records: Record, settings: dict[str, Any] = CLASSIFIER, **result: Any) -> Sources:
    return Sources(past_stage(folder, records, result, settings))


def train_records(steps: int, **metrics: float) -> list[Record]:
    return [
        {"kind": "train", "time": 1000.0 + step, "epoch": 0, "step": step, "loss": 1 / step, **metrics}
        for step in range(1, steps + 1)
    ]


def write_predictions(folder: Path, labels: Sequence[int], probabilities: Any, sample_ids: Any = None) -> None:
    """Write what a classifier made of its test split."""
    rows = np.asarray(probabilities, dtype=np.float32)
    folder.mkdir(parents=True, exist_ok=True)
    columns = {
        "sample_id": pa.array(range(len(rows)) if sample_ids is None else sample_ids, pa.int64()),
        "label": pa.array(labels, pa.int64()),
        "predicted": pa.array(rows.argmax(axis=1), pa.int64()),
        "probabilities": pa.array(rows.tolist(), pa.list_(pa.float32())),
    }
    pq.write_table(pa.table(columns), folder / PREDICTIONS)


def write_token_accuracy(folder: Path, counts: Sequence[int], correct: Sequence[int]) -> None:
    """Write how often each of a few tokens was to be restored, and was."""
    ids = list(range(len(counts)))
    table = {"token_id": ids, "token": [f"token{id_}" for id_ in ids], "count": counts, "correct": correct}
    pq.write_table(pa.table(table), folder / TOKEN_ACCURACY)


def system_record(time: float, rank: int, node: str, **gpu: float) -> dict[str, Any]:
    return {
        "time": time,
        "step": int(time),
        "node": node,
        "rank": rank,
        "cpu_percent": 50.0,
        "rss_bytes": 10**9,
        "memory_used_bytes": 4 * 10**9,
        "memory_total_bytes": 16 * 10**9,
        **gpu,
    }


def write_system(folder: Path, rank: int, records: Sequence[dict[str, Any]]) -> None:
    """Write what a worker measured about its machine; the last line is torn, as a crash leaves it."""
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (folder / f"system-{rank}.jsonl").write_text(lines + '{"time": 12')


def size_of(picture: Picture) -> tuple[int, int]:
    """Return width and height of a picture, after checking that it is more than a white page."""
    image = Image.open(io.BytesIO(picture.png)).convert("L")
    assert image.getextrema() != (255, 255)
    return image.size
