import contextlib
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import datasets
import huggingface_hub
import pandas as pd
import pytest
from huggingface_hub.errors import RepositoryNotFoundError

from perceiver.config import TextDataConfig
from perceiver.data import sources
from perceiver.data.sources import quiet_datasets
from perceiver.data.text import RawText, load_text
from perceiver.errors import UserError

TEXTS = [f"a text, number {number}\nin two lines" for number in range(20)]
LABELS = [number % 2 for number in range(20)]


@pytest.fixture(autouse=True)
def _hub_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("hub_cache"))


def load(path: Path | str, labelled: bool = True, **settings: Any) -> RawText:
    return load_text(TextDataConfig(path=str(path), **settings), labelled)


def refuse(message: str, path: Path | str, labelled: bool = True, **settings: Any) -> None:
    with pytest.raises(UserError, match=message) as error:
        load(path, labelled, **settings)
    assert "\n" not in str(error.value)


def rows_of(split: datasets.Dataset) -> list[tuple[str, int]]:
    return list(zip(split["text"], split["label"], strict=True))


def table(labels: list[Any] = LABELS) -> pd.DataFrame:
    return pd.DataFrame({"text": TEXTS, "label": labels})


def to_csv(frame: pd.DataFrame, path: Path) -> None:
    frame.to_csv(path, index=False)


def to_lines(frame: pd.DataFrame, path: Path) -> None:
    path.write_text("\n".join(json.dumps(row) for row in frame.to_dict("records")) + "\n\n")


def to_list(frame: pd.DataFrame, path: Path) -> None:
    path.write_text(json.dumps(frame.to_dict("records"), indent=2))


def to_parquet(frame: pd.DataFrame, path: Path) -> None:
    frame.to_parquet(path)


FORMATS = {"a.csv": to_csv, "a.jsonl": to_lines, "b.json": to_lines, "c.json": to_list, "d.parquet": to_parquet}


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("labels", [LABELS, [("good", "bad")[label] for label in LABELS]])
def test_every_kind_of_file_gives_the_same(tmp_path: Path, name: str, labels: list[Any]) -> None:
    FORMATS[name](table(labels), tmp_path / name)
    raw = load(
        tmp_path / name, test_path=str(tmp_path / name), use_unlabelled=True, unlabelled_path=str(tmp_path / name)
    )
    if labels == LABELS:
        assert (raw.class_names, rows_of(raw.train)) == (("0", "1"), list(zip(TEXTS, LABELS, strict=True)))
    else:
        assert raw.class_names == ("bad", "good")
        assert rows_of(raw.train) == [(text, 1 - label) for text, label in zip(TEXTS, LABELS, strict=True)]
    assert rows_of(raw.test) == rows_of(raw.train)
    assert raw.unlabelled is not None
    assert rows_of(raw.unlabelled) == [(text, -1) for text in TEXTS]
    assert not raw.synthetic


@pytest.mark.parametrize("name", FORMATS)
def test_columns_have_the_names_that_are_set(tmp_path: Path, name: str) -> None:
    frame = table().rename(columns={"text": "review", "label": "stars"})
    FORMATS[name](frame, tmp_path / name)
    assert len(load(tmp_path / name, text_column="review", label_column="stars").train) == 18
    refuse(r"no column text: set text_column or label_column to one of review, stars", tmp_path / name)


def test_words_for_null_and_numbers_are_texts(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("text,label\nNA,0\nnull,1\n,0\n007,1\n")
    assert list(load(path, test_path=str(path)).train["text"]) == ["NA", "null", "", "007"]


def test_class_names_and_categories_of_parquet(tmp_path: Path) -> None:
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    datasets.Dataset.from_dict({"text": TEXTS, "label": LABELS}, features).to_parquet(tmp_path / "a.parquet")
    assert load(tmp_path / "a.parquet").class_names == ("no", "yes")
    frame = table([("good", "bad")[label] for label in LABELS])
    frame.astype({"label": "category"}).to_parquet(tmp_path / "b.parquet")
    assert load(tmp_path / "b.parquet").class_names == ("bad", "good")


def test_classes_are_matched_by_name(tmp_path: Path) -> None:
    to_csv(table(["good", "bad"] * 10), tmp_path / "train.csv")
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["good", "bad"])}
    )
    datasets.Dataset.from_dict({"text": TEXTS, "label": [0, 1] * 10}, features).to_parquet(tmp_path / "test.parquet")
    raw = load(tmp_path / "train.csv", test_path=str(tmp_path / "test.parquet"))
    assert rows_of(raw.test) == rows_of(raw.train)


def test_a_folder_in_the_hubs_layout(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    for split in ("train", "test", "unsupervised"):
        to_parquet(table([-1] * 20 if split == "unsupervised" else LABELS), folder / f"{split}-00000-of-00001.parquet")
    raw = load(tmp_path, use_unlabelled=True)
    assert rows_of(raw.train) == rows_of(raw.test) == list(zip(TEXTS, LABELS, strict=True))
    assert raw.unlabelled is not None
    assert len(raw.unlabelled) == 20
    assert load(tmp_path).unlabelled is None


def test_a_folder_without_a_test_split_gives_a_tenth(tmp_path: Path) -> None:
    to_csv(table(), tmp_path / "train.csv")
    raw = load(tmp_path)
    assert (len(raw.train), len(raw.test)) == (18, 2)


def test_a_validation_split_stands_in_for_a_missing_test_split(tmp_path: Path) -> None:
    to_csv(table(), tmp_path / "train.csv")
    to_csv(table()[:6], tmp_path / "validation.csv")
    assert rows_of(load(tmp_path).test) == list(zip(TEXTS[:6], LABELS[:6], strict=True))
    to_csv(table()[:4], tmp_path / "test.csv")
    assert rows_of(load(tmp_path).test) == list(zip(TEXTS[:4], LABELS[:4], strict=True))


def test_a_folder_without_a_training_split(tmp_path: Path) -> None:
    to_csv(table(), tmp_path / "test.csv")
    refuse("has no split train, only test", tmp_path)


def test_a_folder_without_data(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    refuse("cannot be read as a folder in the hub's layout", tmp_path / "empty")


@pytest.mark.parametrize("parent", [False, True])
def test_the_original_folder_of_imdb(tmp_path: Path, parent: bool) -> None:
    root = tmp_path / "aclImdb"
    for folder in ("train/pos", "train/neg", "test/pos", "test/neg", "train/unsup"):
        (root / folder).mkdir(parents=True)
        for number in range(2):
            (root / folder / f"{number}_7.txt").write_text(f"{folder} {number} é", encoding="utf-8")
    path = tmp_path if parent else root
    raw = load(path, use_unlabelled=True)
    assert raw.class_names == ("neg", "pos")
    for name, split in {"train": raw.train, "test": raw.test}.items():
        expected = [(f"{name}/{kind} {n} é", label) for label, kind in enumerate(("neg", "pos")) for n in range(2)]
        assert rows_of(split) == expected
    assert raw.unlabelled is not None
    assert rows_of(raw.unlabelled) == [(f"train/unsup {n} é", -1) for n in range(2)]
    (root / "test" / "pos" / "1_7.txt").write_bytes(b"caf\xe9")
    refuse(r"1_7\.txt, line 1: not UTF-8", path)


@pytest.mark.parametrize("path", ["./data", "/nowhere", "~/nowhere-at-all", "a/b/c", "reviews.csv", "reviews.parquet"])
def test_what_looks_like_a_path_must_exist(path: str) -> None:
    refuse("does not exist", path)


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.xlsx").touch()
    refuse(r"suffix '.xlsx': convert it to .csv, .jsonl", tmp_path / "a.xlsx")
    to_csv(table(), tmp_path / "a.csv")
    refuse("nowhere.csv is not a file", tmp_path / "a.csv", test_path="nowhere.csv")
    refuse("test_path is a.csv, but path toy_reviews is not a file", "toy_reviews", test_path="a.csv")


def test_an_unlabelled_split_must_exist_if_used(tmp_path: Path) -> None:
    to_csv(table(), tmp_path / "train.csv")
    refuse("no unlabelled split: name one with unlabelled_path", tmp_path / "train.csv", use_unlabelled=True)
    refuse("no unlabelled split: turn use_unlabelled off", tmp_path, use_unlabelled=True)


def lines(*rows: dict[str, Any]) -> str:
    return "\n".join(json.dumps(row) for row in rows)


GOOD = {"text": "a", "label": 0}
BAD_FILES = {
    "empty.csv": ("text,label\n", "empty.csv is empty"),
    "nothing.csv": ("", "nothing.csv is not a table"),
    "empty.jsonl": ("", "empty.jsonl is empty"),
    "ragged.csv": ("text,label\na,0\nb,1,2\n", "not a table of comma-separated values"),
    "no_label.csv": (
        "text,sentiment\na,0\n",
        "no column label: set text_column or label_column to one of text, sentiment",
    ),
    "float.csv": ("text,label\na,0.5\nb,1\n", "column label holds double values"),
    "missing.csv": ("text,label\na,0\nb,\nc,1\n", "missing.csv, row 2: label is missing"),
    "nameless.csv": ("text,label\na,good\nb,\nc,bad\n", "nameless.csv, row 2: label is missing"),
    "negative.csv": ("text,label\na,0\nb,-1\n", "holds the labels -1, 0: number the classes 0, 1, 2"),
    "from_one.csv": ("text,label\na,1\nb,2\n", "holds the labels 1, 2: number the classes 0, 1, 2"),
    "broken.jsonl": (lines(GOOD, GOOD) + '\n{"text": ', "broken.jsonl, line 3: not valid JSON"),
    "broken.json": ('[\n{"text": "a",\n "label" 0}]', "broken.json, line 3: not valid JSON"),
    "list.jsonl": (lines(GOOD) + "\n[1, 2]", r"list.jsonl, line 2: not an object"),
    "null.jsonl": (lines(GOOD, {"text": None, "label": 1}), "null.jsonl, row 2: text is missing"),
    "number.jsonl": (lines({"text": 1, "label": 0}, {"text": 2, "label": 1}), "column text holds int64 values"),
    "mixed.jsonl": (lines(GOOD, {"text": 2, "label": 1}), r"mixes kinds of values, str \(row 1\), int \(row 2\)"),
    "fake.parquet": ("text", "fake.parquet is not a Parquet file"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files_are_named(tmp_path: Path, name: str) -> None:
    content, message = BAD_FILES[name]
    (tmp_path / name).write_text(content)
    refuse(message, tmp_path / name)


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl"])
def test_files_must_be_utf8(tmp_path: Path, name: str) -> None:
    to_csv(table(), tmp_path / "good.csv")
    (tmp_path / name).write_bytes(b"text,label\nb,1\ncaf\xe9,0\n")
    refuse(rf"{name}, line 3: not UTF-8: convert the file", tmp_path / name)
    refuse(rf"{name}, line 3: not UTF-8", tmp_path / "good.csv", test_path=str(tmp_path / name))


@pytest.mark.parametrize(("label", "shown"), [(2, "'2'"), (-1, "'-1'"), ("good", "'good'")])
def test_labels_of_the_test_split_must_occur_in_training(tmp_path: Path, label: Any, shown: str) -> None:
    to_csv(table(), tmp_path / "train.csv")
    to_csv(table([*LABELS[:4], label, *LABELS[5:]]), tmp_path / "test.csv")
    message = rf"test.csv, row 5: label is {shown}, but the training split's labels are 0, 1"
    refuse(message, tmp_path / "train.csv", test_path=str(tmp_path / "test.csv"))
    assert len(load(tmp_path / "train.csv", labelled=False, test_path=str(tmp_path / "test.csv")).test) == 20


def test_labels_of_the_hubs_layout_must_be_in_range(tmp_path: Path) -> None:
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    for split, labels in {"train": LABELS, "test": [0, -1] * 10}.items():
        datasets.Dataset.from_dict({"text": TEXTS, "label": labels}, features).to_parquet(tmp_path / f"{split}.parquet")
    refuse("split test of .*, row 2: label is '-1', but the training split's labels are no, yes", tmp_path)


def test_offline_the_message_says_what_else_would_do() -> None:
    refuse("the hub cannot be reached .* set path to a folder in the hub's layout, .* or toy_reviews", "some/name")


def ask_hub(monkeypatch: pytest.MonkeyPatch, answer: Mock) -> None:
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: Mock(dataset_info=answer))


def test_a_failing_connection_is_tried_once(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = Mock(side_effect=TimeoutError("timed out"))
    ask_hub(monkeypatch, answer)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    refuse(r"the hub cannot be reached \(timed out\)", "some/name")
    answer.assert_called_once()
    assert datasets.config.HF_HUB_OFFLINE is False


def test_an_unknown_name(monkeypatch: pytest.MonkeyPatch) -> None:
    ask_hub(monkeypatch, Mock(side_effect=RepositoryNotFoundError("404\n\nsecond line", response=Mock())))
    refuse("some/name is neither a local path nor a data set on the hub", "some/name")


def test_what_cannot_be_a_name() -> None:
    refuse("'bad name!' is neither a local path nor a name on the hub", "bad name!")


def test_a_data_set_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    split = datasets.Dataset.from_dict({"text": TEXTS, "label": LABELS})
    ask_hub(monkeypatch, Mock())
    download: Callable[[str], Any] = {"some/name": datasets.DatasetDict(train=split, test=split)}.__getitem__
    monkeypatch.setattr(sources.datasets, "load_dataset", download)
    assert rows_of(load("some/name").train) == list(zip(TEXTS, LABELS, strict=True))
    monkeypatch.setattr(sources.datasets, "load_dataset", Mock(side_effect=OSError("no\nspace")))
    refuse("some/name cannot be loaded from the hub: no space", "some/name")


def test_libraries_speak_again_afterwards() -> None:
    datasets.enable_progress_bars()
    level = logging.getLogger("datasets").level
    with contextlib.suppress(KeyError), quiet_datasets():
        assert datasets.are_progress_bars_disabled()
        raise KeyError
    assert not datasets.are_progress_bars_disabled()
    assert logging.getLogger("datasets").level == level
