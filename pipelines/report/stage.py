"""Which pictures the stages of each kind have, and what becomes of those that can't be drawn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from pipelines.past_run import PastStage
from pipelines.report import attention, classification, curves, errors, language, machines
from pipelines.report.parts import MissingSourceError, Omitted, Part
from pipelines.report.sources import Sources
from pipelines.sink import root_cause


class _Drawing(NamedTuple):
    title: str
    draw: Callable[[Sources], Sequence[Part]]


_OF_TRAINING = (
    _Drawing("Speed", curves.speed),
    _Drawing("Waiting", curves.waiting),
    _Drawing("Learning rate", curves.learning_rate),
    _Drawing("Gradient norm", curves.gradient_norm),
    _Drawing("Load", machines.load),
    _Drawing("Memory", machines.memory),
    _Drawing("Computation", machines.operations),
)
_OF_CLASSIFIER = (
    _Drawing("Loss", curves.loss),
    _Drawing("Accuracy", curves.accuracy),
    _Drawing("Confusion matrix", classification.confusion),
    _Drawing("Reliability", classification.reliability),
)


def _drawings(sources: Sources) -> Sequence[_Drawing]:
    if sources.kind == "masked language model":
        return (
            _Drawing("Loss", curves.loss),
            _Drawing("Perplexity", curves.perplexity),
            _Drawing("Fills of the sample texts", language.fills),
            _Drawing("Accuracy by token frequency", language.token_accuracy),
            _Drawing("Attention", attention.of_sample_texts),
            *_OF_TRAINING,
        )
    if sources.kind == "image classifier":
        return (
            *_OF_CLASSIFIER,
            *_curve_of_two(sources),
            _Drawing("Worst errors", errors.worst_images),
            _Drawing("Attention", attention.of_images),
            *_OF_TRAINING,
        )
    return (
        *_OF_CLASSIFIER,
        *_curve_of_two(sources),
        _Drawing("Worst errors", errors.worst_texts),
        _Drawing("Attention", attention.of_texts),
        *_OF_TRAINING,
    )


def _curve_of_two(sources: Sources) -> Sequence[_Drawing]:
    """Return the ROC curve, unless it is known that there are not two classes."""
    try:
        classes = sources.predictions.probabilities.shape[1]
    except MissingSourceError:
        return ()
    return (_Drawing("ROC curve", classification.roc),) if classes == 2 else ()


def draw_stage(stage: PastStage, warn: Callable[[str], None]) -> list[Part]:
    """Draw what can be drawn of a stage.

    Args:
        stage: The stage.
        warn: Shows the user a line where a picture failed.

    Returns:
        The pictures, tables and texts in their order, and a line for each that is not there.
    """
    sources = Sources(stage)
    parts: list[Part] = []
    for title, draw in _drawings(sources):
        try:
            parts.extend(draw(sources))
        except MissingSourceError as missing:
            parts.append(Omitted(title, str(missing)))
        except Exception as error:  # a picture is worth no run
            reason = f"it could not be drawn ({root_cause(error)})"
            parts.append(Omitted(title, reason))
            warn(f"report: {stage.run.name}: {title.lower()}: {reason}")
    return parts
