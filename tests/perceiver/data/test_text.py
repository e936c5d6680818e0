import dataclasses
import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from tokenizers import Tokenizer

from perceiver.config import TextDataConfig
from perceiver.data import text as text_data
from perceiver.data.text import load_text, prepare_text, split_text
from perceiver.data.tokenizer import train_tokenizer
from perceiver.data.toy_reviews import toy_reviews
from perceiver.errors import UserError

WriteJson = Callable[..., str]


@pytest.fixture
def config(cache_dir: Path) -> TextDataConfig:
    """Settings for the toy reviews, cut down."""
    return TextDataConfig(path="toy_reviews", limit=60, vocab_size=400, max_seq_len=32, cache_dir=str(cache_dir))


@pytest.fixture
def write(tmp_path: Path) -> WriteJson:
    """Write rows to a .jsonl file and return its path."""

    def write_rows(rows: list[dict[str, Any]], name: str = "data.jsonl") -> str:
        path = tmp_path / name
        path.write_text("\n".join(json.dumps(row) for row in rows))
        return str(path)

    return write_rows


def rows_of(split: datasets.Dataset) -> list[tuple[str, int]]:
    return list(zip(split["text"], split["label"], strict=True))


def test_a_fixed_tenth_validates() -> None:
    raw, split = load_text(TextDataConfig(path="toy_reviews")), split_text(TextDataConfig(path="toy_reviews"))
    assert (len(split.train), len(split.validation), len(split.test)) == (3600, 400, 1000)
    assert set(rows_of(split.train)) | set(rows_of(split.validation)) == set(rows_of(raw.train))
    assert rows_of(split.validation) == rows_of(split_text(TextDataConfig(path="toy_reviews")).validation)
    assert rows_of(split.test) == rows_of(raw.test)
    assert split.unlabelled is None
    assert raw.synthetic
    assert raw.class_names == ("neg", "pos")
    assert split.train.column_names == ["text", "label"]


def test_the_test_split_validates_on_request() -> None:
    config = TextDataConfig(path="toy_reviews", validation="test")
    raw, split = load_text(config), split_text(config)
    assert rows_of(split.train) == rows_of(raw.train)
    assert rows_of(split.validation) == rows_of(split.test) == rows_of(raw.test)


def test_limit_draws_from_all_over_a_sorted_split(write: WriteJson) -> None:
    rows = [{"text": f"text {number}", "label": int(number >= 500)} for number in range(1000)]
    settings = TextDataConfig(path=write(rows), limit=50, test_path=write(rows[:30], "test.jsonl"))
    split = split_text(settings)
    assert (len(split.train), len(split.validation), len(split.test)) == (50, 50, 30)
    assert 10 < sum(split.train["label"]) < 40
    assert rows_of(split.train) == rows_of(split_text(settings).train)
    assert not set(split.train["text"]) & set(split.validation["text"])


def test_a_file_without_test_path_gives_a_fixed_tenth(write: WriteJson) -> None:
    rows = [{"text": f"text {number}", "label": number % 2} for number in range(200)]
    raw = load_text(TextDataConfig(path=write(rows)))
    assert (len(raw.train), len(raw.test)) == (180, 20)
    assert not set(raw.train["text"]) & set(raw.test["text"])
    split = split_text(TextDataConfig(path=write(rows)))
    assert (len(split.train), len(split.validation), len(split.test)) == (162, 18, 20)


def test_the_fingerprint_tells_texts_and_labels_apart(write: WriteJson) -> None:
    rows = [{"text": f"text {number}", "label": number % 2} for number in range(30)]
    first = load_text(TextDataConfig(path=write(rows))).fingerprint
    assert load_text(TextDataConfig(path=write(rows, "copy.jsonl"))).fingerprint == first
    for change in ({"text": "other"}, {"label": 0}):
        changed = [*rows[:-1], {**rows[-1], **change}]
        assert load_text(TextDataConfig(path=write(changed))).fingerprint != first


def test_tokens_are_those_of_the_texts(config: TextDataConfig) -> None:
    data, texts = prepare_text(config), split_text(config)
    for name in ("train", "validation", "test"):
        tokens, split = getattr(data, name), getattr(texts, name)
        assert tokens.features == {
            "input_ids": datasets.List(datasets.Value("uint16")),
            "length": datasets.Value("int32"),
            "label": datasets.Value("int64"),
        }
        expected = [data.tokenizer.encode(text).ids[:32] for text in split["text"]]
        assert list(tokens["input_ids"]) == expected
        assert list(tokens["length"]) == [len(ids) for ids in expected]
        assert list(tokens["label"]) == list(split["label"])
    assert max(data.train["length"]) == 32
    assert data.tokenizer.get_vocab_size() == 400
    assert data.unlabelled is None
    assert data.synthetic
    assert data.class_names == ("neg", "pos")


def test_the_tokenizer_is_trained_on_the_training_texts(config: TextDataConfig) -> None:
    texts = split_text(config).train["text"]
    assert prepare_text(config).tokenizer.to_str() == train_tokenizer(texts, 400).to_str()


def test_unlabelled_texts_join_on_request(config: TextDataConfig) -> None:
    config = dataclasses.replace(config, use_unlabelled=True)
    data, texts = prepare_text(config), split_text(config)
    assert data.unlabelled is not None
    assert texts.unlabelled is not None
    assert len(data.unlabelled) == 60
    assert set(data.unlabelled["label"]) == {-1}
    both = [*texts.train["text"], *texts.unlabelled["text"]]
    assert data.tokenizer.to_str() == train_tokenizer(both, 400).to_str()


def test_labels_are_not_needed_for_language_modeling(config: TextDataConfig, write: WriteJson) -> None:
    path = write([{"text": f"text number {number}"} for number in range(30)])
    config = dataclasses.replace(config, path=path)
    with pytest.raises(UserError, match="no column label"):
        prepare_text(config)
    data = prepare_text(config, labelled=False)
    assert set(data.train["label"]) == {-1}
    assert data.class_names == ()


def test_an_empty_text_is_one_unknown_token(config: TextDataConfig, write: WriteJson) -> None:
    path = write([{"text": "" if number % 2 else "a b c", "label": number % 2} for number in range(20)])
    data = prepare_text(dataclasses.replace(config, path=path))
    for ids, length, label in zip(data.train["input_ids"], data.train["length"], data.train["label"], strict=True):
        assert len(ids) == length == (1 if label else 3)
        assert (ids == [1]) == bool(label)


def test_a_text_cannot_spell_special_tokens(config: TextDataConfig, write: WriteJson) -> None:
    path = write([{"text": "[PAD] and [MASK]", "label": number % 2} for number in range(20)])
    data = prepare_text(dataclasses.replace(config, path=path))
    assert not {0, 1, 2} & {token for ids in data.train["input_ids"] for token in ids}


def test_the_second_time_nothing_is_computed(config: TextDataConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    first = prepare_text(config)
    monkeypatch.setattr(text_data, "train_tokenizer", lambda *_: pytest.fail("trained again"))
    monkeypatch.setattr(text_data, "_encode", lambda *_, **__: pytest.fail("tokenized again"))
    again = prepare_text(config)
    assert again.train[:] == first.train[:]
    assert again.fingerprint == first.fingerprint
    assert prepare_text(config, first.tokenizer, labelled=False).train["input_ids"][:] == first.train["input_ids"][:]


@pytest.mark.parametrize("damage", ["truncate", "alter", "remove"])
def test_a_damaged_cache_is_not_used(config: TextDataConfig, damage: str) -> None:
    first = prepare_text(config)
    expected = first.train[:]
    for path in Path(config.cache_dir).glob("*/*.*"):
        if path.name in ("tokens.arrow", "tokenizer.json"):
            content = bytearray(path.read_bytes())
            path.unlink()
            if damage == "truncate":
                path.write_bytes(content[: len(content) // 2])
            elif damage == "alter":
                content[len(content) // 2] ^= 1
                path.write_bytes(content)
    assert prepare_text(config).train[:] == expected


def test_processes_may_prepare_at_once(config: TextDataConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[int] = []
    train = text_data.train_tokenizer

    def count(*arguments: Any) -> Tokenizer:
        trained.append(1)
        return train(*arguments)

    monkeypatch.setattr(text_data, "train_tokenizer", count)
    results: list[Any] = []
    threads = [threading.Thread(target=lambda: results.append(prepare_text(config).train[:])) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(trained) == 1
    assert len(results) == 3
    assert results[0] == results[1] == results[2]
    assert not list(Path(config.cache_dir).glob("*.tmp"))


def test_a_given_tokenizer_wins(config: TextDataConfig, tmp_path: Path) -> None:
    given, other = (train_tokenizer(texts, 60) for texts in (["a film was seen"], ["the plot is dull"]))
    path = tmp_path / "tokenizer.json"
    given.save(str(path))
    named = dataclasses.replace(config, tokenizer=str(path))
    for data in (prepare_text(config, given), prepare_text(named), prepare_text(named, given)):
        assert data.tokenizer.to_str() == given.to_str()
    with pytest.raises(UserError, match="leave it out"):
        prepare_text(named, other)
    assert prepare_text(named).fingerprint != prepare_text(config).fingerprint


def test_a_tokenizer_larger_than_the_vocabulary_is_refused(config: TextDataConfig) -> None:
    given = train_tokenizer(["a film was seen"], 60)
    size = given.get_vocab_size()
    with pytest.raises(UserError, match=f"vocab_size is {size - 1}, .* {size} tokens"):
        prepare_text(dataclasses.replace(config, vocab_size=size - 1), given)


def test_a_vocabulary_may_stay_smaller_than_asked(config: TextDataConfig, write: WriteJson) -> None:
    path = write([{"text": "a b", "label": number % 2} for number in range(20)])
    assert prepare_text(dataclasses.replace(config, path=path)).tokenizer.get_vocab_size() == 5


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_an_unwritable_cache_is_named(config: TextDataConfig, tmp_path: Path) -> None:
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    with pytest.raises(UserError, match="cache_dir .*locked.* cannot be written"):
        prepare_text(dataclasses.replace(config, cache_dir=str(locked / "cache")))


def test_a_file_in_place_of_the_cache_is_named(config: TextDataConfig, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cache_dir .*file cannot be written"):
        prepare_text(dataclasses.replace(config, cache_dir=str(tmp_path / "file")))


def test_progress_bars_are_as_before(config: TextDataConfig, capfd: pytest.CaptureFixture[str]) -> None:
    datasets.enable_progress_bars()
    prepare_text(config)
    assert not datasets.are_progress_bars_disabled()
    assert capfd.readouterr() == ("", "")


def test_toy_reviews_come_as_they_are() -> None:
    assert rows_of(load_text(TextDataConfig(path="toy_reviews")).train) == rows_of(toy_reviews()["train"])


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_whole_of_imdb(real_data: Path, cache_dir: Path) -> None:
    config = TextDataConfig(path=str(real_data / "imdb"), use_unlabelled=True, cache_dir=str(cache_dir))
    data = prepare_text(config)
    assert data.unlabelled is not None
    sizes = [len(split) for split in (data.train, data.validation, data.test, data.unlabelled)]
    assert sizes == [22_500, 2_500, 25_000, 50_000]
    assert data.tokenizer.get_vocab_size() == 10_003
    assert data.class_names == ("neg", "pos")
    assert not data.synthetic
    assert np.mean(data.train["label"]) == pytest.approx(0.5, abs=0.01)
    assert max(data.train["length"]) == 512
