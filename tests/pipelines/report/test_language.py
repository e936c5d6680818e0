"""Fills and token accuracies of a masked language model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.report.language import accuracy_by_frequency, fills, token_accuracy
from pipelines.report.parts import MissingSourceError, drawing_style
from tests.pipelines.report.folders import LANGUAGE_MODEL, size_of, sources, write_token_accuracy


def fill_record(epoch: int, token: str, probability: float) -> dict[str, Any]:
    samples = [{"text": "a [MASK] film", "fills": [[[token, probability], ["other", 0.01]]]}]
    return {"kind": "fills", "time": 1.0, "epoch": epoch, "step": epoch, "samples": samples}


def test_fills_have_a_column_per_epoch_and_a_row_per_mask(tmp_path: Path) -> None:
    found = sources(tmp_path, fill_record(0, "the", 0.04), fill_record(1, "great", 0.95), settings=LANGUAGE_MODEL)
    (table,) = fills(found)
    assert table.columns == ["1", "2"]
    ((text, ((name, cells),)),) = table.groups
    assert (text, name) == ("a [MASK] film", "mask 1")
    assert [(cell.text, cell.shade) for cell in cells] == [("the", 0), ("great", 9)]
    assert cells[1].hint == "great 95.0%, other 1.0%"


def test_many_epochs_are_thinned_and_the_last_one_stays(tmp_path: Path) -> None:
    records = [fill_record(epoch, "a", 0.5) for epoch in range(100)]
    (table,) = fills(sources(tmp_path, *records, settings=LANGUAGE_MODEL))
    assert len(table.columns) == 24
    assert (table.columns[0], table.columns[-1]) == ("1", "100")


def test_tokens_of_like_frequency_share_a_bin() -> None:
    counts, correct = np.array([1, 1, 0, 10, 1000]), np.array([0, 1, 0, 5, 900])
    edges, accuracies, tokens = accuracy_by_frequency(counts, correct)
    assert tokens.tolist() == [2, 0, 0, 1, 0, 0, 0, 0, 0, 1]
    assert accuracies[tokens > 0].tolist() == [0.5, 0.5, 0.9]
    np.testing.assert_allclose(edges[:-1][tokens > 0], [1, 10, 1000])


def test_token_accuracy_is_drawn_with_the_overall_share(tmp_path: Path) -> None:
    write_token_accuracy(tmp_path, [1, 1, 8, 90], [0, 1, 4, 45])
    with drawing_style():
        (picture,) = token_accuracy(sources(tmp_path, settings=LANGUAGE_MODEL))
    assert "50.0% of 100 masked tokens" in picture.caption
    assert size_of(picture)


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingSourceError, match=r"there is no token_accuracy\.parquet"):
        token_accuracy(sources(tmp_path, settings=LANGUAGE_MODEL))
    write_token_accuracy(tmp_path, [], [])
    with pytest.raises(MissingSourceError, match="no token was to be restored"):
        token_accuracy(sources(tmp_path, settings=LANGUAGE_MODEL))
    with pytest.raises(MissingSourceError, match="there is no fills record"):
        fills(sources(tmp_path, settings=LANGUAGE_MODEL))
