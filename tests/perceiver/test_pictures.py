"""The pictures that servers are sent are read like the image files that a classifier was trained on."""

from __future__ import annotations

import io

import numpy as np
import PIL.Image
import pytest

from perceiver.config import EncoderConfig, ImageClassifierConfig
from perceiver.errors import UserError
from perceiver.image_files import read_images
from perceiver.pictures import model_inputs, read_picture

SIZES = {"the size that the model sees": (6, 4), "with the margin that cropping takes away": (9, 6)}
MARGIN = (3, 2)


def png(pixels: np.ndarray, mode: str | None = None) -> bytes:
    image = PIL.Image.fromarray(pixels)
    content = io.BytesIO()
    (image if mode is None else image.convert(mode)).save(content, "PNG")
    return content.getvalue()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA", "P"])
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_a_picture_becomes_what_a_file_becomes(size: tuple[int, int], mode: str, channels: int) -> None:
    config = ImageClassifierConfig(
        EncoderConfig(2, 8, 1, 1, 1, 1), image_shape=(6, 4, channels), num_frequency_bands=2, margin=MARGIN
    )
    content = png(np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8), mode)
    found = model_inputs([read_picture(content, config.image_shape, config.margin)], config)
    np.testing.assert_array_equal(found, read_images([content], config))


def test_more_than_8_bits_are_refused_as_in_training() -> None:
    with pytest.raises(UserError, match="more than 8 bits per channel"):
        read_picture(png(np.full((6, 4), 300, np.uint16)), (6, 4, 1))


@pytest.mark.parametrize(("margin", "sizes"), [((0, 0), "6 x 4"), (MARGIN, "9 x 6 or 6 x 4")])
def test_another_size_is_refused(margin: tuple[int, int], sizes: str) -> None:
    with pytest.raises(UserError, match=f"it is 7 x 7 pixels, but must be {sizes}$"):
        read_picture(png(np.zeros((7, 7), np.uint8)), (6, 4, 1), margin)
