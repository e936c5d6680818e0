"""Images in idx files, the format of the original MNIST."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import numpy as np

from perceiver.data.fingerprint import fingerprint_files
from perceiver.data.raw_images import Pixels, RawImages, RawSource, RawSplit, split_of_array
from perceiver.data.sources import one_line
from perceiver.errors import UserError

UNSIGNED_BYTE = 8
SPLITS = {"train": "train", "test": "t10k"}
NUM_AXES = {"images": 3, "labels": 1}


def find_idx_images(folder: Path) -> RawSource | None:
    """Find images in a folder of idx files, gzipped or not.

    Args:
        folder: Folder with train-images-idx3-ubyte, train-labels-idx1-ubyte and the same for t10k.

    Returns:
        The images; none where the folder holds no idx file.

    Raises:
        UserError: The folder holds some of the four files, but not all.
    """
    found: dict[tuple[str, str], Path] = {}
    for split, prefix in SPLITS.items():
        for kind, num_axes in NUM_AXES.items():
            for suffix in ("", ".gz"):
                path = folder / f"{prefix}-{kind}-idx{num_axes}-ubyte{suffix}"
                if path.is_file():
                    found.setdefault((split, kind), path)
    if not found:
        return None
    for split, prefix in SPLITS.items():
        for kind, num_axes in NUM_AXES.items():
            if (split, kind) not in found:
                raise UserError(f"{folder} lacks the file {prefix}-{kind}-idx{num_axes}-ubyte (or .gz): add it")
    return RawSource(fingerprint_files(sorted(found.values())), lambda: _load(found))


def _load(files: dict[tuple[str, str], Path]) -> RawImages:
    train, test = (_read_split(files[split, "images"], files[split, "labels"]) for split in SPLITS)
    class_names = tuple(str(label) for label in range(int(train.labels.max(initial=0)) + 1))
    return RawImages(class_names, train, test)


def _read_split(images_path: Path, labels_path: Path) -> RawSplit:
    images = read_idx(images_path, NUM_AXES["images"])
    labels = read_idx(labels_path, NUM_AXES["labels"]).astype(np.int64)
    if len(images) != len(labels):
        raise UserError(
            f"{images_path} holds {len(images)} images, but {labels_path} holds {len(labels)} labels: "
            "use files that belong together"
        )
    return split_of_array(images, labels, str(images_path))


def read_idx(path: Path, num_axes: int) -> Pixels:
    """Read an array of unsigned bytes.

    Args:
        path: File in idx format, gzipped if its name ends in .gz.
        num_axes: Number of axes that the array must have.

    Raises:
        UserError: The file is damaged or holds something else.
    """
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} cannot be read ({one_line(error)}): fetch it again") from None
    start = 4 + 4 * num_axes
    if content[:4] != bytes([0, 0, UNSIGNED_BYTE, num_axes]) or len(content) < start:
        raise UserError(f"{path} is not an idx file of unsigned bytes with {num_axes} axes: fetch it again")
    shape = np.frombuffer(content[4:start], dtype=">u4").tolist()
    if len(content) - start != math.prod(shape):
        raise UserError(
            f"{path} holds {len(content) - start} values, not {math.prod(shape)} as it says: fetch it again"
        )
    return np.frombuffer(content, dtype=np.uint8, offset=start).reshape(shape)
