"""Figures of a classifier's predictions against those that were computed by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipelines.report.classification import calibrate, confusion, reliability, roc
from pipelines.report.parts import MissingSourceError, drawing_style
from tests.pipelines.report.folders import size_of, sources, write_predictions

# Of confidence 0.95, 0.95, 0.65 and 0.55; right, wrong, right and wrong.
LABELS, PROBABILITIES = [0, 1, 1, 0], [[0.95, 0.05], [0.95, 0.05], [0.35, 0.65], [0.45, 0.55]]


@pytest.fixture
def stage(tmp_path: Path) -> Path:
    write_predictions(tmp_path / "stage", LABELS, PROBABILITIES)
    return tmp_path / "stage"


def test_expected_calibration_error_is_that_computed_by_hand(stage: Path) -> None:
    found = calibrate(sources(stage).predictions)
    np.testing.assert_allclose(found.confidence, [0.55, 0.65, 0.95], atol=1e-6)
    np.testing.assert_allclose(found.accuracy, [0.0, 1.0, 0.5])
    assert found.counts.tolist() == [1, 1, 2]
    assert found.error == pytest.approx((0.55 + 0.35 + 2 * 0.45) / 4)


def test_expected_calibration_error_is_that_of_torchmetrics(tmp_path: Path) -> None:
    import torch
    from torchmetrics.functional.classification import multiclass_calibration_error

    logits = torch.randn(500, 7, dtype=torch.float64) * 2
    probabilities, labels = logits.softmax(dim=-1).float(), torch.randint(7, (500,))
    write_predictions(tmp_path, labels.tolist(), probabilities.numpy())
    expected = multiclass_calibration_error(probabilities, labels, num_classes=7, n_bins=10)
    assert calibrate(sources(tmp_path).predictions).error == pytest.approx(expected.item(), abs=1e-6)


def test_predictions_that_are_sure_and_right_are_calibrated(tmp_path: Path) -> None:
    write_predictions(tmp_path, [0, 1], [[1.0, 0.0], [0.0, 1.0]])
    assert calibrate(sources(tmp_path).predictions).error == 0.0


def test_captions_say_what_was_found(stage: Path) -> None:
    found = sources(stage)
    with drawing_style():
        pictures = [*confusion(found), *reliability(found), *roc(found)]
    assert [picture.name for picture in pictures] == ["confusion", "reliability", "roc"]
    assert "4 test samples" in pictures[0].caption
    assert "Expected calibration error 45.00%" in pictures[1].caption
    assert all(min(size_of(picture)) > 300 for picture in pictures)


def test_class_names_with_dollars_and_foreign_letters_can_be_drawn(stage: Path) -> None:
    found = sources(stage)
    found.class_names = [r"$\frac{", "批" * 100]
    with drawing_style():
        assert size_of(confusion(found)[0])


def test_a_test_split_of_one_class_has_no_roc_curve(tmp_path: Path) -> None:
    write_predictions(tmp_path, [1, 1], [[0.2, 0.8], [0.9, 0.1]])
    with pytest.raises(MissingSourceError, match="one class only"):
        roc(sources(tmp_path))


def test_the_worst_errors_are_the_surest(tmp_path: Path) -> None:
    write_predictions(tmp_path, [0, 1, 1, 1], [[0.4, 0.6], [0.9, 0.1], [0.1, 0.9], [0.7, 0.3]], [5, 6, 7, 8])
    predictions = sources(tmp_path).predictions
    assert predictions.sample_ids[predictions.worst_errors(2)].tolist() == [6, 8]
    assert predictions.sample_ids[predictions.worst_errors(9)].tolist() == [6, 8, 5]


def test_missing_and_damaged_predictions_are_named(tmp_path: Path) -> None:
    with pytest.raises(MissingSourceError, match=r"there is no predictions\.parquet"):
        sources(tmp_path).predictions  # noqa: B018
    (tmp_path / "predictions.parquet").write_bytes(b"PAR1 torn")
    with pytest.raises(MissingSourceError, match="damaged"):
        sources(tmp_path).predictions  # noqa: B018
