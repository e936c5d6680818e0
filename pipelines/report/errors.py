"""A classifier's worst errors: the wrong classes that it was most sure of, with what it was shown."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from perceiver.data.tokenizer import UNK_TOKEN
from pipelines.report.attribution import Floats, attribution
from pipelines.report.parts import (
    Cell,
    MissingSourceError,
    Picture,
    ShadedText,
    ShadedTexts,
    picture,
    shade_of,
    shortened,
)
from pipelines.report.sources import Sources

_MOST_ERRORS = 50
_MOST_TOKENS = 400  # of a text, so that the page stays small
_TEXTS_AT_ONCE = 10
_COLUMNS = 5
_SUBWORD = "##"


def _worst(sources: Sources, samples_there: int, labels: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return the rows of the worst errors, after checking that they speak of the samples that are there."""
    predictions = sources.predictions
    rows = predictions.worst_errors(_MOST_ERRORS)
    if not len(rows):
        raise MissingSourceError(f"all {len(predictions.labels):,} predictions are right")
    ids = predictions.sample_ids[rows]
    if ids.max() >= samples_there or (labels[ids] != predictions.labels[rows]).any():
        raise MissingSourceError("the predictions are not of the test split that the settings name")
    return rows


def _heading(sources: Sources, row: int) -> str:
    predictions, names = sources.predictions, sources.class_names
    label, predicted = names[predictions.labels[row]], names[predictions.predicted[row]]
    sample, share = predictions.sample_ids[row], predictions.confidence[row]
    return f"sample {sample}: {shortened(label, 40)}, taken for {shortened(predicted, 40)} ({share:.1%})"


def worst_texts(sources: Sources) -> list[ShadedTexts]:
    """Show the texts of the worst errors, their tokens shaded by how much they count."""
    texts, predictor = sources.test_texts, sources.predictor
    rows = _worst(sources, len(texts), texts.labels)
    tokenizer = predictor.tokenizer
    assert tokenizer is not None
    found: list[ShadedText] = []
    for start in range(0, len(rows), _TEXTS_AT_ONCE):
        some = rows[start : start + _TEXTS_AT_ONCE]
        batch = texts.read(sources.predictions.sample_ids[some], epoch=0)
        weights = attribution(predictor.model, batch["input_ids"], batch["pad_mask"])
        for place, row in enumerate(some):
            ids = batch["input_ids"][place][~batch["pad_mask"][place]].tolist()
            tokens = [tokenizer.id_to_token(number) or UNK_TOKEN for number in ids]
            cells = shaded_tokens(tokens, weights[place])
            found.append(ShadedText(_heading(sources, int(row)), cells))
    return [ShadedTexts(f"The {len(found)} worst errors", "The darker a token, the more of it was read.", found)]


def shaded_tokens(tokens: list[str], weights: Floats) -> list[Cell]:
    """Return tokens as cells that make up a text, parts of one word without space between them.

    Args:
        tokens: n tokens.
        weights: How much each counts (n or more,), 0 or more.
    """
    shown = tokens[:_MOST_TOKENS]
    largest = max(float(weights[: len(shown)].max(initial=0.0)), 1e-12)
    cells = []
    for place, token in enumerate(shown):
        text = token.removeprefix(_SUBWORD) if token.startswith(_SUBWORD) else f" {token}"
        cells.append(Cell(text, shade_of(weights[place] / largest), f"{weights[place]:.3g}"))
    if len(tokens) > len(shown):
        cells.append(Cell(f" … and {len(tokens) - len(shown)} more tokens", 0, ""))
    return cells


def worst_images(sources: Sources) -> list[Picture]:
    """Draw the images of the worst errors, with label, prediction and its probability."""
    images, predictions, names = sources.test_images, sources.predictions, sources.class_names
    rows = _worst(sources, len(images), images.split.labels)
    pixels = shown_pixels(sources, predictions.sample_ids[rows])
    lines = -(-len(rows) // _COLUMNS)
    figure = Figure(figsize=(4.8, 0.4 + 1.15 * lines), layout="constrained")
    grid = figure.subplots(lines, _COLUMNS, squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    for axes, image, row in zip(grid.flat, pixels, rows, strict=False):
        axes.imshow(image, cmap="gray", vmin=0, vmax=1)
        label, predicted = (shortened(names[of[row]], 8) for of in (predictions.labels, predictions.predicted))
        axes.set_title(f"{label} → {predicted}  {predictions.confidence[row]:.0%}", fontsize=7.5)
    caption = "Label → prediction and its probability: the wrong predictions that the model was most sure of."
    return [picture("worst-errors", f"The {len(rows)} worst errors", figure, caption)]


def shown_pixels(sources: Sources, sample_ids: npt.NDArray[np.int64]) -> Floats:
    """Return images of the test split as matplotlib shows them: (n, height, width[, 3]), from 0 to 1."""
    images = sources.test_images
    pixels: Floats = images.read(sample_ids, epoch=0)["images"].numpy()
    if images.config.normalize:
        pixels = (pixels + 1) / 2
    return pixels[..., :3] if pixels.shape[-1] >= 3 else pixels[..., 0]
