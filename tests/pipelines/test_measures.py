"""What a stage leaves behind beside its model: predictions, the accuracy of tokens, and how fast it was."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from perceiver.flops import flops_per_sample
from perceiver.tasks.tested import SamplePredictions, TokenCounts
from pipelines.baselines import majority_accuracy, unigram_baseline
from pipelines.control import Link
from pipelines.measures import TOKEN_ACCURACY, predictions_table, token_accuracy_table
from pipelines.predictions import PREDICTIONS
from pipelines.sink import metric_items, summary_of
from pipelines.stages import StagePlan, prepare
from pipelines.storage import Storage
from pipelines.worker import run_stage
from tests.pipelines.tiny import STEPS, image_config, mlm_config, text_classifier_config, train


def records(folder: Path, kind: str) -> list[dict[str, Any]]:
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [record for record in lines if record["kind"] == kind]


def test_tables_have_the_columns_and_types_that_readers_expect() -> None:
    probabilities = np.array([[0.25, 0.75], [0.5, 0.5]], np.float32)
    table = predictions_table(SamplePredictions(np.array([3, 4]), np.array([1, 0]), np.array([1, 1]), probabilities))
    assert table.schema == pa.schema(
        {"sample_id": pa.int64(), "label": pa.int64(), "predicted": pa.int64(), "probabilities": pa.list_(pa.float32())}
    )
    assert table.to_pylist()[0] == {"sample_id": 3, "label": 1, "predicted": 1, "probabilities": [0.25, 0.75]}


def test_a_classifier_leaves_its_prediction_for_each_sample(tmp_path: Path) -> None:
    config = image_config(tmp_path)
    result = train(config, tmp_path / "run")
    table = pq.read_table(tmp_path / "run" / PREDICTIONS)
    assert table["sample_id"].to_pylist() == list(range(56))
    labels, predicted = table["label"].to_numpy(), table["predicted"].to_numpy()
    assert (labels == predicted).mean() == pytest.approx(result["test_accuracy"])
    probabilities = np.stack(table["probabilities"].to_numpy())
    assert probabilities.shape == (56, 10)
    assert -np.log(probabilities[np.arange(56), labels]).mean() == pytest.approx(result["test_loss"], rel=1e-5)
    assert not (tmp_path / "run" / TOKEN_ACCURACY).exists()
    assert (result["device"], result["num_workers"]) == ("CPU", 1)
    assert result["flops_per_sample"] == flops_per_sample(prepare(config).model)
    assert all("tokens_per_second" not in record for record in records(tmp_path / "run", "train"))


def test_a_masked_language_model_leaves_the_accuracy_of_each_token(tmp_path: Path) -> None:
    config = mlm_config(tmp_path)
    prepared = prepare(config)
    result = train(config, tmp_path / "run", prepared)
    table = pq.read_table(tmp_path / "run" / TOKEN_ACCURACY)
    assert table.schema.types == [pa.int32(), pa.string(), pa.int64(), pa.int64()]
    rows = table.to_pylist()
    tokenizer = prepared.load_tokenizer()
    assert all(tokenizer.id_to_token(row["token_id"]) == row["token"] and row["count"] > 0 for row in rows)
    accuracy = sum(row["correct"] for row in rows) / sum(row["count"] for row in rows)
    assert accuracy == pytest.approx(result["test_accuracy"])
    steps = records(tmp_path / "run", "train")
    assert len(steps) == STEPS
    for record in steps:
        tokens_per_sample = record["tokens_per_second"] / record["samples_per_second"]
        assert 10 < tokens_per_sample < config.data.max_seq_len + 0.1  # rates are rounded


def test_a_frozen_encoder_is_not_counted(tmp_path: Path) -> None:
    train(mlm_config(tmp_path), tmp_path / "mlm")
    config = text_classifier_config(tmp_path, init_from=str(tmp_path / "mlm" / "model"), freeze_encoder=True)
    prepared = prepare(config)
    frozen = train(config, tmp_path / "frozen", prepared)
    assert frozen["flops_per_sample"] == flops_per_sample(prepared.model, trains_encoder=False)
    assert frozen["flops_per_sample"] < flops_per_sample(prepared.model) / 10
    assert len(pq.read_table(tmp_path / "frozen" / PREDICTIONS)) == 56
    assert all("tokens_per_second" not in record for record in records(tmp_path / "frozen", "train"))


def test_a_trial_leaves_none_of_it(tmp_path: Path) -> None:
    config = image_config(tmp_path, trainer=replace(image_config(tmp_path).trainer, max_epochs=1))
    plan = StagePlan("stage", config, prepare(config), Storage.from_uri(tmp_path / "run"), tests=False)
    result = run_stage(plan, Link(lambda state: None))
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"checkpoints", "metrics.jsonl", "model"}
    assert not (tmp_path / "run" / "model" / "README.md").exists()
    assert result["flops_per_sample"] > 0


def test_texts_in_a_result_are_no_metrics() -> None:
    result = {"test_accuracy": 0.5, "device": "CPU", "flops_per_sample": 7, "test_note": "x"}
    assert summary_of({"mlm": result}) == {"mlm_test_accuracy": 0.5}
    assert metric_items(result) == {"test_accuracy": 0.5, "flops_per_sample": 7.0}


def test_baselines_name_what_is_commonest_in_training() -> None:
    assert majority_accuracy(np.array([0, 1, 1]), np.array([0, 0, 1, 2])) == 0.25
    accuracy, loss = unigram_baseline(np.array([0, 5, 2]), np.array([1, 2, 1]))
    assert accuracy == 0.5
    assert loss == pytest.approx(-(np.log(0.1) + 2 * np.log(0.6) + np.log(0.3)) / 4)


def test_tokens_that_were_never_masked_have_no_row(tmp_path: Path) -> None:
    tokenizer = prepare(mlm_config(tmp_path)).load_tokenizer()
    counts = TokenCounts(np.array([0, 0, 0, 4, 0, 1]), np.array([0, 0, 0, 3, 0, 0]))
    assert token_accuracy_table(counts, tokenizer).to_pylist() == [
        {"token_id": 3, "token": tokenizer.id_to_token(3), "count": 4, "correct": 3},
        {"token_id": 5, "token": tokenizer.id_to_token(5), "count": 1, "correct": 0},
    ]
