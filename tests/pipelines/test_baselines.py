import time

import pytest

from pipelines.baselines import text_baselines

GOOD = ["a wonderful film", "wonderful acting and a fine story", "fine and moving", "a fine, wonderful evening"]
BAD = ["a dull film", "dull acting and an awful story", "awful and slow", "an awful, dull evening"]


def test_separable_texts_are_learned_and_the_majority_is_counted():
    train_labels = [1] * 4 + [0] * 3
    result = text_baselines(GOOD + BAD[:3], train_labels, ["wonderful", "fine", "dull", "awful film"], [1, 1, 0, 0])
    assert result == {"majority": 0.5, "tfidf_logistic_regression": 1.0}


def test_result_depends_on_nothing_but_the_texts():
    arguments = (GOOD + BAD, [1] * 4 + [0] * 4, ["fine story", "slow", "film"], [1, 0, 0])
    assert text_baselines(*arguments) == text_baselines(*arguments)


def test_more_than_two_classes():
    result = text_baselines(["red", "green", "blue", "blue"], [0, 1, 2, 2], ["green", "blue", "red"], [1, 2, 0])
    assert result == {"majority": pytest.approx(1 / 3), "tfidf_logistic_regression": 1.0}


def test_word_order_counts():
    train = ["not good but bad", "not bad but good"] * 3
    result = text_baselines(train, [0, 1] * 3, ["not good", "not bad"], [0, 1])
    assert result["tfidf_logistic_regression"] == 1.0


@pytest.mark.parametrize(("train", "labels"), [(["good film"], [1]), (["a", "b"], [0, 1])])
def test_too_little_to_train_on_leaves_the_majority(train, labels):
    assert text_baselines(train, labels, ["a film"], [labels[0]]) == {"majority": 1.0}


@pytest.mark.slow
def test_imdb_reviews(real_data):
    import datasets

    data = datasets.load_dataset(str(real_data / "imdb"))
    train, test = data["train"], data["test"]
    started = time.monotonic()
    result = text_baselines(list(train["text"]), list(train["label"]), list(test["text"]), list(test["label"]))
    assert result["majority"] == 0.5
    assert result["tfidf_logistic_regression"] > 0.90
    assert time.monotonic() - started < 120
