"""What the server is asked: good questions are understood, all others are refused with a reason."""

from __future__ import annotations

import base64
import io
import json
from typing import Any

import numpy as np
import PIL.Image
import pytest

from perceiver.config import ImageClassifierConfig
from perceiver.pictures import model_inputs
from pipelines.models.messages import RefusedError, read_request
from tests.pipelines.models.kinds import CONFIGS, IMAGE, IMAGE_SHAPE, MLM, TEXT

PIXELS = np.arange(64, dtype=np.uint8).reshape(8, 8)


def picture(pixels: np.ndarray = PIXELS, kind: str = "PNG") -> str:
    content = io.BytesIO()
    PIL.Image.fromarray(pixels).save(content, kind)
    return base64.b64encode(content.getvalue()).decode()


def ask(kind: str, question: Any, max_inputs: int = 4) -> Any:
    body = question if isinstance(question, bytes) else json.dumps(question).encode()
    return read_request(body, CONFIGS[kind], max_inputs)


def test_texts_and_the_number_of_fills_are_read() -> None:
    assert ask(TEXT, {"texts": ["a", ""]}) == (["a", ""], 0)
    assert ask(MLM, {"texts": ["a [MASK]"]}) == (["a [MASK]"], 5)
    assert ask(MLM, {"texts": ["a [MASK]"], "top_k": 2}) == (["a [MASK]"], 2)


def test_a_picture_and_its_pixel_values_are_the_same_image() -> None:
    rows, channels = PIXELS.tolist(), PIXELS[:, :, None].tolist()
    colour = np.repeat(PIXELS[:, :, None], 3, axis=2)
    images, _ = ask(IMAGE, {"images": [picture(), rows, channels, picture(colour)]})
    assert [image.shape for image in images] == [IMAGE_SHAPE] * 4
    assert all((image == images[0]).all() for image in images)


@pytest.mark.parametrize(("normalize", "low"), [(True, -1.0), (False, 0.0)])
def test_pixel_values_get_the_range_that_the_model_was_trained_on(normalize: bool, low: float) -> None:
    pixels = np.array([0, 255], dtype=np.float32).reshape(1, 2, 1)
    inputs = model_inputs([pixels], ImageClassifierConfig(normalize=normalize))
    assert inputs.tolist() == [[[[low], [1.0]]]]


@pytest.mark.parametrize(
    ("kind", "question", "status", "reason"),
    [
        (TEXT, b"", 400, "Invalid JSON"),
        (TEXT, b'{"texts": ["a"', 400, "Invalid JSON"),
        (TEXT, b"\xff\xfe", 400, "Invalid JSON"),
        (TEXT, b'{"texts": ["\\ud800"]}', 400, "Invalid JSON"),
        (TEXT, b"[" * 100_000, 400, "recursion limit"),
        (TEXT, [1], 422, "object"),
        (TEXT, {}, 422, "texts: Field required"),
        (TEXT, {"texts": []}, 422, "texts: there are none, but 1 or more are needed"),
        (TEXT, {"texts": "a"}, 422, "texts: Input should be a valid array"),
        (TEXT, {"texts": ["a", float("nan")]}, 422, "texts.1"),
        (TEXT, {"texts": ["a"] * 5}, 422, "5 inputs, but at most 4"),
        (TEXT, {"texts": ["a"], "top_k": 1}, 422, "top_k: Extra"),
        (TEXT, {"images": [picture()]}, 422, "texts"),
        (MLM, {"texts": ["a"], "top_k": 0}, 422, "top_k"),
        (MLM, {"texts": ["a"], "top_k": True}, 422, "top_k"),
        (IMAGE, {"images": ["!"]}, 422, "images.0: it is not base64"),
        (IMAGE, {"images": [picture(), "AAAA"]}, 422, "images.1: it can't be read as PNG or JPEG"),
        (IMAGE, {"images": [picture()[:60]]}, 422, "images.0"),
        (IMAGE, {"images": [picture(kind="GIF")]}, 422, "PNG or JPEG"),
        (IMAGE, {"images": [picture(np.zeros((9, 8), np.uint8))]}, 422, "it is 9 x 8 pixels, but must be 8 x 8"),
        (IMAGE, {"images": [[[1, 2], [3, 4]]]}, 422, "it has the shape"),
        (IMAGE, {"images": [[[1, 2], [3]]]}, 422, "not an array of numbers"),
        (IMAGE, {"images": [[[256] * 8] * 8]}, 422, "not from 0 to 255"),
        (IMAGE, {"images": [[[float("nan")] * 8] * 8]}, 422, "finite"),
        (IMAGE, {"images": [[[True] * 8] * 8]}, 422, "valid number"),
        (IMAGE, {"images": [None]}, 422, "images.0"),
    ],
)
def test_what_cannot_be_answered_is_refused_with_a_reason(kind: str, question: Any, status: int, reason: str) -> None:
    with pytest.raises(RefusedError) as refusal:
        ask(kind, question)
    assert refusal.value.status == status
    assert reason in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert len(str(refusal.value)) <= 320
