"""Images in tables: data sets of the hub, and local folders in the hub's layout."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets

from perceiver.config import ImageDataConfig
from perceiver.data.fingerprint import fingerprint_of
from perceiver.data.raw_images import IntArray, Pixels, RawImages, RawSource, RawSplit, decode_image
from perceiver.data.sources import class_names_of, encode_labels, load_splits, one_line
from perceiver.errors import UserError

_FORMS = "a folder in the hub's layout, of class folders or of idx files, or digits"


@dataclass(frozen=True)
class _Table:
    """A split, which columns of it to use, and what to call it in an error message."""

    rows: datasets.Dataset
    image_column: str
    label_column: str
    where: str

    def describe(self, row: int) -> str:
        return f"{self.where}, row {row + 1}"

    def fingerprint(self) -> str:
        digest = hashlib.sha256()
        for row, cell in enumerate(self._cells(self.rows)):
            digest.update(hashlib.sha256(self._content(cell, row)).digest())
        labels = self.rows.select_columns([self.label_column])
        return fingerprint_of(digest.hexdigest(), str(labels.features), str(labels[:][self.label_column]))

    def read(self, rows: IntArray) -> Iterator[Pixels]:
        for row, cell in zip(rows.tolist(), self._cells(self.rows.select(rows)), strict=True):
            yield decode_image(self._content(cell, row), self.describe(row))

    def split(self, class_names: tuple[str, ...]) -> RawSplit:
        labels = encode_labels(self.rows, self.label_column, class_names, self.where)
        return RawSplit(labels.to_numpy(), self.read, self.describe)

    def _cells(self, rows: datasets.Dataset) -> Iterator[dict[str, Any] | None]:
        for batch in rows.select_columns([self.image_column]).iter(batch_size=1000):
            yield from batch[self.image_column]

    def _content(self, cell: dict[str, Any] | None, row: int) -> bytes:
        if cell is None:
            raise UserError(f"{self.describe(row)}: the image is missing: add it or remove the row")
        if cell["bytes"] is not None:
            return bytes(cell["bytes"])
        try:
            return Path(cell["path"]).read_bytes()
        except OSError as error:
            raise UserError(f"{self.describe(row)}: the image cannot be read: {one_line(error)}") from None


def find_tables(config: ImageDataConfig) -> RawSource:
    """Find images in a data set of the hub, or in a local folder in the hub's layout.

    Args:
        config: Hub name or folder, and names of the columns.

    Raises:
        UserError: There is no such data set, or it lacks the training split or a column.
    """
    splits = load_splits(config.path, _FORMS)
    if "train" not in splits:
        raise UserError(f"{config.path} has the splits {', '.join(splits)}, but needs one named train: rename one")
    tables = {name: _table(splits[name], config, name) for name in ("train", "test") if name in splits}
    fingerprint = fingerprint_of(*(f"{name} {table.fingerprint()}" for name, table in tables.items()))
    return RawSource(fingerprint, lambda: _load(tables))


def _table(split: datasets.Dataset, config: ImageDataConfig, name: str) -> _Table:
    where = f"{config.path}, split {name}"
    for field in ("image_column", "label_column"):
        column = getattr(config, field)
        if column not in split.column_names:
            raise UserError(f"{where} has no column {column}: set {field} to one of {', '.join(split.column_names)}")
    if not isinstance(split.features[config.image_column], datasets.Image):
        images = [column for column, feature in split.features.items() if isinstance(feature, datasets.Image)]
        raise UserError(
            f"{where}: column {config.image_column} does not hold images: set image_column to one that does "
            f"({', '.join(images) or 'there is none'})"
        )
    # The images stay the files that they are, to be decoded when they are needed.
    encoded = split.cast_column(config.image_column, datasets.Image(decode=False))
    return _Table(encoded, config.image_column, config.label_column, where)


def _load(tables: dict[str, _Table]) -> RawImages:
    train = tables["train"]
    class_names = class_names_of(train.rows, train.label_column, train.where)
    splits = {name: table.split(class_names) for name, table in tables.items()}
    return RawImages(class_names, splits["train"], splits.get("test"))
