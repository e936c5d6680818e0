"""From image files to what an image classifier was trained on: its size, its channels, its range of values."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import PIL.Image

from perceiver.config import ImageClassifierConfig
from perceiver.data.raw_images import Pixels, decode_image
from perceiver.errors import UserError
from perceiver.pictures import model_inputs

_logger = logging.getLogger(__name__)
_MODES = {1: "L", 3: "RGB"}  # of Pillow, by number of channels

ImageFile = str | os.PathLike[str] | bytes
"""The path of an image file, or its content."""


def read_images(
    sources: Sequence[ImageFile], config: ImageClassifierConfig, resize: bool = True
) -> npt.NDArray[np.float32]:
    """Read image files as a classifier wants them; grey becomes colour, or colour grey, as it needs.

    Args:
        sources: B image files.
        config: The classifier.
        resize: Whether images of another size are stretched to the right one, or refused.

    Returns:
        Pixel values (B, H, W, C) in the range that the classifier was trained on.

    Raises:
        UserError: If a file is no image, is damaged, has more than 8 bits per channel, or has another size although
            resize is false.
    """
    if config.image_shape[2] not in _MODES:
        raise UserError(f"the model sees {config.image_shape[2]} channels, which image files don't have: give arrays")
    images = [_read(source, f"image {place + 1}", config, resize) for place, source in enumerate(sources)]
    return model_inputs(images, config)


def _read(source: ImageFile, name: str, config: ImageClassifierConfig, resize: bool) -> Pixels:
    """Read one image (H, W, C)."""
    description = name if isinstance(source, bytes) else os.fspath(source)
    pixels = decode_image(source if isinstance(source, bytes) else Path(source), description)
    image = PIL.Image.fromarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels)
    image = image.convert(_MODES[config.image_shape[2]])
    height, width, _ = config.image_shape
    top, left = config.margin[0] // 2, config.margin[1] // 2
    whole = (width + config.margin[1], height + config.margin[0])
    if image.size == (width, height):
        top = left = 0
    elif image.size != whole:
        if not resize:
            raise UserError(
                f"{description} is {image.height} x {image.width} pixels, but the model was trained on "
                f"{whole[1]} x {whole[0]}: resize it, or let it be resized"
            )
        _logger.info(
            "images of another size are resized to %d x %d pixels, which the model was trained on", *reversed(whole)
        )
        image = image.resize(whole, PIL.Image.Resampling.BILINEAR)
    return np.asarray(image).reshape(image.height, image.width, -1)[top : top + height, left : left + width]
