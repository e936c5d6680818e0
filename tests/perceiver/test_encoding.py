"""The tokens of a text's beginning are those of the whole text."""

from __future__ import annotations

import logging
import time

import pytest

from perceiver.data.tokenizer import train_tokenizer
from perceiver.encoding import first_token_ids

MAX_SEQ_LEN = 6
TOKENIZER = train_tokenizer(["a good film", "what a bad film it was . . . !", "unbelievably"] * 3, 60)
WORDS = ("a", "film", "unbelievably", "<br />", "...<br />", "[MASK]", "x" * 120, "\u0301e", "  ", "!")


@pytest.mark.parametrize("shift", range(40))
def test_the_beginning_has_the_tokens_of_the_whole_wherever_it_is_cut(shift: int) -> None:
    texts = ["y" * shift + "".join(WORDS[(i * step + shift) % len(WORDS)] for i in range(60)) for step in (1, 3, 7)]
    texts += [f"{'y' * shift}{' '.join(WORDS[(i * 3 + shift) % len(WORDS)] for i in range(60))}"]
    expected = [TOKENIZER.encode(text).ids[:MAX_SEQ_LEN] for text in texts]
    assert first_token_ids(TOKENIZER, texts, MAX_SEQ_LEN) == expected


def test_short_and_empty_texts_are_whole() -> None:
    texts = ["", "a film", "a good film it was . . ."]
    assert first_token_ids(TOKENIZER, texts, 6) == [TOKENIZER.encode(text).ids[:6] for text in texts]


@pytest.mark.parametrize("text", ["a film " * 1_500_000, "x" * 10_000_000])
def test_ten_megabytes_take_no_time(text: str, caplog: pytest.LogCaptureFixture) -> None:
    start = time.process_time()
    with caplog.at_level(logging.INFO, logger="perceiver"):
        (ids,) = first_token_ids(TOKENIZER, [text], 512)
    assert time.process_time() - start < 2.0
    assert len(ids) in (1, 512)
    assert [record.getMessage() for record in caplog.records] == [
        "texts of more than 512 tokens are cut to what the model reads"
    ]


def test_nothing_is_said_of_texts_that_fit(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="perceiver"):
        first_token_ids(TOKENIZER, ["a film", "it was"], 512)
    assert not caplog.records
