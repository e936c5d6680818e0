"""What a Ray actor of batch-predict does: it holds the model, and turns a shard of the input into a file."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from perceiver.errors import UserError
from perceiver.inference import Prediction, Predictor, load
from pipelines.models.inputs import Row, Wanted
from pipelines.models.shards import Shard, write_shard

_BATCHES = 16  # that are read before they are sorted by length and predicted


@dataclass(frozen=True)
class Job:
    """What all shards have in common.

    Attributes:
        model: Folder of the model, on a disk that all actors share.
        wanted: What is read of the input.
        class_names: Classes that the model tells apart.
        output: Folder of the predictions.
        identity: What the predictions depend on.
        resize: Whether images of another size are resized.
        batch_size: Inputs per forward pass.
        cpus: Cores of an actor.
        has_gpu: Whether it has a GPU.
    """

    model: str
    wanted: Wanted
    class_names: tuple[str, ...]
    output: str
    identity: str
    resize: bool
    batch_size: int
    cpus: int
    has_gpu: bool

    @property
    def schema(self) -> pa.Schema:
        """Columns of the predictions."""
        ids = [(self.wanted.id_column, pa.string())] if self.wanted.id_column else []
        probabilities = [(f"probability_{name}", pa.float64()) for name in self.class_names]
        return pa.schema(
            [
                ("file", pa.string()),
                ("row", pa.int64()),
                *ids,
                ("label", pa.string()),
                ("probability", pa.float64()),
                *probabilities,
                ("error", pa.string()),
            ]
        )


class ShardPredictor:
    """Predicts for shards, one at a time.

    Args:
        job: What they have in common.
    """

    def __init__(self, job: Job) -> None:
        torch.set_num_threads(job.cpus)
        self.job = job
        self.predictor = load(job.model, job.batch_size)
        self.predictor.model.to("cuda" if job.has_gpu else "cpu")

    def __call__(self, item: Mapping[str, Any]) -> dict[str, Any]:
        """Predict for a shard, and write its file.

        Args:
            item: The shard as JSON, as the value of "shard".

        Returns:
            Its number, its rows, how many of them have an error, the seconds it took, and why it failed, if it did.
        """
        shard, begun = Shard.from_json(item["shard"]), time.monotonic()
        try:
            errors = self._predict(shard)
        except UserError as error:
            return {"number": shard.number, "rows": 0, "errors": 0, "seconds": 0.0, "failure": str(error)}
        except OSError as error:
            failure = (
                f"output {self.job.output} cannot be written ({error.strerror or error}): mend that and start again"
            )
            return {"number": shard.number, "rows": 0, "errors": 0, "seconds": 0.0, "failure": failure}
        seconds = time.monotonic() - begun
        return {"number": shard.number, "rows": shard.rows, "errors": errors, "seconds": seconds, "failure": ""}

    def _predict(self, shard: Shard) -> int:
        columns: dict[str, list[Any]] = {name: [] for name in self.job.schema.names}
        rows = shard.read(self.job.wanted)
        while some := list(islice(rows, self.job.batch_size * _BATCHES)):
            outcomes = classify_rows(self.predictor, [row for _, _, row in some], self.job.resize)
            for (file, number, row), (prediction, error) in zip(some, outcomes, strict=True):
                values = {"file": file, "row": number, "error": error}
                if self.job.wanted.id_column:
                    values[self.job.wanted.id_column] = row.id
                if prediction is not None:
                    values |= {"label": prediction["label"], "probability": prediction["probability"]}
                    values |= {f"probability_{name}": p for name, p in prediction["probabilities"].items()}
                for name, column in columns.items():
                    column.append(values.get(name))
        if len(columns["row"]) != shard.rows:
            raise UserError(f"{shard.pieces[0].file} has changed since the command began: start again")
        write_shard(Path(self.job.output), shard, columns, self.job.schema, self.job.identity)
        return sum(error is not None for error in columns["error"])


def classify_rows(
    predictor: Predictor, rows: list[Row], resize: bool = True
) -> Iterator[tuple[Prediction | None, str | None]]:
    """Classify rows, of which some may be unreadable.

    Yields:
        For each row its prediction, or else what is wrong with it.
    """
    errors = [row.error for row in rows]
    good = [place for place, error in enumerate(errors) if error is None]
    contents: list[Any] = [rows[place].content for place in good]
    predictions: dict[int, Prediction] = {}
    try:
        predictions = dict(zip(good, predictor.classify(contents, resize), strict=True))
    except UserError:  # one of the images is broken: find out which
        for place in good:
            try:
                (predictions[place],) = predictor.classify([rows[place].content], resize)
            except UserError as error:
                errors[place] = str(error)
    yield from ((predictions.get(place), error) for place, error in enumerate(errors))
