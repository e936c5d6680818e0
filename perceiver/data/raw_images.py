"""A data set of images as its source has it: labels at once, and pixels when asked for."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import PIL.Image

from perceiver.errors import UserError, one_line

IntArray = npt.NDArray[np.int64]
Pixels = npt.NDArray[np.uint8]

GREY_MODES = {"1", "L", "LA"}
DEEP_MODES = {"I", "I;16", "I;16B", "I;16L", "F"}


@dataclass(frozen=True)
class RawSplit:
    """A split as its source has it."""

    labels: IntArray
    """Class of each image (n,)."""
    read: Callable[[IntArray], Iterator[Pixels]]
    """Yields the pixels (H, W, C) of each of the given rows."""
    describe: Callable[[int], str]
    """Says for an error message where a row comes from."""


@dataclass(frozen=True)
class RawImages:
    """A data set as its source has it."""

    class_names: tuple[str, ...]
    """Name of each class, in the order of the labels 0, 1, ..."""
    train: RawSplit
    test: RawSplit | None
    """None where the source has no test split of its own."""


@dataclass(frozen=True)
class RawSource:
    """A data set that was found, but not read yet."""

    fingerprint: str
    """Changes when the content changes."""
    load: Callable[[], RawImages]


def split_of_array(images: Pixels, labels: IntArray, name: str) -> RawSplit:
    """Make a split of images that are in memory.

    Args:
        images: Pixel values (n, H, W).
        labels: Class of each image (n,).
        name: What to call the images in an error message.
    """
    return RawSplit(
        labels=labels,
        read=lambda rows: (images[row, :, :, None] for row in rows),
        describe=lambda row: f"image {row} of {name}",
    )


def decode_image(content: bytes | Path, description: str) -> Pixels:
    """Decode an image file to grey (H, W, 1) or colour (H, W, 3).

    Args:
        content: The file or its content.
        description: What to call the image in an error message.

    Raises:
        UserError: It is not an image, is damaged, or has more than 8 bits per channel.
    """
    try:
        with PIL.Image.open(io.BytesIO(content) if isinstance(content, bytes) else content) as image:
            if image.mode in DEEP_MODES:
                raise UserError(f"{description} has more than 8 bits per channel: save it with 8 bits")
            mode = "L" if image.mode in GREY_MODES else "RGB"
            pixels = np.asarray(image.convert(mode))
    # Pillow reports some damaged files as a SyntaxError
    except (OSError, SyntaxError, ValueError, PIL.Image.DecompressionBombError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{description} cannot be read as an image ({one_line(error)}): mend or remove it") from None
    return pixels.reshape(*pixels.shape[:2], -1)
