"""Small parts of the real data sets, through the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from perceiver.inference import load
from pipelines.__main__ import main

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]


def run(verb: str, tmp_path: Path, **options: Any) -> Path:
    """Run a pipeline; double underscores in option names stand for dots."""
    shared = {"storage_path": tmp_path, "run_name": "real", "data__cache_dir": tmp_path / "cache"}
    main([verb, *(f"--{name.replace('__', '.')}={value}" for name, value in {**shared, **options}.items())])
    return tmp_path / "real"


def result(folder: Path) -> dict[str, Any]:
    state = json.loads((folder / "stage.json").read_text())
    assert state["status"] == "finished"
    values: dict[str, Any] = state["result"]
    return values


def test_digits_of_mnist_are_told_apart(real_data: Path, tmp_path: Path) -> None:
    folder = run(
        "image-classifier",
        tmp_path,
        data__path=real_data / "mnist",
        data__limit=2500,
        encoder__num_latents=16,
        encoder__num_latent_channels=64,
        encoder__num_layers=2,
        encoder__num_self_attention_layers_per_block=2,
        num_frequency_bands=16,
        optimizer__learning_rate=0.002,
        optimizer__schedule="cosine",
        trainer__max_epochs=4,
        trainer__batch_size=32,
        scaling__num_workers=0,
    )
    outcome = result(folder / "image-classifier")
    assert outcome["test_samples"] == 2500
    assert outcome["test_accuracy"] > 0.5  # a tenth would be chance


def test_chain_on_imdb_with_two_workers(real_data: Path, tmp_path: Path) -> None:
    folder = run(
        "sentiment",
        tmp_path,
        data__path=real_data / "imdb",
        data__limit=800,
        data__max_seq_len=128,
        encoder__num_latents=16,
        encoder__num_latent_channels=32,
        encoder__num_layers=2,
        encoder__num_self_attention_layers_per_block=1,
        mlm__optimizer__learning_rate=0.01,
        mlm__trainer__max_epochs=1,
        frozen__trainer__max_epochs=1,
        finetune__trainer__max_epochs=1,
        scaling__num_workers=2,
    )
    results = {name: result(folder / name) for name in ("mlm", "frozen", "finetune")}
    assert {outcome["val_samples"] for outcome in results.values()} == {800}
    assert {outcome["test_samples"] for outcome in results.values()} == {800}
    assert results["mlm"]["val_loss"] < 8.5  # it began near ln(10003) = 9.2
    baselines = json.loads((folder / "baselines.json").read_text())["test_accuracy"]
    assert baselines["tfidf_logistic_regression"] > 0.75 > baselines["majority"] > 0.4
    texts = ["i have watched this [MASK] and it was awesome"]
    assert len(load(folder / "mlm" / "model").fill(texts)[0]["fills"][0]) == 5
    assert load(folder / "finetune" / "model").classify(["a wonderful film"])[0]["label"] in ("neg", "pos")
