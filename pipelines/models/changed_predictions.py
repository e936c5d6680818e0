"""Which samples of the test split classifiers predict differently, from the predictions that their stages left."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from perceiver.config import TextDataConfig
from perceiver.errors import UserError
from perceiver.saving import CONFIG
from pipelines.past_run import PastStage
from pipelines.predictions import PREDICTIONS, Predictions, read_predictions
from pipelines.stage_folder import MODEL


@dataclass(frozen=True)
class Contrast:
    """How a run's predictions differ from those of the first run, in numbers of samples.

    Attributes:
        run: What the run is called.
        fixed: Right here, wrong there.
        broken: Wrong here, right there.
        both_wrong: Wrong in both.
        changed: Predicted differently, be it right or wrong.
        p_value: Of McNemar's exact test: the probability of fixed and broken samples as unequal in number as these, or
            more so, if both models were equally good.
    """

    run: str
    fixed: int
    broken: int
    both_wrong: int
    changed: int
    p_value: float


@dataclass(frozen=True)
class ChangedSample:
    """A sample that not all runs predict alike.

    Attributes:
        sample_id: Its number in the test split, from 0.
        label: Name of its class.
        predicted: Name of the class that each run predicts.
        text: Its text; None for images, and where the texts are not at hand.
    """

    sample_id: int
    label: str
    predicted: list[str]
    text: str | None = None


@dataclass(frozen=True)
class ComparedPredictions:
    """The predictions of several runs on the same test split.

    Attributes:
        reason: Why they can't be compared, or why the samples have no text; empty if nothing is wrong.
        num_samples: Samples of the test split.
        contrasts: One for each run but the first.
        samples: Samples with different predictions, those first whose own class has gained or lost most probability.
    """

    reason: str = ""
    num_samples: int = 0
    contrasts: list[Contrast] = field(default_factory=list)
    samples: list[ChangedSample] = field(default_factory=list)


def compare_predictions(names: Sequence[str], stages: Sequence[PastStage], num_samples: int) -> ComparedPredictions:
    """Compare the predictions of classifiers, if they are of the same samples.

    Args:
        names: What the runs are called.
        stages: A stage of each.
        num_samples: Samples to return at most.
    """
    if reason := _why_not(names, stages):
        return ComparedPredictions(reason)
    try:
        found = [read_predictions(stage.run.folder) for stage in stages]
    except UserError as error:
        return ComparedPredictions(str(error))
    first, *others = found
    if any(not np.array_equal(first.labels, other.labels) for other in others):
        return ComparedPredictions("the runs were tested on other samples")
    ids = _most_changed(found)[:num_samples]
    class_names = (stages[0].run.folder / MODEL / CONFIG).read_json()["class_names"]
    texts, reason = _texts(stages[0], first.labels, ids)
    samples = [
        ChangedSample(
            sample_id=number,
            label=class_names[first.labels[number]],
            predicted=[class_names[predictions.predicted[number]] for predictions in found],
            text=text,
        )
        for number, text in zip(ids, texts, strict=True)
    ]
    contrasts = [contrast(name, first, other) for name, other in zip(names[1:], others, strict=True)]
    return ComparedPredictions(reason, len(first.labels), contrasts, samples)


def _why_not(names: Sequence[str], stages: Sequence[PastStage]) -> str:
    """Say why predictions can't be compared; empty if they can."""
    if len({stage.run.tags["data_fingerprint"] for stage in stages}) > 1:
        return "the runs have different data"
    if len({stage.run.parameters.get("data", {}).get("limit") for stage in stages}) > 1:
        return "the runs were tested on other samples, for data.limit differs"
    without = [
        name for name, stage in zip(names, stages, strict=True) if not (stage.run.folder / PREDICTIONS).is_readable()
    ]
    return f"{', '.join(without)} left no {PREDICTIONS}" if without else ""


def contrast(name: str, first: Predictions, other: Predictions) -> Contrast:
    """Count how a run's predictions differ from those of the first run."""
    from scipy.stats import binomtest

    fixed, broken = int((other.right & ~first.right).sum()), int((first.right & ~other.right).sum())
    return Contrast(
        run=name,
        fixed=fixed,
        broken=broken,
        both_wrong=int((~first.right & ~other.right).sum()),
        changed=int((first.predicted != other.predicted).sum()),
        p_value=float(binomtest(fixed, fixed + broken).pvalue) if fixed + broken else 1.0,
    )


def _most_changed(found: Sequence[Predictions]) -> list[int]:
    """Return the ids of the samples that not all runs predict alike, the most changed first."""
    predicted = np.stack([predictions.predicted for predictions in found])  # (runs, n)
    probability = np.stack([predictions.probability_of_label for predictions in found])
    changed = np.flatnonzero((predicted != predicted[0]).any(axis=0))
    order = np.argsort(-np.ptp(probability, axis=0)[changed], kind="stable")
    ids: list[int] = changed[order].tolist()
    return ids


def _texts(stage: PastStage, labels: npt.NDArray[np.int64], ids: Sequence[int]) -> tuple[Sequence[str | None], str]:
    """Read samples of the test split again.

    Returns:
        The text of each sample, None where there is none, and why that is.
    """
    nothing = [None] * len(ids)
    data: dict[str, Any] = stage.run.parameters["data"]
    if not ids or "max_seq_len" not in data:
        return nothing, ""
    from perceiver.data.text import split_text

    try:
        test = split_text(TextDataConfig(**data)).test
    except (TypeError, ValueError, OSError) as error:
        return nothing, f"the texts can't be read again: {error}"
    if not np.array_equal(test["label"][:], labels):
        return nothing, f"the texts of {data['path']} have changed since"
    return [test[number]["text"] for number in ids], ""
