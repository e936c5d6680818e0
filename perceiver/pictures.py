"""Picture files, and arrays of pixel values, as inputs of an image classifier."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from perceiver.config import ImageClassifierConfig
from perceiver.data.raw_images import DEEP_MODES
from perceiver.errors import UserError

_MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # of Pillow, by number of channels
_FORMATS = ("PNG", "JPEG")

Pixels = npt.NDArray[np.float32]


def read_picture(content: bytes, image_shape: tuple[int, int, int], margin: tuple[int, int] = (0, 0)) -> Pixels:
    """Decode a PNG or JPEG file.

    Args:
        content: Content of the file.
        image_shape: Height, width and channels (1, 3 or 4) of what is wanted; grey and colour are converted.
        margin: Height and width in pixels by which a picture may be larger on the whole; its centre is taken then.

    Returns:
        Pixel values (H, W, C) from 0 to 255.

    Raises:
        UserError: If it is no such file, is damaged, has more than 8 bits per channel, or has another size.
    """
    import PIL.Image

    height, width, channels = image_shape
    if channels not in _MODES:
        raise UserError(f"no picture file has {channels} channels: give an array ({height}, {width}, {channels})")
    try:
        with PIL.Image.open(io.BytesIO(content), formats=_FORMATS) as picture:
            top, left = _corner((picture.height, picture.width), (height, width), margin)
            if picture.mode in DEEP_MODES:
                raise UserError("it has more than 8 bits per channel: save it with 8 bits")
            pixels = np.asarray(picture.convert(_MODES[channels]), dtype=np.float32)
    except UserError:
        raise
    except Exception as error:  # Pillow's decoders raise all kinds
        raise UserError(f"it can't be read as PNG or JPEG ({type(error).__name__}): mend the file") from None
    return pixels[top : top + height, left : left + width].reshape(image_shape)


def _corner(size: tuple[int, int], wanted: tuple[int, int], margin: tuple[int, int]) -> tuple[int, int]:
    """Return where, in a picture that is not decoded yet, what is wanted begins.

    Raises:
        UserError: If it has another size.
    """
    whole = (wanted[0] + margin[0], wanted[1] + margin[1])
    if size == wanted:
        return 0, 0
    if size == whole:
        return margin[0] // 2, margin[1] // 2
    sizes = " or ".join(f"{height} x {width}" for height, width in dict.fromkeys([whole, wanted]))
    raise UserError(f"it is {size[0]} x {size[1]} pixels, but must be {sizes}")


def check_pixels(values: object, image_shape: tuple[int, int, int]) -> Pixels:
    """Turn nested lists into pixel values.

    Args:
        values: Numbers from 0 to 255, nested as (H, W, C); of grey images (H, W) will do.
        image_shape: Height, width and channels of what is wanted.

    Raises:
        UserError: If the shape or a value is wrong.
    """
    try:
        pixels = np.asarray(values, dtype=np.float32)
    except (ValueError, TypeError, OverflowError):
        raise UserError(f"it is not an array of numbers of the shape {image_shape}") from None
    if pixels.shape != image_shape and (*pixels.shape, 1) != image_shape:
        raise UserError(f"it has the shape {pixels.shape}, but must have {image_shape}")
    if not ((pixels >= 0) & (pixels <= 255)).all():  # NaN is neither
        raise UserError("it has values that are not from 0 to 255")
    return pixels.reshape(image_shape)


def model_inputs(pixels: Sequence[npt.NDArray[Any]], config: ImageClassifierConfig) -> Pixels:
    """Return images (B, H, W, C) in the range of values that a model was trained on.

    Args:
        pixels: B images (H, W, C) with values from 0 to 255.
        config: The model's configuration.
    """
    scaled: Pixels = np.stack(pixels).astype(np.float32) / np.float32(255)
    return scaled * 2 - 1 if config.normalize else scaled
