"""Images in folders that are named after their classes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from perceiver.data.fingerprint import fingerprint_files
from perceiver.data.raw_images import RawImages, RawSource, RawSplit, decode_image
from perceiver.errors import UserError

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".pgm", ".ppm"}
SPLIT_NAMES = {"train", "test", "validation", "valid", "val", "dev"}

ClassFolders = dict[str, list[Path]]
"""Image files of each class."""


def find_class_folders(folder: Path) -> RawSource | None:
    """Find images in class folders: train/CLASS/* and test/CLASS/*, or CLASS/* alone.

    Args:
        folder: Folder of the data set.

    Returns:
        The images; none where there are no such folders.
    """
    train, test = _list_classes(folder / "train"), _list_classes(folder / "test")
    if not train:
        train, test = _list_classes(folder), {}
    if set(train) <= SPLIT_NAMES:  # no class folders at all, or a table of images with a folder for each split
        return None
    files = [path for classes in (train, test) for paths in classes.values() for path in paths]
    return RawSource(fingerprint_files(files), lambda: _load(folder, train, test))


def _list_classes(folder: Path) -> ClassFolders:
    if not folder.is_dir():
        return {}
    classes = {path.name: _list_images(path) for path in _visible(folder) if path.is_dir()}
    return {name: files for name, files in classes.items() if files}


def _list_images(folder: Path) -> list[Path]:
    return [path for path in _visible(folder) if path.suffix.lower() in IMAGE_SUFFIXES]


def _visible(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _load(folder: Path, train: ClassFolders, test: ClassFolders) -> RawImages:
    class_names = tuple(train)
    unknown = sorted(set(test) - set(train))
    if unknown:
        raise UserError(f"{folder / 'test' / unknown[0]} is a class without images in {folder / 'train'}: add some")
    return RawImages(class_names, _split(train, class_names), _split(test, class_names) if test else None)


def _split(classes: ClassFolders, class_names: Sequence[str]) -> RawSplit:
    files = [path for paths in classes.values() for path in paths]
    labels = [class_names.index(name) for name, paths in classes.items() for _ in paths]
    return RawSplit(
        labels=np.array(labels, dtype=np.int64),
        read=lambda rows: (decode_image(files[row], str(files[row])) for row in rows),
        describe=lambda row: str(files[row]),
    )
