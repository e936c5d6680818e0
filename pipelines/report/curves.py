"""Courses over the steps of a training: loss, perplexity, accuracy, learning rate, gradient norm, speed, waiting."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from pipelines.journal import Record
from pipelines.mlflow_tables import RESTART
from pipelines.report.parts import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    MissingSourceError,
    Picture,
    label_log_axis,
    new_axes,
    picture,
)
from pipelines.report.sources import Sources

Floats = npt.NDArray[np.float64]

_MOST_POINTS = 800
_SMOOTHED_SHARE = 0.03  # of the course that a point of the smooth line is the mean of


def thinned(values: Sequence[float], most: int = _MOST_POINTS) -> Floats:
    """Return means of as many neighbours as it takes to have no more points than a picture can show.

    Args:
        values: A course (n,).
        most: Points at most.
    """
    array = np.asarray(values, dtype=np.float64)
    if len(array) <= most:
        return array
    return np.array([part.mean() for part in np.array_split(array, most)])


def smoothed(values: Floats) -> Floats:
    """Return the moving mean of a course (n,), of fewer neighbours at its ends."""
    half = int(len(values) * _SMOOTHED_SHARE / 2)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    places = np.arange(len(values))
    first, last = np.maximum(places - half, 0), np.minimum(places + half + 1, len(values))
    means: Floats = (sums[last] - sums[first]) / (last - first)
    return means


def _course(records: Sequence[Record], metric: str) -> tuple[Floats, Floats]:
    """Return steps and values of a metric, as many as a picture can show."""
    return thinned([record["step"] for record in records]), thinned([record[metric] for record in records])


def _mark_restarts(sources: Sources, axes: Axes) -> None:
    for record in sources.stage.records:
        if record["kind"] == "event" and record.get("event") == RESTART:
            axes.axvline(record["step"], color=GREY, linestyle=":", linewidth=1)


def _mark_best(sources: Sources, axes: Axes, validation: Sequence[Record], metric: str) -> None:
    """Mark the epoch whose weights became the model."""
    best = sources.stage.result.get("best_epoch")
    for record in validation:
        if record["epoch"] + 1 == best:
            axes.plot(record["step"], record[metric], "*", color=ORANGE, markersize=11, label=f"epoch {best}, kept")


def loss(sources: Sources) -> list[Picture]:
    """Draw the loss of training and validation."""
    axes = new_axes("step", "loss")
    steps, losses = _course(sources.records("train", "loss"), "loss")
    validation = sources.records("validation", "val_loss")
    axes.plot(steps, losses, color=BLUE, alpha=0.25, linewidth=0.8)
    axes.plot(steps, smoothed(losses), color=BLUE, label="training")
    axes.plot(*_course(validation, "val_loss"), "o-", color=ORANGE, markersize=3, label="validation")
    _mark_best(sources, axes, validation, "val_loss")
    _mark_restarts(sources, axes)
    axes.legend()
    caption = "Faint: each step; strong: moving mean. The star is the epoch whose weights became the model."
    return [picture("loss", "Loss", axes, caption)]


def perplexity(sources: Sources) -> list[Picture]:
    """Draw the exponential of the loss: among how many equally likely tokens the model hesitates."""
    axes = new_axes("step", "perplexity")
    steps, losses = _course(sources.records("train", "loss"), "loss")
    axes.semilogy(steps, np.exp(smoothed(losses)), color=BLUE, label="training")
    steps, losses = _course(sources.records("validation", "val_loss"), "val_loss")
    axes.semilogy(steps, np.exp(losses), "o-", color=ORANGE, markersize=3, label="validation")
    label_log_axis(axes.yaxis)
    _mark_restarts(sources, axes)
    axes.legend()
    tested = sources.stage.result.get("test_loss")
    told = "" if tested is None else f" On the test split it is {math.exp(tested):.1f}."
    return [picture("perplexity", "Perplexity", axes, f"exp(loss): among how many tokens the model hesitates.{told}")]


def accuracy(sources: Sources) -> list[Picture]:
    """Draw the accuracy on the validation split, and that on the test split at the end."""
    axes = new_axes("step", "accuracy")
    validation = sources.records("validation", "val_accuracy")
    axes.plot(*_course(validation, "val_accuracy"), "o-", color=ORANGE, markersize=3, label="validation")
    _mark_best(sources, axes, validation, "val_accuracy")
    tested = sources.stage.result.get("test_accuracy")
    if tested is not None:
        axes.axhline(tested, color=GREEN, linestyle="--", linewidth=1.2, label=f"test, {tested:.2%}")
    _mark_restarts(sources, axes)
    axes.set_xlim(left=0)  # a single epoch has a single point, around which there would be no scale
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.legend()
    return [picture("accuracy", "Accuracy", axes, "Validation after each epoch; the test comes once, at the end.")]


def learning_rate(sources: Sources) -> list[Picture]:
    """Draw the learning rate."""
    axes = new_axes("step", "learning rate")
    axes.plot(*_course(sources.records("train", "learning_rate"), "learning_rate"), color=PURPLE)
    axes.set_ylim(bottom=0)
    return [picture("learning-rate", "Learning rate", axes)]


def gradient_norm(sources: Sources) -> list[Picture]:
    """Draw the norm of the gradient before clipping."""
    records = sources.stage.records
    found = [record for record in records if record["kind"] == "train" and "gradient_norm" in record]
    if not found:
        raise MissingSourceError("it was not recorded: trainer.log_gradient_norm records it")
    axes = new_axes("step", "gradient norm")
    steps, norms = _course(found, "gradient_norm")
    axes.semilogy(steps, norms, color=BLUE, alpha=0.25, linewidth=0.8)
    axes.semilogy(steps, smoothed(norms), color=BLUE)
    clip = sources.settings["trainer"].get("gradient_clip_norm")
    if clip is not None:
        axes.axhline(clip, color=ORANGE, linestyle="--", linewidth=1.2, label=f"clipped at {clip:g}")
        axes.legend()
    label_log_axis(axes.yaxis)
    _mark_restarts(sources, axes)
    return [picture("gradient-norm", "Gradient norm", axes)]


def speed(sources: Sources) -> list[Picture]:
    """Draw how many samples, and where it was recorded tokens, were trained on per second."""
    records = sources.records("train", "samples_per_second")
    axes = new_axes("step", "samples/s")
    axes.plot(*_course(records, "samples_per_second"), color=BLUE)
    axes.set_ylim(bottom=0)
    with_tokens = [record for record in records if "tokens_per_second" in record]
    if with_tokens:
        axes.yaxis.label.set_color(BLUE)
        other = axes.twinx()
        other.grid(visible=False)
        other.plot(*_course(with_tokens, "tokens_per_second"), color=GREEN, linewidth=1.2)
        other.set_ylabel("tokens/s", color=GREEN)
        other.set_ylim(bottom=0)
    _mark_restarts(sources, axes)
    return [picture("speed", "Speed", axes, "All workers together; a mean of a second or more.")]


def waiting(sources: Sources) -> list[Picture]:
    """Draw the shares of the time in which training waited for data and for checkpoints."""
    axes = new_axes("step", "share of the time")
    records = sources.records("train", "data_wait")
    means = []
    for metric, name, color in (("data_wait", "data", BLUE), ("checkpoint_wait", "checkpoints", ORANGE)):
        found = [record for record in records if metric in record]
        if found:
            axes.plot(*_course(found, metric), color=color, label=name)
            means.append(f"{np.mean([record[metric] for record in found]):.1%} for {name}")
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_ylim(bottom=0)
    axes.legend()
    return [picture("waiting", "Waiting", axes, f"Mean over the steps: {', '.join(means)}.")]
