"""Which pixels or tokens the latents of a model read, layer by layer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from perceiver.data.tokenizer import UNK_TOKEN
from perceiver.inference import encode
from pipelines.report.attribution import Floats, attention
from pipelines.report.errors import shown_pixels
from pipelines.report.parts import MissingSourceError, Picture, picture, shortened
from pipelines.report.sources import Sources

_INPUTS = 3
_LATENTS = 5
_MOST_TOKENS = 28
_READ_MOST = "Shown are the latents that the output reads most, those it reads most first."


def of_texts(sources: Sources) -> list[Picture]:
    """Draw which tokens of some texts of the test split the latents read."""
    texts = sources.test_texts
    sample_ids = np.flatnonzero((texts.lengths >= 5) & (texts.lengths <= _MOST_TOKENS))[:_INPUTS]
    if not len(sample_ids):
        sample_ids = np.argsort(texts.lengths, kind="stable")[:_INPUTS]
    batch = texts.read(sample_ids, epoch=0)
    titles = [f"Attention, sample {sample}" for sample in sample_ids]
    return _of_texts(sources, batch["input_ids"], batch["pad_mask"], titles)


def of_sample_texts(sources: Sources) -> list[Picture]:
    """Draw which tokens of its sample texts the latents of a masked language model read."""
    samples = list(sources.settings["samples"])[:_INPUTS]
    if not samples:
        raise MissingSourceError("there are no sample texts")
    predictor = sources.predictor
    assert predictor.tokenizer is not None
    ids, pad_mask = encode(predictor.tokenizer, samples, sources.settings["data"]["max_seq_len"])
    return _of_texts(sources, ids, pad_mask, [f"Attention, text {number + 1}" for number in range(len(samples))])


def _of_texts(sources: Sources, ids: Tensor, pad_mask: Tensor, titles: Sequence[str]) -> list[Picture]:
    tokenizer = sources.predictor.tokenizer
    assert tokenizer is not None
    layers, decoder = attention(sources.predictor.model, ids, pad_mask)
    pictures = []
    for place, title in enumerate(titles):
        length = int((~pad_mask[place]).sum())
        tokens = [tokenizer.id_to_token(number) or UNK_TOKEN for number in ids[place, :length].tolist()]
        latents = read_most(decoder[place])
        drawn = _text_figure(tokens[:_MOST_TOKENS], [layer[place][latents] for layer in layers], latents)
        caption = f"Rows are tokens, columns latents; the darker, the more a latent reads of a token. {_READ_MOST}"
        pictures.append(picture(f"attention-{place + 1}", title, drawn, caption))
    return pictures


def _text_figure(tokens: Sequence[str], layers: Sequence[Floats], latents: Sequence[int]) -> Figure:
    """Draw a heat map per layer: its rows are tokens, which are read from left to right, its columns latents."""
    figure = Figure(figsize=(max(4.8, 1.2 + 1.4 * len(layers)), 1.1 + 0.2 * len(tokens)), layout="constrained")
    grid = figure.subplots(1, len(layers), sharey=True, squeeze=False)[0]
    for number, (axes, weights) in enumerate(zip(grid, layers, strict=True)):
        shown = weights[:, : len(tokens)]
        axes.imshow(shown.T, cmap="Blues", vmin=0, vmax=max(float(shown.max()), 1e-9), aspect="auto")
        axes.set_title(f"layer {number + 1}", fontsize=9)
        axes.set_xticks(range(len(latents)), [str(latent) for latent in latents], fontsize=8)
        axes.set_xlabel("latent")
        axes.grid(visible=False)
    grid[0].set_yticks(range(len(tokens)), [shortened(token, 18) for token in tokens], fontsize=8.5)
    return figure


def of_images(sources: Sources) -> list[Picture]:
    """Draw which pixels of some images of the test split the latents read."""
    images = sources.test_images
    _, first = np.unique(images.split.labels, return_index=True)
    sample_ids = np.asarray(first[:_INPUTS])
    x = images.read(sample_ids, epoch=0)["images"]
    layers, decoder = attention(sources.predictor.model, x)
    pixels = shown_pixels(sources, sample_ids)
    pictures = []
    for place, sample in enumerate(sample_ids):
        latents = read_most(decoder[place])
        maps = [layer[place][latents].reshape(len(latents), *x.shape[1:3]) for layer in layers]
        drawn = _image_figure(pixels[place], maps, latents)
        name = shortened(sources.class_names[images.split.labels[sample]])
        caption = f"Rows are latents, columns layers; the brighter, the more a latent reads of a pixel. {_READ_MOST}"
        pictures.append(picture(f"attention-{place + 1}", f"Attention, sample {sample} ({name})", drawn, caption))
    return pictures


def _image_figure(image: Floats, layers: Sequence[Floats], latents: Sequence[int]) -> Figure:
    """Draw small multiples: the image, then a column per layer with a row per latent."""
    columns = 1 + len(layers)
    figure = Figure(figsize=(max(4.8, 1.05 * columns), 0.6 + 0.85 * len(latents)), layout="constrained")
    grid = figure.subplots(len(latents), columns, squeeze=False)
    for axes in grid.flat:
        axes.set(xticks=[], yticks=[])
        axes.grid(visible=False)
    for axes in grid[1:, 0]:
        axes.axis("off")
    grid[0, 0].imshow(image, cmap="gray", vmin=0, vmax=1)
    grid[0, 0].set_title("image", fontsize=9)
    for number, maps in enumerate(layers):
        grid[0, 1 + number].set_title(f"layer {number + 1}", fontsize=9)
        for row, weights in enumerate(maps):
            grid[row, 1 + number].imshow(weights, cmap="magma", vmin=0)
    for row, latent in enumerate(latents):
        grid[row, 1].set_ylabel(f"latent {latent}", fontsize=8)
    return figure


def read_most(decoder: Floats) -> list[int]:
    """Return the latents that the outputs read most, in order.

    Args:
        decoder: Attention of the outputs to the latents (O, N).
    """
    return [int(latent) for latent in np.argsort(-decoder.mean(axis=0), kind="stable")[:_LATENTS]]
