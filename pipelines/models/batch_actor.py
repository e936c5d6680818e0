"""What a Ray actor of batch-predict does: it holds the model, and turns a shard of the input into a file."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from perceiver.errors import UserError
from perceiver.inference import Prediction, Predictor, load
from pipelines.models.inputs import Row, Wanted
from pipelines.models.parquet_input import Cursor
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


def schema_of(class_names: Sequence[str], id_column: str | None = None) -> pa.Schema:
    """Return the columns of predictions: of the classes, and of the column of the input that is repeated, if any."""
    ids = [(id_column, pa.string())] if id_column else []
    probabilities = [(f"probability_{name}", pa.float64()) for name in class_names]
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
        self.schema = schema_of(job.class_names, job.wanted.id_column)
        self.cursor = Cursor()  # shards come in their order

    @cached_property
    def predictor(self) -> Predictor:
        """The model, loaded with the first shard, which can say why if it can't be.

        Raises:
            UserError: If it can't be read, or is too large for the GPU.
        """
        try:
            predictor = load(self.job.model, self.job.batch_size)
            predictor.model.to("cuda" if self.job.has_gpu else "cpu")
        except torch.OutOfMemoryError:
            raise UserError("the GPU has no room for the model: set --device cpu") from None
        except OSError as error:
            reason = error.strerror or error
            raise UserError(f"model {self.job.model} cannot be read ({reason}): mend that and start again") from None
        return predictor

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
            return _failure(shard, str(error))
        except torch.OutOfMemoryError:
            return _failure(shard, f"the GPU has no room for {self.job.batch_size} inputs: lower --batch_size")
        except OSError as error:
            reason = error.strerror or error
            return _failure(shard, f"output {self.job.output} cannot be written ({reason}): mend that and start again")
        seconds = time.monotonic() - begun
        return {"number": shard.number, "rows": shard.rows, "errors": errors, "seconds": seconds, "failure": ""}

    def _predict(self, shard: Shard) -> int:
        columns: dict[str, list[Any]] = {name: [] for name in self.schema.names}
        rows = shard.read(self.job.wanted, self.cursor)
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
            raise UserError("the input has changed since the command began: name another --output")
        write_shard(Path(self.job.output), shard, columns, self.schema, self.job.identity)
        return sum(error is not None for error in columns["error"])


def _failure(shard: Shard, reason: str) -> dict[str, Any]:
    return {"number": shard.number, "rows": 0, "errors": 0, "seconds": 0.0, "failure": reason}


def classify_rows(
    predictor: Predictor, rows: list[Row], resize: bool = True
) -> Iterator[tuple[Prediction | None, str | None]]:
    """Classify rows, of which some may be unreadable.

    Yields:
        For each row its prediction, or else what is wrong with it.
    """
    contents = [row.content for row in rows if row.error is None]
    outcomes = iter(_classified(predictor, contents, resize))
    yield from ((None, row.error) if row.error is not None else next(outcomes) for row in rows)


def _classified(
    predictor: Predictor, contents: Sequence[Any], resize: bool
) -> list[tuple[Prediction | None, str | None]]:
    """Classify inputs; where one is broken, the halves of them by themselves, until it is found."""
    if not contents:
        return []
    try:
        return [(prediction, None) for prediction in predictor.classify(contents, resize)]
    except UserError as error:
        if len(contents) == 1:
            return [(None, str(error))]
    half = len(contents) // 2
    return _classified(predictor, contents[:half], resize) + _classified(predictor, contents[half:], resize)
