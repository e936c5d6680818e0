"""Texts and their labels, from any source to tokens in fixed splits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.compute as pc
from tokenizers import Tokenizer

from perceiver.config import TextDataConfig
from perceiver.data.cache import cached_folder
from perceiver.data.fingerprint import fingerprint_dataset, fingerprint_of
from perceiver.data.sources import class_names_of, encode_labels, hold_out_tenth, limited, quiet_datasets
from perceiver.data.text_sources import TOY_REVIEWS, SourceSplit, read_splits
from perceiver.data.tokenizer import UNK_TOKEN, load_tokenizer, train_tokenizer, vocab_size_of
from perceiver.errors import UserError
from perceiver.random import Stream

NO_LABEL = -1
_FORMAT = "2"  # of what the cache holds; a new number leaves old folders unused
_TOKENIZER_FILE, _TOKENS_FILE = "tokenizer.json", "tokens.arrow"


@dataclass(frozen=True)
class RawText:
    """A data set of texts, whole; each split has the columns text (string) and label (int64)."""

    class_names: tuple[str, ...]
    """Name of each class, in the order of the labels 0, 1, ...; empty if labels were not asked for."""
    fingerprint: str
    """Changes when any text or label changes."""
    synthetic: bool
    """Whether the texts are made up."""
    train: datasets.Dataset
    test: datasets.Dataset
    unlabelled: datasets.Dataset | None
    """Texts with label -1; None unless use_unlabelled is set."""


@dataclass(frozen=True)
class SplitText:
    """The texts that are used, with the columns text (string) and label (int64)."""

    train: datasets.Dataset
    validation: datasets.Dataset
    test: datasets.Dataset
    unlabelled: datasets.Dataset | None
    """Texts with label -1; None unless use_unlabelled is set."""


@dataclass(frozen=True)
class TextData:
    """The tokens of the texts that are used: input_ids (uint16 list), length (int32) and label (int64).

    A vocabulary of more than 65,536 tokens makes the ids uint32.
    """

    class_names: tuple[str, ...]
    """Name of each class, in the order of the labels 0, 1, ...; empty if labels were not asked for."""
    tokenizer: Tokenizer
    fingerprint: str
    """Changes when any text or label of the source changes, or the tokenizer file that the settings name."""
    synthetic: bool
    """Whether the texts are made up."""
    train: datasets.Dataset
    validation: datasets.Dataset
    test: datasets.Dataset
    unlabelled: datasets.Dataset | None
    """Texts with label -1; None unless use_unlabelled is set."""


def load_text(config: TextDataConfig, labelled: bool = True) -> RawText:
    """Read and check the splits of a data set.

    Args:
        config: Where the texts are, and the names of the columns.
        labelled: Whether labels are needed; otherwise they may be missing, and are -1.

    Raises:
        UserError: If the data set cannot be read, or lacks a split, a column, a text or a label.
    """
    with quiet_datasets():
        sources = read_splits(config, labelled)
        train = sources["train"]
        class_names = class_names_of(train.rows, train.label_column, train.name) if train.label_column else ()
        splits = {name: _checked(source, class_names) for name, source in sources.items()}
        if "test" not in splits:
            splits["train"], splits["test"] = hold_out_tenth(splits["train"], Stream.TEST_SPLIT, train.name)
        sums = (part for name, split in splits.items() for part in (name, fingerprint_dataset(split)))
    return RawText(
        class_names=class_names,
        fingerprint=fingerprint_of(*class_names, *sums),
        synthetic=config.path == TOY_REVIEWS,
        train=splits["train"],
        test=splits["test"],
        unlabelled=splits.get("unlabelled"),
    )


def split_text(config: TextDataConfig, labelled: bool = True) -> SplitText:
    """Read a data set and return the texts that are used, before they become tokens.

    Args:
        config: Where the texts are, and which of them to use.
        labelled: Whether labels are needed; otherwise they may be missing, and are -1.

    Raises:
        UserError: If the data set cannot be read, or lacks a split, a column, a text or a label.
    """
    return _split(load_text(config, labelled), config)


def prepare_text(config: TextDataConfig, tokenizer: Tokenizer | None = None, labelled: bool = True) -> TextData:
    """Read a data set and return the tokens of the texts that are used; tokens are kept in the cache folder.

    Any number of processes may prepare the same data at once.

    Args:
        config: Where the texts are, which of them to use, and how they become tokens.
        tokenizer: Tokenizer to use (none: the one that config names, or a new one trained on the training split).
        labelled: Whether labels are needed; otherwise they may be missing, and are -1.

    Raises:
        UserError: If the data set or the tokenizer cannot be used, or the cache cannot be written.
    """
    raw = load_text(config, labelled)
    texts = _split(raw, config)
    given = _given_tokenizer(config, tokenizer)
    tokenizer = given or _trained_tokenizer(texts, config)
    with quiet_datasets():
        unlabelled = None if texts.unlabelled is None else _tokenized(texts.unlabelled, tokenizer, config)
        return TextData(
            class_names=raw.class_names,
            tokenizer=tokenizer,
            fingerprint=fingerprint_of(raw.fingerprint, given.to_str() if given and config.tokenizer else ""),
            synthetic=raw.synthetic,
            train=_tokenized(texts.train, tokenizer, config),
            validation=_tokenized(texts.validation, tokenizer, config),
            test=_tokenized(texts.test, tokenizer, config),
            unlabelled=unlabelled,
        )


def _checked(source: SourceSplit, class_names: tuple[str, ...]) -> datasets.Dataset:
    """Return the columns text and label, after checking every row."""
    texts = source.rows.data.column(source.text_column)
    if not any(of_type(texts.type) for of_type in (pa.types.is_string, pa.types.is_large_string, pa.types.is_null)):
        raise UserError(f"{source.name}: column {source.text_column} holds {texts.type} values: use one with text")
    row = pc.index(texts.is_null(), True).as_py()
    if row >= 0:
        raise UserError(
            f"{source.name}, row {row + 1}: {source.text_column} is missing: add the text or remove the row"
        )
    if source.label_column:
        labels = encode_labels(source.rows, source.label_column, class_names, source.name)
    else:
        labels = pa.repeat(pa.scalar(NO_LABEL, pa.int64()), len(texts))
    table = pa.table({"text": texts.cast(pa.large_string()), "label": labels})
    # A given fingerprint spares the library a hash of its own; nothing here relies on it.
    return datasets.Dataset(datasets.table.InMemoryTable(table), fingerprint="text")


def _split(raw: RawText, config: TextDataConfig) -> SplitText:
    train, validation = raw.train, raw.test
    if config.validation == "tenth":
        train, validation = hold_out_tenth(train, Stream.VALIDATION_SPLIT, f"the training split of {config.path}")
    return SplitText(
        train=limited(train, config.limit),
        validation=limited(validation, config.limit),
        test=limited(raw.test, config.limit),
        unlabelled=None if raw.unlabelled is None else limited(raw.unlabelled, config.limit),
    )


def _given_tokenizer(config: TextDataConfig, tokenizer: Tokenizer | None) -> Tokenizer | None:
    named = load_tokenizer(Path(config.tokenizer)) if config.tokenizer else None
    given = load_tokenizer(tokenizer.to_str()) if tokenizer else named
    if given is None:
        return None
    if named and named.to_str() != given.to_str():
        raise UserError(
            f"tokenizer {config.tokenizer} is not the tokenizer that the model was trained with: leave it out"
        )
    size = vocab_size_of(given)
    if size > config.vocab_size:
        raise UserError(
            f"vocab_size is {config.vocab_size}, but the given tokenizer has {size} tokens: set it to {size}"
        )
    return given


def _trained_tokenizer(texts: SplitText, config: TextDataConfig) -> Tokenizer:
    sources = [split for split in (texts.train, texts.unlabelled) if split is not None]

    def build(folder: Path) -> None:
        tokenizer = train_tokenizer(chain.from_iterable(split["text"] for split in sources), config.vocab_size)
        tokenizer.save(str(folder / _TOKENIZER_FILE))

    sums = (fingerprint_dataset(split.select_columns("text")) for split in sources)
    name = "tokenizer-" + fingerprint_of(_FORMAT, str(config.vocab_size), *sums)[:32]
    return load_tokenizer(cached_folder(config.cache_dir, name, build) / _TOKENIZER_FILE)


def _tokenized(split: datasets.Dataset, tokenizer: Tokenizer, config: TextDataConfig) -> datasets.Dataset:
    """Return the tokens of a split, mapped from a file of the cache, and its labels."""
    texts = split.select_columns("text")
    settings = (_FORMAT, str(config.max_seq_len), tokenizer.to_str(), fingerprint_dataset(texts))
    key = fingerprint_of(*settings)[:32]

    def build(folder: Path) -> None:
        texts.map(
            _encode,
            batched=True,
            fn_kwargs={"tokenizer": _literal(tokenizer), "max_seq_len": config.max_seq_len},
            remove_columns="text",
            features=_token_features(vocab_size_of(tokenizer)),
            cache_file_name=str(folder / _TOKENS_FILE),
            new_fingerprint=key,
        )

    folder = cached_folder(config.cache_dir, f"tokens-{key}", build)
    tokens = datasets.Dataset.from_file(str(folder / _TOKENS_FILE))
    return tokens.add_column("label", split.with_format("numpy")["label"][:], new_fingerprint=key)


def _token_features(vocab_size: int) -> datasets.Features:
    id_type = "uint16" if vocab_size <= 2**16 else "uint32"
    return datasets.Features({"input_ids": datasets.List(datasets.Value(id_type)), "length": datasets.Value("int32")})


def _literal(tokenizer: Tokenizer) -> Tokenizer:
    """Copy a tokenizer so that a text that spells out [PAD] or [MASK] gets ordinary tokens for it."""
    copy = Tokenizer.from_str(tokenizer.to_str())
    copy.encode_special_tokens = True
    return copy


def _encode(batch: Mapping[str, list[str]], tokenizer: Tokenizer, max_seq_len: int) -> dict[str, list[Any]]:
    unknown = [tokenizer.token_to_id(UNK_TOKEN)]  # stands for an empty text, so that no row is padding alone
    encodings = tokenizer.encode_batch_fast(list(batch["text"]), add_special_tokens=False)
    input_ids = [encoding.ids[:max_seq_len] or unknown for encoding in encodings]
    return {"input_ids": input_ids, "length": [len(ids) for ids in input_ids]}
