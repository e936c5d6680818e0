"""Comparing runs: what differs, which samples changed sides, and what can't be compared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from perceiver.config import TextDataConfig
from perceiver.data.text import split_text
from pipelines.__main__ import main
from pipelines.models.changed_predictions import contrast
from pipelines.predictions import PREDICTIONS, Predictions
from tests.pipelines.test_pipeline import chain, digits


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A storage path with two chains and an image classifier."""
    storage, cache = tmp_path_factory.mktemp("runs"), tmp_path_factory.mktemp("cache")
    main(chain(storage, cache, {"run_name": "first", "baselines": "false"}))
    options = {"run_name": "second", "baselines": "false", "finetune.dropout": 0.3, "scaling.num_workers": 1}
    main(chain(storage, cache, options))
    main(digits(storage, cache, {"run_name": "images"}))
    return storage


def rows_of_test_split(runs: Path) -> Any:
    settings = json.loads((runs / "first" / "finetune" / "stage.json").read_text())["settings"]["data"]
    config = TextDataConfig(path="toy_reviews", limit=settings["limit"], cache_dir=str(runs / "unused"))
    return split_text(config).test


def write_predictions(run: Path, labels: list[int], wrong: list[int], stage: str = "finetune") -> None:
    """Write what a stage leaves, in an order of its own: all right but for some samples."""
    predicted = np.array(labels)
    predicted[wrong] = 1 - predicted[wrong]
    sure = np.where(np.arange(len(labels)) == 4, 0.99, 0.6)  # sample 4 changes most
    probabilities = np.stack([np.where(predicted == k, sure, 1 - sure) for k in (0, 1)], axis=1).astype(np.float32)
    columns = {
        "sample_id": pa.array(range(len(labels)), pa.int64()),
        "label": pa.array(labels, pa.int64()),
        "predicted": pa.array(predicted, pa.int64()),
        "probabilities": pa.array(probabilities.tolist(), pa.list_(pa.float32())),
    }
    pq.write_table(pa.table(columns).take(np.arange(len(labels))[::-1]), run / stage / PREDICTIONS)


@pytest.fixture
def predicted(runs: Path) -> Path:
    """The storage path with predictions of both chains: of 0 to 3 and of 2 to 4 they are wrong."""
    labels = rows_of_test_split(runs)["label"][:]
    write_predictions(runs / "first", labels, wrong=[0, 1, 2, 3])
    write_predictions(runs / "second", labels, wrong=[2, 3, 4])
    return runs


def compare(runs: Path, *names: str, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    with pytest.raises(SystemExit, match="0"):
        main(["compare", *names, f"--storage_path={runs}", "--format=json"])
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    return result


def test_settings_and_results_that_differ_are_listed(predicted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = compare(predicted, "first", "second", capsys=capsys)
    assert found["task"] == "text_classifier"
    assert found["settings"] == {"finetune.dropout": [0.1, 0.3], "scaling.num_workers": [0, 1]}
    assert list(found["stages"]) == ["mlm", "frozen", "finetune"]
    for name, run in enumerate(("first", "second")):
        result = json.loads((predicted / run / "finetune" / "stage.json").read_text())["result"]
        for metric in ("test_accuracy", "val_loss", "parameters", "seconds"):
            assert found["stages"]["finetune"][metric][name] == result[metric]


def test_samples_that_changed_sides_are_counted_and_shown(predicted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = compare(predicted, "first", "second", capsys=capsys)["predictions"]
    (counts,) = found["contrasts"]
    numbers = {name: counts[name] for name in ("fixed", "broken", "both_wrong", "changed")}
    assert numbers == {"fixed": 2, "broken": 1, "both_wrong": 2, "changed": 3}
    assert counts["p_value"] == pytest.approx(1.0)
    assert [sample["sample_id"] for sample in found["samples"]] == [4, 0, 1]
    rows = rows_of_test_split(predicted)
    names = json.loads((predicted / "first" / "finetune" / "model" / "config.json").read_text())["class_names"]
    for sample in found["samples"]:
        row = rows[sample["sample_id"]]
        assert sample["text"] == row["text"]
        assert sample["label"] == names[row["label"]]
        assert sorted(sample["predicted"]) == sorted(names)


def test_mcnemar_is_a_fair_coin_for_the_samples_that_changed_sides() -> None:
    labels, wrong = np.zeros(20, np.int64), np.zeros((20, 2), np.float32)
    first = Predictions(np.arange(20), labels, np.array([1] * 9 + [0] * 11), wrong)
    other = Predictions(np.arange(20), labels, np.array([0] * 8 + [1] + [0] * 10 + [1]), wrong)
    found = contrast("other", first, other)
    assert (found.fixed, found.broken, found.both_wrong) == (8, 1, 1)
    assert found.p_value == pytest.approx(2 * (1 + 9) / 2**9)


def test_the_tables_name_what_the_json_has(predicted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["compare", "first", "second", f"--storage_path={predicted}", "--num_samples=1"])
    out = capsys.readouterr().out
    for part in ("settings that differ", "finetune.dropout", "p (McNemar)", "sample 4 is", "test_accuracy"):
        assert part in out
    assert sum(line.startswith("sample ") for line in out.splitlines()) == 1


def test_what_cannot_be_compared_is_said(predicted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (predicted / "second" / "finetune" / PREDICTIONS).write_bytes(b"nothing")
    found = compare(predicted, "first", "second", capsys=capsys)
    assert "is damaged" in found["predictions"]["reason"]
    assert found["settings"]
    (predicted / "second" / "finetune" / PREDICTIONS).unlink()
    found = compare(predicted, "first", "second", capsys=capsys)["predictions"]
    assert found["reason"] == f"second left no {PREDICTIONS}"
    assert found["contrasts"] == []
    state = predicted / "second" / "finetune" / "stage.json"
    content = state.read_text()
    state.write_text(json.dumps({**json.loads(content), "data_fingerprint": "another"}))
    try:
        found = compare(predicted, "first", "second", capsys=capsys)["predictions"]
    finally:
        state.write_text(content)
    assert found["reason"] == "the runs have different data"


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["first"], "must be two or more"),
        (["first", "frist"], "there is no run"),
        (["first", "first"], "are not all different"),
        (["first", "images"], "are of different tasks (text_classifier, image_classifier)"),
    ],
)
def test_a_mistake_is_one_line(names: list[str], expected: str, runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["compare", *names, f"--storage_path={runs}"])
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert expected in err
