"""The card of a model says what it is, in the form of the hub, and is as safe as the weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from perceiver.files import DamagedFolderError, read_manifest, write_manifest
from perceiver.inference import load
from perceiver.saving import CARD
from pipelines.config import StageConfig
from pipelines.models.card import Baseline, render_card
from pipelines.stages import StagePlan, prepare
from pipelines.storage import Storage
from tests.pipelines.tiny import image_config, mlm_config, text_classifier_config, train

RESULT = {
    "epochs": 2, "steps": 1234, "best_epoch": 1, "val_loss": 0.5, "val_accuracy": 0.75, "val_samples": 56.0,
    "test_loss": 0.6, "test_accuracy": 0.7, "test_samples": 1056.0, "parameters": 12345, "seconds": 3.0,
    "flops_per_sample": 123456789,
}  # fmt: skip


def card_of(config: StageConfig, folder: Path, baseline: Baseline | None = None, **data: Any) -> tuple[str, ModelCard]:
    """Render a card and parse it as the hub does."""
    prepared = prepare(config)
    if data:
        config = replace(config, data=replace(config.data, **data))
    plan = StagePlan("stage", config, prepared, Storage.from_uri(folder / "run" / "stage"))
    text = render_card(plan, RESULT, baseline or Baseline("commonest class", 0.1))
    return text, ModelCard(text)


def test_the_card_of_a_masked_language_model(tmp_path: Path) -> None:
    text, card = card_of(mlm_config(tmp_path), tmp_path, Baseline("commonest token", 0.05, 5.5))
    facts = card.data.to_dict()
    assert (facts["library_name"], facts["pipeline_tag"]) == ("perceiver-ray", "fill-mask")
    assert facts["tags"] == ["perceiver-io", "synthetic-data"]
    assert facts["metrics"] == ["accuracy"]
    assert "license" not in facts
    (figure,) = card.data.eval_results
    assert (figure.dataset_type, figure.metric_value) == ("toy_reviews", 0.7)
    assert "**The data is synthetic.**" in text
    assert "| loss | 0.5000 | 0.6000 | 5.5000 |\n" in text
    assert "| accuracy | 75.00% | 70.00% | 5.00% |\n" in text
    assert "| samples | 56 | 1,056 |  |\n" in text
    assert "first 24 tokens" in text
    assert "| Operations per training sample | 123.5 million |" in text
    assert "2 epochs, 1,234 steps of 16 samples with Adam and a learning rate of 0.01 (cosine), seed 0.\n" in text
    assert "those of epoch 1, which had the best validation loss. The test split took no part in choosing them." in text
    assert 'model.fill(["what a [MASK] film"])' in text


def test_the_card_of_an_image_classifier(tmp_path: Path) -> None:
    text, card = card_of(image_config(tmp_path), tmp_path)
    assert card.data.pipeline_tag == "image-classification"
    assert card.data.tags == ["perceiver-io"]
    assert "synthetic" not in text
    assert "Classes: `0`, `1`, `2`, `3`" in text
    assert "| Images | 6 x 6 x 1 (height, width, channels) |" in text
    assert "(B, 6, 6, 1) with values in [-1, 1]" in text
    assert "| loss | 0.5000 | 0.6000 |  |" in text


@pytest.mark.parametrize(
    ("path", "shown", "datasets"),
    [
        ("stanfordnlp/imdb", "`stanfordnlp/imdb`", ["stanfordnlp/imdb"]),
        ("/home/somebody/private/reviews.csv", "`reviews.csv`", None),
        ("s3://key:secret@bucket/reviews?token=x", "`reviews`", None),
    ],
)
def test_where_the_data_lies_stays_with_who_trained(tmp_path: Path, path: str, shown: str, datasets: Any) -> None:
    text, card = card_of(text_classifier_config(tmp_path), tmp_path, path=path)
    assert shown in text
    assert not any(word in text for word in ("somebody", "secret", "token=x"))
    assert card.data.datasets == datasets


def test_the_card_lies_in_the_model_folder_and_its_manifest(tmp_path: Path) -> None:
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        train(image_config(tmp_path), folder)
    one, two = ((folder / "model" / CARD).read_text().splitlines() for folder in folders)
    assert [line for line, other in zip(one, two, strict=True) if line != other] == []
    assert CARD in read_manifest(folders[0] / "model")["files"]
    (folders[0] / "model" / CARD).write_text("another")
    with pytest.raises(DamagedFolderError):
        load(folders[0] / "model")


def test_another_card_is_not_another_input_model(tmp_path: Path) -> None:
    train(mlm_config(tmp_path), tmp_path / "mlm")
    config = text_classifier_config(tmp_path, init_from=str(tmp_path / "mlm" / "model"))
    fingerprint = prepare(config).fingerprint
    (tmp_path / "mlm" / "model" / CARD).unlink()
    write_manifest(tmp_path / "mlm" / "model")
    assert prepare(config).fingerprint == fingerprint
    load(tmp_path / "mlm" / "model").fill(["a [MASK] film"])
