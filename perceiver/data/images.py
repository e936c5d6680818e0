"""Decoded images and their labels, in fixed splits."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from perceiver.config import ImageDataConfig
from perceiver.data.cache import cached_folder, new_array
from perceiver.data.fingerprint import fingerprint_of
from perceiver.data.image_sources import find_images
from perceiver.data.raw_images import IntArray, RawImages, RawSplit
from perceiver.errors import UserError
from perceiver.random import Stream, permutation

_SPLIT_SEED = 0  # splits are the same whatever the seed of a run
_FORMAT = "images 1"  # of the cache
_CLASSES_FILE = "classes.json"

Selection = tuple[RawSplit, IntArray]
"""Rows of a source that make up a split."""


@dataclass(frozen=True)
class ImageSplit:
    """Images and labels of one split."""

    images: npt.NDArray[np.uint8]
    """Pixel values (n, H, W, C), mapped from a file."""
    labels: IntArray
    """Class of each image (n,)."""

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class ImageData:
    """A data set of images that is ready for use."""

    class_names: tuple[str, ...]
    """Name of each class, in the order of the labels 0, 1, ..."""
    image_shape: tuple[int, int, int]
    """Height, width and channels of an image."""
    input_shape: tuple[int, int, int]
    """Height, width and channels of what a model sees: the image after cropping."""
    fingerprint: str
    """Changes when an image or a label of a split changes."""
    train: ImageSplit
    validation: ImageSplit
    test: ImageSplit


def prepare_images(config: ImageDataConfig) -> ImageData:
    """Find, check, split and decode images; decoded ones are kept below config.cache_dir.

    Args:
        config: Where the images are, and how to use them.

    Raises:
        UserError: The images are not there or cannot be used; the message names the cause.
    """
    source = find_images(config)
    fingerprint = fingerprint_of(_FORMAT, source.fingerprint, config.validation, str(config.limit))
    folder = cached_folder(config.cache_dir, f"images-{fingerprint}", lambda new: _decode(source.load(), config, new))
    train, test = _open_split(folder, "train"), _open_split(folder, "test")
    validation = test if config.validation == "test" else _open_split(folder, "validation")
    height, width, channels = train.images.shape[1:]
    side = config.random_crop
    if side is not None and side > min(height, width):
        raise UserError(f"random_crop is {side}, but the images of {config.path} are {height} x {width}: crop less")
    return ImageData(
        class_names=tuple(json.loads((folder / _CLASSES_FILE).read_text())),
        image_shape=(height, width, channels),
        input_shape=(side or height, side or width, channels),
        fingerprint=fingerprint,
        train=train,
        validation=validation,
        test=test,
    )


def _open_split(folder: Path, name: str) -> ImageSplit:
    return ImageSplit(np.load(folder / f"{name}.images.npy", mmap_mode="r"), np.load(folder / f"{name}.labels.npy"))


def _decode(raw: RawImages, config: ImageDataConfig, folder: Path) -> None:
    """Write images and labels of each split, and the names of the classes, into a folder."""
    _check(raw, config.path)
    selections = _select(raw, config)
    first_split, first_rows = selections["train"]
    first = next(first_split.read(first_rows[:1]))
    for name, (split, rows) in selections.items():
        shape = (len(rows), *first.shape)
        images = new_array(folder / f"{name}.images.npy", np.uint8, shape)
        for place, (row, pixels) in enumerate(zip(rows.tolist(), split.read(rows), strict=True)):
            if pixels.shape != first.shape:
                other = first_split.describe(first_rows[0])
                raise UserError(
                    f"{split.describe(row)} has the size {_size(pixels)}, but {other} has {_size(first)} "
                    "(height x width x channels): make all images alike in size and colour"
                )
            images[place] = pixels
        images.flush()
        np.save(folder / f"{name}.labels.npy", split.labels[rows])
    (folder / _CLASSES_FILE).write_text(json.dumps(raw.class_names))


def _size(pixels: npt.NDArray[Any]) -> str:
    return " x ".join(map(str, pixels.shape))


def _check(raw: RawImages, path: str) -> None:
    if len(raw.class_names) < 2:
        raise UserError(f"{path} has {len(raw.class_names)} class, but a classifier needs 2 or more: add images")
    for name, split in (("train", raw.train), ("test", raw.test)):
        if split is not None and len(split.labels) == 0:
            raise UserError(f"{path}, split {name} is empty: add images")
    known = np.unique(raw.train.labels)
    if raw.test is None:
        return
    unknown = np.flatnonzero(~np.isin(raw.test.labels, known))
    if len(unknown) > 0:
        where, label = raw.test.describe(unknown[0]), raw.test.labels[unknown[0]]
        name = raw.class_names[label] if label < len(raw.class_names) else str(label)
        raise UserError(f"{where} has the label {name}, which no training image of {path} has: mend the labels")


def _select(raw: RawImages, config: ImageDataConfig) -> dict[str, Selection]:
    """Choose the rows of each split that is read from a source."""
    train = np.arange(len(raw.train.labels))
    if raw.test is None:
        train, held_out = _hold_out_tenth(train, Stream.TEST_SPLIT, config.path)
        test = (raw.train, held_out)
    else:
        test = (raw.test, np.arange(len(raw.test.labels)))
    selections = {"test": test}
    if config.validation == "tenth":
        train, held_out = _hold_out_tenth(train, Stream.VALIDATION_SPLIT, config.path)
        selections["validation"] = (raw.train, held_out)
    selections["train"] = (raw.train, train)
    return {name: (split, _limited(rows, config.limit)) for name, (split, rows) in selections.items()}


def _hold_out_tenth(rows: IntArray, stream: Stream, path: str) -> tuple[IntArray, IntArray]:
    if len(rows) < 2:
        raise UserError(f"{path} has too few training images to hold out a tenth of them: add images")
    order = permutation((_SPLIT_SEED, stream), len(rows))
    size = max(1, len(rows) // 10)
    return rows[np.sort(order[size:])], rows[np.sort(order[:size])]


def _limited(rows: IntArray, limit: int | None) -> IntArray:
    if limit is None:
        return rows
    return rows[np.sort(permutation((_SPLIT_SEED, Stream.LIMIT), len(rows))[:limit])]
