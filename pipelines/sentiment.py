"""What the chain of stages shows beside its results: simple classifiers on the same splits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from perceiver.config import TextDataConfig
from perceiver.data.fingerprint import fingerprint_dataset, fingerprint_of
from perceiver.data.text import split_text
from pipelines.baselines import text_baselines
from pipelines.storage import Storage

BASELINES = "baselines.json"
BASELINE_NAMES = {"majority": "commonest class", "tfidf_logistic_regression": "TF-IDF + logistic regression"}


def baselines(config: TextDataConfig, run_folder: Storage, say: Callable[[str], None]) -> dict[str, float]:
    """Return the test accuracy of simple classifiers on the same splits, computed once per data.

    Args:
        config: Texts and labels.
        run_folder: Folder of the run, where the figures are kept.
        say: Called with a line before a longer computation.

    Returns:
        Test accuracy by name of the classifier.
    """
    texts = split_text(config)
    identity = fingerprint_of(fingerprint_dataset(texts.train), fingerprint_dataset(texts.test))
    kept: dict[str, Any] = (run_folder / BASELINES).read_json() or {}
    if kept.get("data") != identity:
        say(f"baselines: TF-IDF + logistic regression on {len(texts.train)} texts")
        figures = text_baselines(
            texts.train["text"][:], texts.train["label"][:], texts.test["text"][:], texts.test["label"][:]
        )
        kept = {"data": identity, "test_accuracy": figures}
        (run_folder / BASELINES).write_json(kept)
    accuracies: dict[str, float] = kept["test_accuracy"]
    return accuracies
