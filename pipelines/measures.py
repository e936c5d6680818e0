"""What a test leaves in the stage's folder beside its metrics.

predictions.parquet      of a classifier: a row for each sample of the test split, in ascending order of sample_id
token_accuracy.parquet   of a masked language model: a row for each token that was masked in the test
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tokenizers import Tokenizer

from perceiver.data.encoded import EncodedSource
from perceiver.data.image_module import ImageSource
from perceiver.data.modules import DataModule
from perceiver.data.text_module import TextSource
from perceiver.data.tokenizer import SPECIAL_TOKENS
from perceiver.tasks.base import Task
from perceiver.tasks.classifier import Classifier
from perceiver.tasks.masked_language_model import MaskedLanguageModel
from perceiver.tasks.tested import SamplePredictions, TokenCounts
from pipelines.baselines import majority_accuracy, unigram_baseline
from pipelines.models.card import Baseline
from pipelines.predictions import PREDICTIONS
from pipelines.storage import Storage

TOKEN_ACCURACY = "token_accuracy.parquet"


def write_tested(folder: Storage, task: Task) -> None:
    """Write what a task's test kept.

    Args:
        folder: The stage's folder.
        task: A task that was tested.
    """
    if isinstance(task, Classifier):
        assert task.predictions is not None
        _write(folder / PREDICTIONS, predictions_table(task.predictions))
    if isinstance(task, MaskedLanguageModel):
        assert task.token_counts is not None
        assert task.tokenizer is not None
        _write(folder / TOKEN_ACCURACY, token_accuracy_table(task.token_counts, task.tokenizer))


def predictions_table(predictions: SamplePredictions) -> pa.Table:
    """Return the columns sample_id, label, predicted (int64) and probabilities (list of float32, one per class)."""
    num_samples, num_classes = predictions.probabilities.shape
    starts = pa.array(range(0, num_samples * num_classes + 1, num_classes), pa.int32())
    return pa.table(
        {
            "sample_id": pa.array(predictions.sample_ids, pa.int64()),
            "label": pa.array(predictions.labels, pa.int64()),
            "predicted": pa.array(predictions.predicted, pa.int64()),
            "probabilities": pa.ListArray.from_arrays(starts, pa.array(predictions.probabilities.ravel())),
        }
    )


def token_accuracy_table(counts: TokenCounts, tokenizer: Tokenizer) -> pa.Table:
    """Return the columns token_id (int32), token (string), count and correct (int64) of the tokens with a count."""
    (ids,) = counts.masked.nonzero()
    return pa.table(
        {
            "token_id": pa.array(ids, pa.int32()),
            "token": pa.array([tokenizer.id_to_token(int(id_)) for id_ in ids], pa.string()),
            "count": pa.array(counts.masked[ids], pa.int64()),
            "correct": pa.array(counts.restored[ids], pa.int64()),
        }
    )


def baseline_of(task: Task, data: DataModule) -> Baseline:
    """Return the test figures of naming what is commonest in the training split: a class, or a token.

    Args:
        task: A task that was tested.
        data: Its data.
    """
    if isinstance(task, Classifier):
        assert task.predictions is not None
        assert isinstance(data.train, TextSource | EncodedSource | ImageSource)
        return Baseline("commonest class", majority_accuracy(data.train.labels, task.predictions.labels))
    assert isinstance(task, MaskedLanguageModel)
    assert task.token_counts is not None
    assert isinstance(data.train, TextSource)
    masked = task.token_counts.masked
    counts = np.sum([np.bincount(tokens, minlength=len(masked)) for tokens in data.train.tokens], axis=0)
    counts[: len(SPECIAL_TOKENS)] = 0
    accuracy, loss = unigram_baseline(counts, masked) if masked.any() else (None, None)
    return Baseline("commonest token", accuracy, loss)


def _write(file: Storage, table: pa.Table) -> None:
    buffer = pa.BufferOutputStream()
    pq.write_table(table, buffer)
    file.write_bytes(buffer.getvalue().to_pybytes())
