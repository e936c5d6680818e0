"""Where texts come from: the built-in toy reviews, single files, the original folder of IMDB, tables of the hub."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import datasets

from perceiver.config import TextDataConfig
from perceiver.data.files import read_table, read_text
from perceiver.data.sources import FILE_SUFFIXES, is_local, load_splits, require_columns
from perceiver.data.toy_reviews import toy_reviews
from perceiver.errors import UserError

TOY_REVIEWS = "toy_reviews"
_LOCAL_FORMS = (
    f"a folder in the hub's layout, the original aclImdb folder, a {', '.join(FILE_SUFFIXES)} file, or {TOY_REVIEWS}"
)
_TEST_NAMES = ("test", "validation")
_UNLABELLED_NAMES = ("unsupervised", "unlabelled", "unlabeled")


@dataclass(frozen=True)
class SourceSplit:
    """A split as its source has it, unchecked."""

    rows: datasets.Dataset
    name: str
    """What to call the split in an error message."""
    text_column: str
    label_column: str | None
    """None if the split has no labels, or none that are needed."""


def read_splits(config: TextDataConfig, labelled: bool) -> dict[str, SourceSplit]:
    """Read the splits train, test (where there is one) and unlabelled (where it is to be used).

    A split that the source calls validation stands in for a missing test split, and is left alone otherwise.

    Args:
        config: Where the texts are, and the names of the columns.
        labelled: Whether labels are needed.

    Raises:
        UserError: If there is no such data set, it cannot be read, or it lacks a split, a column or rows.
    """
    label_column = config.label_column if labelled else None
    is_file = config.path != TOY_REVIEWS and is_local(config.path) and Path(config.path).expanduser().is_file()
    if is_file:
        found = _read_files(config, label_column)
    else:
        for name in ("test_path", "unlabelled_path"):
            if getattr(config, name) is not None:
                raise UserError(
                    f"{name} is {getattr(config, name)}, but path {config.path} is not a file: leave it out"
                )
        found = _read_data_set(config)
    if config.use_unlabelled and "unlabelled" not in found:
        mend = "name one with unlabelled_path" if is_file else "turn use_unlabelled off"
        raise UserError(f"use_unlabelled is set, but {config.path} has no unlabelled split: {mend}")
    splits = {}
    for name, (where, rows) in found.items():
        if not len(rows):
            raise UserError(f"{where} is empty: add rows")
        column = None if name == "unlabelled" else label_column
        require_columns(rows.column_names, [config.text_column, *([column] if column else [])], where)
        splits[name] = SourceSplit(rows, where, config.text_column, column)
    return splits


Found = dict[str, tuple[str, datasets.Dataset]]
"""By split: what to call it in an error message, and its rows."""


def _read_files(config: TextDataConfig, label_column: str | None) -> Found:
    labelled = [config.text_column, *([label_column] if label_column else [])]
    wanted = {"train": (config.path, labelled)}
    if config.test_path is not None:
        wanted["test"] = (config.test_path, labelled)
    if config.use_unlabelled and config.unlabelled_path is not None:
        wanted["unlabelled"] = (config.unlabelled_path, [config.text_column])
    return {name: (path, read_table(path, columns)) for name, (path, columns) in wanted.items()}


def _read_data_set(config: TextDataConfig) -> Found:
    path = config.path
    imdb = _find_original_imdb(path)
    splits: Mapping[str, datasets.Dataset]
    if path == TOY_REVIEWS:
        splits = toy_reviews()
    elif imdb is not None:
        splits = _read_original_imdb(imdb, config.use_unlabelled)
    else:
        splits = load_splits(path, _LOCAL_FORMS)
    candidates = {"train": ("train",), "test": _TEST_NAMES, "unlabelled": _UNLABELLED_NAMES}
    if not config.use_unlabelled:
        del candidates["unlabelled"]
    found = {}
    for name, alternatives in candidates.items():
        chosen = next((alternative for alternative in alternatives if alternative in splits), None)
        if chosen is not None:
            found[name] = (f"split {chosen} of {path}", splits[chosen])
    if "train" not in found:
        raise UserError(f"{path} has no split train, only {', '.join(splits)}: rename the files of the training split")
    return found


def _find_original_imdb(path: str) -> Path | None:
    folder = Path(path).expanduser()
    for root in (folder, folder / "aclImdb"):
        if all((root / "train" / name).is_dir() for name in ("neg", "pos")):
            return root
    return None


def _read_original_imdb(root: Path, use_unlabelled: bool) -> dict[str, datasets.Dataset]:
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])})
    folders = {"train": {"neg": 0, "pos": 1}, "test": {"neg": 0, "pos": 1}}
    if not (root / "test").is_dir():
        del folders["test"]
    if use_unlabelled and (root / "train" / "unsup").is_dir():
        folders["unsupervised"] = {"unsup": -1}
    splits = {}
    for split, labels in folders.items():
        parent = root / ("train" if split == "unsupervised" else split)
        files = [(file, label) for name, label in labels.items() for file in sorted((parent / name).glob("*.txt"))]
        columns = {"text": [read_text(file) for file, _ in files], "label": [label for _, label in files]}
        splits[split] = datasets.Dataset.from_dict(columns, features=features)
    return splits
