"""What the server is asked and what it answers, and how a request is checked.

A request that can't be answered raises a RefusedError with a status from 400 to 499.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError

from perceiver.config import ImageClassifierConfig, MaskedLanguageModelConfig, ModelConfig
from perceiver.errors import UserError
from perceiver.pictures import Pixels, check_pixels, read_picture

T = TypeVar("T")

_LONGEST_REASON = 300
_FILE, _PIXELS = "file", "pixels"
Many = Annotated[list[T], Field(fail_fast=True)]  # one mistake will do, where there may be a million


def _kind_of_image(value: Any) -> str:
    return _FILE if isinstance(value, str) else _PIXELS


Image = Annotated[
    Annotated[str, Tag(_FILE)] | Annotated[Many[Many[float | Many[float]]], Tag(_PIXELS)],
    Discriminator(_kind_of_image),
]


class RefusedError(Exception):
    """A request that can't be answered.

    Attributes:
        status: HTTP status.
    """

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class _Message(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)


class TextsRequest(_Message):
    """Texts to classify."""

    texts: Many[str] = Field(min_length=1)
    """Texts; what is longer than the model's max_seq_len tokens is cut."""


class FillsRequest(TextsRequest):
    """Texts whose [MASK]s are to be filled."""

    top_k: int = Field(default=5, ge=1, le=100)
    """Fills for each mask."""


class ImagesRequest(_Message):
    """Images to classify."""

    images: Many[Image] = Field(min_length=1)
    """PNG or JPEG files in base64; or values from 0 to 255, nested as height, width and channels."""


class ClassPrediction(_Message):
    """The class of an input."""

    label: str
    """The most probable class."""
    probability: float
    """Its probability."""
    probabilities: dict[str, float]
    """Probability of every class by name."""


class Fill(_Message):
    """A token in place of a mask."""

    token: str
    """The token."""
    probability: float
    """Its probability."""


class FillsPrediction(_Message):
    """What the model would write in place of a text's masks."""

    text: str
    """The text."""
    fills: list[list[Fill]]
    """For each mask that the model sees the most probable tokens, best first."""


class PredictResponse(_Message):
    """One prediction per input, in order."""

    predictions: list[ClassPrediction] | list[FillsPrediction]
    """Predictions."""


class ErrorResponse(_Message):
    """Why a request was refused."""

    error: str
    """What is wrong."""


class Health(_Message):
    """That the server can answer."""

    status: Literal["ok"] = "ok"
    """Always ok."""


class Info(_Message):
    """What is served."""

    model: str
    """Where the model is from."""
    task: str
    """What it does."""
    classes: list[str] | None
    """Names of its classes."""
    image_shape: list[int] | None
    """Height, width and channels of an image."""
    max_seq_len: int | None
    """Tokens that it sees of a text at most."""
    max_inputs: int
    """Inputs in a request at most."""
    max_bytes: int
    """Bytes of a request at most."""


PredictRequest = FillsRequest | ImagesRequest | TextsRequest


def request_type(config: ModelConfig) -> type[PredictRequest]:
    """Return what a model is asked."""
    if isinstance(config, ImageClassifierConfig):
        return ImagesRequest
    return FillsRequest if isinstance(config, MaskedLanguageModelConfig) else TextsRequest


def read_request(body: bytes, config: ModelConfig, max_inputs: int) -> tuple[Sequence[str | Pixels], int]:
    """Check a request.

    Args:
        body: Its body.
        config: Configuration of the model that is asked.
        max_inputs: Inputs that it may have.

    Returns:
        The inputs, texts or pixel values (H, W, C), and the fills that are wanted for each mask.

    Raises:
        RefusedError: If it can't be answered.
    """
    kind = request_type(config)
    try:
        request = kind.model_validate_json(body)
    except ValidationError as error:
        raise RefusedError(400 if _is_no_json(error) else 422, _reason(error)) from None
    inputs = request.images if isinstance(request, ImagesRequest) else request.texts
    if len(inputs) > max_inputs:
        raise RefusedError(422, f"there are {len(inputs)} inputs, but at most {max_inputs} are taken at once")
    if isinstance(request, ImagesRequest):
        assert isinstance(config, ImageClassifierConfig), "the model has chosen the request"
        return [_pixels(number, image, config) for number, image in enumerate(request.images)], 0
    return request.texts, request.top_k if isinstance(request, FillsRequest) else 0


def _pixels(number: int, image: Any, config: ImageClassifierConfig) -> Pixels:
    try:
        if isinstance(image, str):
            return read_picture(base64.b64decode(image, validate=True), config.image_shape, config.margin)
        return check_pixels(image, config.image_shape)
    except UserError as error:
        raise RefusedError(422, f"images.{number}: {error}") from None
    except (binascii.Error, ValueError):
        raise RefusedError(422, f"images.{number}: it is not base64") from None


def _is_no_json(error: ValidationError) -> bool:
    return any(part["type"] == "json_invalid" for part in error.errors(include_input=False, include_url=False))


def _reason(error: ValidationError) -> str:
    """Say what is wrong first, without quoting the request."""
    parts = error.errors(include_input=False, include_url=False, include_context=False)
    first = parts[0]
    hidden = ("list[", "float", "fail-fast", _FILE, _PIXELS)
    place = ".".join(str(name) for name in first["loc"] if not str(name).startswith(hidden))
    message = "there are none, but 1 or more are needed" if first["type"] == "too_short" else first["msg"]
    reason = f"{place}: {message}" if place else message
    return reason[:_LONGEST_REASON]
