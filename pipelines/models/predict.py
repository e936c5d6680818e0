"""`python -m pipelines predict`: what a trained model says about texts or images."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

import torch

from perceiver.config import ImageClassifierConfig, MaskedLanguageModelConfig, ModelConfig
from perceiver.data.tokenizer import MASK_TOKEN
from perceiver.errors import UserError
from perceiver.inference import Predictor, load, named_fills
from perceiver.saving import read_config
from pipelines.models.inputs import NO_ROWS, Kind, Row, Wanted, find_files, read_rows
from pipelines.models.notes import notes
from pipelines.models.outputs import Result, columns_of, counted, output_of
from pipelines.models.predict_options import Device, PredictConfig
from pipelines.models.where import model_folder

_BATCHES = 16  # that are read before they are sorted by length and predicted
_TOP_K = 5


def predict(config: PredictConfig) -> int:
    """Predict, and print or write what came out.

    Returns:
        The exit status: 130 after Ctrl-C or SIGTERM.

    Raises:
        UserError: If the model, the input or the output can't be used; no file is written then.
    """
    try:
        with notes() as logger:
            _predict(config, logger)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    return 0


def _predict(config: PredictConfig, logger: logging.Logger) -> None:
    if config.input is not None and not Path(config.input).expanduser().exists():
        raise UserError(f"{config.input} does not exist: correct the path (relative ones start from {Path.cwd()})")
    device = device_of(config.device)
    with model_folder(config.model, config.tracking_uri) as folder:
        model = read_config(folder)
        _check_task(config, model)
        rows = _nonempty(_rows(config, kind_of(model)), config)
        name = "path" if kind_of(model) == "image" else "text"
        columns = columns_of(name, getattr(model, "class_names", None), config.id_column)
        with output_of(config.output, config.format, columns) as write:
            predictor = load(folder, config.batch_size)
            predictor.model.to(device)
            predicted = 0
            one_by_one = config.input is None and not config.text and sys.stdin.isatty()
            for some in _chunks(rows, 1 if one_by_one else config.batch_size * _BATCHES):
                write(_results(predictor, some, config, logger))
                predicted += len(some)
    if config.output is not None:
        print(f"{config.output}: predictions for {counted(predicted, 'row')}", file=sys.stderr)


def kind_of(model: ModelConfig) -> Kind:
    """Return what a model reads."""
    return "image" if isinstance(model, ImageClassifierConfig) else "text"


def device_of(name: Device) -> torch.device:
    """Return the device that an option names.

    Raises:
        UserError: If it is a GPU that is not there.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("device is cuda, but this machine has no GPU that PyTorch can use: set --device cpu")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def _check_task(config: PredictConfig, model: ModelConfig) -> None:
    if config.top_k is not None and not isinstance(model, MaskedLanguageModelConfig):
        raise UserError(f"model {config.model} is a classifier, which has no --top_k: leave it out, or name an mlm run")
    if isinstance(model, MaskedLanguageModelConfig) and (config.top_k or 0) > model.vocab_size:
        raise UserError(f"top_k is {config.top_k:,}, but the model knows {model.vocab_size:,} tokens: ask for fewer")
    if kind_of(model) == "image" and config.input is None:
        raise UserError(f"model {config.model} reads images, not texts: name images with --input, or another model")


def _rows(config: PredictConfig, kind: Kind) -> Iterator[Row]:
    """Yield what is to be predicted."""
    if config.text:
        return (Row(text, text) for text in config.text)
    if config.input is None:
        if sys.stdin.isatty():
            print("note: a text per line; Ctrl-D ends", file=sys.stderr)
        return (Row(text, text) for text in _standard_input())
    wanted = Wanted(kind, config.text_column if kind == "text" else config.image_column, config.id_column)
    return chain.from_iterable(read_rows(file, wanted) for file in find_files([config.input], kind))


def _standard_input() -> Iterator[str]:
    for number, line in enumerate(sys.stdin.buffer, 1):
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
        except UnicodeDecodeError:
            raise UserError(f"standard input, line {number}: not UTF-8: convert it to UTF-8") from None
        if text.strip():
            yield text


def _nonempty(rows: Iterator[Row], config: PredictConfig) -> Iterator[Row]:
    first = next(rows, None)
    if first is None:
        raise UserError(f"{config.input or 'the standard input'} {NO_ROWS}")
    return chain([first], rows)


def _chunks(rows: Iterable[Row], size: int) -> Iterator[list[Row]]:
    left = iter(rows)
    while some := list(islice(left, size)):
        yield some


def _results(predictor: Predictor, rows: Sequence[Row], config: PredictConfig, logger: logging.Logger) -> list[Result]:
    """Predict for some rows.

    Raises:
        UserError: If a row can't be used.
    """
    if broken := next((f"{row.name}: {row.error}" for row in rows if row.error), None):
        raise UserError(broken)
    contents: list[Any] = [row.content for row in rows]
    name = "text" if kind_of(predictor.config) == "text" else "path"
    inputs: list[Result] = [{name: row.name} | ({config.id_column: row.id} if config.id_column else {}) for row in rows]
    if isinstance(predictor.config, MaskedLanguageModelConfig):
        outcomes: list[Any] = _fills(predictor, contents, config.top_k or _TOP_K, logger)
    elif name == "text":
        if masked := next((text for text in contents if MASK_TOKEN in text), None):
            if config.text:
                reason = f"{masked[:60]!r} has a {MASK_TOKEN}, but the model classifies"
                raise UserError(f"{reason}: name the model of an mlm stage")
            logger.info("some texts have a %s, but the model classifies: it is read as it stands", MASK_TOKEN)
        outcomes = predictor.classify(contents)
    else:
        outcomes = predictor.classify(contents, config.resize)
    return [one | outcome for one, outcome in zip(inputs, outcomes, strict=True)]


def _fills(predictor: Predictor, texts: Sequence[str], k: int, logger: logging.Logger) -> list[Result]:
    results = predictor.fill(texts, k)
    if any(not result["fills"] for result in results):
        logger.info("a text without %s that the model reads has no fills", MASK_TOKEN)
    return [{"fills": named_fills(result)} for result in results]
