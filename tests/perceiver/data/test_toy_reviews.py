import re

import datasets
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from perceiver.data.toy_reviews import toy_reviews


@pytest.fixture(scope="module")
def reviews() -> datasets.DatasetDict:
    return toy_reviews()


def test_splits_are_balanced_and_described(reviews: datasets.DatasetDict) -> None:
    assert reviews.num_rows == {"train": 4000, "test": 1000, "unsupervised": 4000}
    assert sum(reviews["train"]["label"]) == 2000
    assert sum(reviews["test"]["label"]) == 500
    assert set(reviews["unsupervised"]["label"]) == {-1}
    for split in reviews.values():
        assert split.features["label"].names == ["neg", "pos"]
        assert "ynthetic" in split.info.description


def test_no_text_occurs_twice(reviews: datasets.DatasetDict) -> None:
    texts = [text for split in reviews.values() for text in split["text"]]
    assert len(set(texts)) == len(texts)


def test_reviews_are_short_and_varied(reviews: datasets.DatasetDict) -> None:
    texts = list(reviews["train"]["text"])
    assert all(12 <= len(text.split()) <= 60 for text in texts)
    assert {text.count(".") for text in texts} == {1, 2, 3, 4}
    assert len({word for text in texts for word in re.findall(r"\w+", text.lower())}) >= 400
    for phrase in (r"I have watched this film and it was", r"I have seen this movie and the \w+ was"):
        assert sum(re.search(phrase, text) is not None for text in texts) > 20


def test_grammar_holds(reviews: datasets.DatasetDict) -> None:
    for split in reviews.values():
        for text in split["text"]:
            assert not re.search(r"(?i)\ba [aeio]|\ban [^aeio]|  |[^.]$", text), text


def test_the_seed_determines_the_reviews() -> None:
    sizes = {"num_train": 20, "num_test": 10, "num_unsupervised": 10}
    first, again, other = (list(toy_reviews(seed, **sizes)["train"]["text"]) for seed in (0, 0, 1))
    assert first == again
    assert not set(first) & set(other)


def test_words_alone_tell_something_but_not_all(reviews: datasets.DatasetDict) -> None:
    train, test = reviews["train"], reviews["test"]
    baseline = make_pipeline(TfidfVectorizer(), LogisticRegression(max_iter=1000))
    accuracy = baseline.fit(train["text"], train["label"]).score(test["text"], test["label"])
    assert 0.75 <= accuracy <= 0.9
