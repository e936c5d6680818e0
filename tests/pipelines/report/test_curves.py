"""Courses over the steps: what becomes of long ones, and of those that were not recorded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipelines.report import curves
from pipelines.report.parts import MissingSourceError, drawing_style
from tests.pipelines.report.folders import LANGUAGE_MODEL, size_of, sources, train_records

VALIDATION = {"kind": "validation", "time": 1030.0, "epoch": 0, "step": 20, "val_loss": 0.3, "val_accuracy": 0.8}


def test_a_short_course_stays_as_it_is() -> None:
    assert curves.thinned([1.0, 2.0, 3.0]).tolist() == [1, 2, 3]


def test_a_long_course_is_made_of_means_of_neighbours() -> None:
    assert curves.thinned([1, 3, 5, 7], most=2).tolist() == [2, 6]
    thin = curves.thinned(np.arange(100_001.0))
    assert len(thin) == 800
    assert thin.mean() == pytest.approx(50_000, rel=1e-3)


def test_a_smoothed_course_keeps_a_constant_and_evens_out_noise() -> None:
    assert curves.smoothed(np.full(200, 3.0)) == pytest.approx(3.0)
    noise = np.random.default_rng(0).normal(size=1000)
    assert curves.smoothed(noise).std() < 0.3 * noise.std()


def test_loss_and_accuracy_are_drawn_with_restarts(tmp_path: Path) -> None:
    restart = {"kind": "event", "time": 1010.0, "epoch": 0, "step": 10, "event": "restart", "reason": "a node died"}
    drawn = []
    for events in ([], [restart]):
        found = sources(tmp_path, *train_records(20), *events, VALIDATION, best_epoch=1, test_accuracy=0.75)
        with drawing_style():
            drawn.append([*curves.loss(found), *curves.accuracy(found)])
    without, with_restart = drawn
    assert [picture.name for picture in with_restart] == ["loss", "accuracy"]
    assert all(size_of(picture) for picture in with_restart)
    assert all(one.png != other.png for one, other in zip(without, with_restart, strict=True))


def test_perplexity_tells_that_of_the_test(tmp_path: Path) -> None:
    found = sources(tmp_path, *train_records(20), VALIDATION, settings=LANGUAGE_MODEL, test_loss=np.log(12.5))
    with drawing_style():
        assert "12.5" in curves.perplexity(found)[0].caption


def test_waiting_tells_the_mean_shares(tmp_path: Path) -> None:
    records = [*train_records(10, data_wait=0.5, checkpoint_wait=0.0), *train_records(10, data_wait=0.1)]
    with drawing_style():
        caption = curves.waiting(sources(tmp_path, *records))[0].caption
    assert caption == "Mean over the steps: 30.0% for data, 0.0% for checkpoints."


def test_speed_is_drawn_with_tokens_and_without(tmp_path: Path) -> None:
    with drawing_style():
        alone = curves.speed(sources(tmp_path, *train_records(5, samples_per_second=100.0)))
        both = curves.speed(sources(tmp_path, *train_records(5, samples_per_second=100.0, tokens_per_second=9000.0)))
    assert alone[0].png != both[0].png


def test_what_was_not_recorded_is_named_with_the_option_that_records_it(tmp_path: Path) -> None:
    found = sources(tmp_path, *train_records(5))
    with pytest.raises(MissingSourceError, match=r"trainer\.log_gradient_norm"):
        curves.gradient_norm(found)
    with pytest.raises(MissingSourceError, match="no train record has samples_per_second"):
        curves.speed(found)
    with pytest.raises(MissingSourceError, match="no train record has data_wait"):
        curves.waiting(found)
