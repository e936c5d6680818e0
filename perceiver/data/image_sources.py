"""Finds the images that a configuration names, whatever form they have."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from perceiver.config import ImageDataConfig
from perceiver.data.fingerprint import fingerprint_of
from perceiver.data.idx import find_idx_images
from perceiver.data.image_folders import find_class_folders
from perceiver.data.image_tables import find_tables
from perceiver.data.raw_images import RawImages, RawSource, split_of_array
from perceiver.errors import UserError
from perceiver.random import Stream, permutation

DIGITS = "digits"
NUM_TEST_DIGITS = 360


def find_images(config: ImageDataConfig) -> RawSource:
    """Find the images that a configuration names.

    Args:
        config: Path, and names of the columns where the images are in tables.

    Raises:
        UserError: They are not there, or not in a form that can be read.
    """
    if config.path == DIGITS:
        return RawSource(fingerprint_of("digits"), _load_digits)
    folder = Path(config.path).expanduser()
    if folder.is_file():
        raise UserError(f"{config.path} is a file: give a folder of class folders, of idx files or in the hub's layout")
    return find_idx_images(folder) or find_class_folders(folder) or find_tables(config)


def _load_digits() -> RawImages:
    """Load the 1,797 images (8, 8) of scikit-learn's digits, a fifth of them for test."""
    from sklearn.datasets import load_digits  # scikit-learn takes a second to import

    digits = load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)
    labels = digits.target.astype(np.int64)
    order = permutation((0, Stream.TEST_SPLIT), len(labels))
    test, train = np.sort(order[:NUM_TEST_DIGITS]), np.sort(order[NUM_TEST_DIGITS:])
    return RawImages(
        class_names=tuple(str(name) for name in digits.target_names),
        train=split_of_array(images[train], labels[train], "digits"),
        test=split_of_array(images[test], labels[test], "digits"),
    )
