"""Use a trained model: fill masks, classify texts and images.

from perceiver.inference import load

load("runs/sentiment").classify(["what a film", "what a mess"])
load("runs/digits").classify(["three.png", "seven.png"])

What is cut or resized to fit the model is said to the logger "perceiver", at the level INFO.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any, TypedDict, TypeVar

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from perceiver.config import ImageClassifierConfig, ModelConfig, TextClassifierConfig
from perceiver.data.tokenizer import MASK_TOKEN, SPECIAL_TOKENS, UNK_TOKEN, has_half_character, vocab_size_of
from perceiver.encoding import first_token_ids
from perceiver.errors import UserError
from perceiver.image_files import read_images
from perceiver.masking import IGNORED_LABEL
from perceiver.model import PerceiverIO, PerceiverMLM
from perceiver.saving import load_model

T = TypeVar("T")

_UNK_ID, _MASK_ID = SPECIAL_TOKENS.index(UNK_TOKEN), SPECIAL_TOKENS.index(MASK_TOKEN)


class Fills(TypedDict):
    """What a model would write in place of a text's masks.

    Attributes:
        text: The text with [MASK] in it.
        fills: For each mask, in order, the most probable tokens with their probabilities, best first. The model does
            not see masks beyond its max_seq_len tokens; they are left out.
    """

    text: str
    fills: list[list[tuple[str, float]]]


class Fill(TypedDict):
    """A token in place of a mask.

    Attributes:
        token: The token.
        probability: Its probability.
    """

    token: str
    probability: float


class Prediction(TypedDict):
    """The class of one input.

    Attributes:
        label: Name of the most probable class.
        probability: Its probability.
        probabilities: Probability of every class by name.
    """

    label: str
    probability: float
    probabilities: dict[str, float]


def encode(tokenizer: Tokenizer, texts: Sequence[str], max_seq_len: int) -> tuple[Tensor, Tensor]:
    """Turn texts into padded token ids.

    Args:
        tokenizer: Tokenizer with the usual special tokens that neither pads nor cuts.
        texts: B texts, 1 or more; one without tokens becomes one [UNK].
        max_seq_len: Tokens per text at most; what is longer is cut.

    Returns:
        Token ids (B, M) and the pad mask (B, M), True where there is padding.
    """
    rows = [torch.tensor(ids or [_UNK_ID]) for ids in first_token_ids(tokenizer, texts, max_seq_len)]
    ids = pad_sequence(rows, batch_first=True)
    lengths = torch.tensor([len(row) for row in rows])
    return ids, torch.arange(ids.shape[1]) >= lengths[:, None]


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Run a model without dropout and gradients; afterwards each of its modules is in the mode it was in."""
    in_training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module in in_training:
            module.training = True


def fill_masks(model: PerceiverMLM, tokenizer: Tokenizer, texts: Sequence[str], k: int = 5) -> list[Fills]:
    """Fill the masks of texts, decoding the masked positions alone.

    Args:
        model: Masked language model; left in the mode (training or evaluation) it was in.
        tokenizer: Its tokenizer.
        texts: Texts with any number of [MASK].
        k: Fills per mask, 1 or more; tokens that the tokenizer lacks are none.

    Raises:
        UserError: If k is below 1.
    """
    if k < 1:
        raise UserError(f"k is {k}, but must be 1 or more")
    if not texts:
        return []
    max_seq_len, _ = model.decoder.output_adapter.output_shape
    ids, pad_mask = encode(tokenizer, texts, max_seq_len)
    is_mask = ids == _MASK_ID
    device = _device(model)
    labels = ids.masked_fill(~is_mask, IGNORED_LABEL)
    with evaluating(model):
        logits, _ = model.masked_logits(ids.to(device), labels.to(device), pad_mask.to(device))  # (T, vocab_size)
    probabilities = logits[:, : vocab_size_of(tokenizer)].float().softmax(dim=-1)
    best = probabilities.topk(min(k, probabilities.shape[1]))
    rows = iter(zip(best.indices.tolist(), best.values.tolist(), strict=True))
    num_masks = is_mask.sum(dim=1).tolist()
    return [
        {"text": text, "fills": [_named(tokenizer, *next(rows)) for _ in range(count)]}
        for text, count in zip(texts, num_masks, strict=True)
    ]


def _named(tokenizer: Tokenizer, ids: list[int], probabilities: list[float]) -> list[tuple[str, float]]:
    return [(tokenizer.id_to_token(id_) or UNK_TOKEN, p) for id_, p in zip(ids, probabilities, strict=True)]


def named_fills(found: Fills, k: int | None = None) -> list[list[Fill]]:
    """Return the fills of a text as records: for each mask, in order, the k most probable tokens (none: all found)."""
    return [[Fill(token=token, probability=p) for token, p in tokens[:k]] for tokens in found["fills"]]


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


class Predictor:
    """A loaded model, ready to fill masks or to classify.

    It computes where `model` is; `predictor.model.to("cuda")` takes it to a GPU.

    Args:
        model: The network.
        config: What it was built from.
        tokenizer: Tokenizer of its texts; None for images.
        batch_size: Inputs per forward pass.

    Raises:
        UserError: If the batch size is below 1.
    """

    def __init__(
        self,
        model: PerceiverIO | PerceiverMLM,
        config: ModelConfig,
        tokenizer: Tokenizer | None = None,
        batch_size: int = 32,
    ) -> None:
        if batch_size < 1:
            raise UserError(f"batch_size is {batch_size}, but must be 1 or more")
        self.model = model
        self.config = config
        self.tokenizer = tokenizer
        self.batch_size = batch_size

    def fill(self, texts: Sequence[str], k: int = 5) -> list[Fills]:
        """Return the k most probable tokens for each [MASK] of each text.

        Args:
            texts: Texts; a mask beyond the model's max_seq_len tokens is not filled.
            k: Fills per mask.

        Raises:
            UserError: If the model is not a masked language model, or the texts are not texts.
        """
        if not isinstance(self.model, PerceiverMLM):
            raise UserError("this model doesn't fill masks: load the model/ folder of an mlm stage")
        model, tokenizer = self.model, self._tokenizer()
        return self._in_batches(_checked_texts(texts), lambda batch: fill_masks(model, tokenizer, batch, k))

    def classify(self, inputs: Sequence[Any] | np.ndarray, resize: bool = True) -> list[Prediction]:
        """Return the class of each text, or of each image.

        Args:
            inputs: Texts; image files, by path or as their bytes; or images (B, height, width, channels) with the
                values that the model was trained on.
            resize: Whether image files of another size are resized, or refused.

        Raises:
            UserError: If the model is not a classifier, or the inputs are not of its kind.
        """
        config = self.config
        if not isinstance(config, TextClassifierConfig | ImageClassifierConfig):
            raise UserError("this model doesn't classify: load the model/ folder of a classifier stage")
        if isinstance(config, TextClassifierConfig):
            inputs = _checked_texts(inputs)
        elif isinstance(inputs, str | bytes | PathLike):
            raise UserError("the inputs are one image file: give a list of them")
        rows = self._in_batches(inputs, lambda batch: self._probabilities(batch, resize))
        return [_prediction(config.class_names, row) for row in rows]

    def _in_batches(self, inputs: Sequence[Any] | np.ndarray, predict: Callable[[list[Any]], list[T]]) -> list[T]:
        """Predict for batches of inputs; of texts those of like length go together, so that there is little padding."""
        lengths = [len(x) if isinstance(x, str) else 0 for x in inputs]
        order = np.argsort(lengths, kind="stable").tolist()
        results: dict[int, T] = {}
        for start in range(0, len(order), self.batch_size):
            places = order[start : start + self.batch_size]
            results |= zip(places, predict([inputs[place] for place in places]), strict=True)
        return [results[place] for place in range(len(inputs))]

    def _probabilities(self, inputs: Sequence[Any], resize: bool) -> list[list[float]]:
        arguments = self._arguments(inputs, resize)
        with evaluating(self.model):
            probabilities: list[list[float]] = self.model(*arguments).float().softmax(dim=-1).tolist()
        return probabilities

    def _arguments(self, inputs: Sequence[Any], resize: bool) -> tuple[Tensor, ...]:
        """Turn a batch of inputs into what the classifier is called with."""
        if isinstance(self.config, ImageClassifierConfig):
            if all(isinstance(source, str | bytes | PathLike) for source in inputs):
                inputs = list(read_images(inputs, self.config, resize))
            arguments: tuple[Tensor, ...] = (_checked_images(inputs, self.config.image_shape),)
        else:
            arguments = encode(self._tokenizer(), list(inputs), self.config.max_seq_len)
        return tuple(argument.to(_device(self.model)) for argument in arguments)

    def _tokenizer(self) -> Tokenizer:
        if self.tokenizer is None:
            raise UserError("this model has no tokenizer: save it again, with its tokenizer")
        return self.tokenizer


def _checked_texts(texts: Sequence[str] | np.ndarray) -> list[str]:
    if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
        raise UserError("the inputs are not texts: give a list of strings")
    broken = next((number for number, text in enumerate(texts, 1) if has_half_character(text)), None)
    if broken is not None:
        raise UserError(f"text {broken} has half a character (a lone surrogate): mend or leave it out")
    return list(texts)


def _checked_images(images: Sequence[Any], image_shape: tuple[int, int, int]) -> Tensor:
    try:
        array = np.asarray(images, dtype=np.float32)
    except ValueError as error:
        raise UserError("the inputs are not images: give an array (B, height, width, channels)") from error
    if array.shape[1:] != image_shape:
        raise UserError(f"images have the shape {array.shape[1:]}, but must have {image_shape}")
    return torch.from_numpy(array)


def _prediction(class_names: Sequence[str], probabilities: list[float]) -> Prediction:
    best = int(np.argmax(probabilities))
    by_name = dict(zip(class_names, probabilities, strict=True))
    return {"label": class_names[best], "probability": probabilities[best], "probabilities": by_name}


def load(folder: str | Path, batch_size: int = 32) -> Predictor:
    """Load a model for use.

    Args:
        folder: A model/ folder, or the folder of a stage or of a run, whose last stage counts.
        batch_size: Inputs per forward pass.

    Raises:
        UserError: If the folder holds no model or its files are damaged.
    """
    return Predictor(*load_model(folder), batch_size=batch_size)
