"""The stage with a frozen encoder, whole: with the encoder's output kept after the first epoch, and without.

It is the command that a user runs, twice, with one option between them.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from perceiver.build import build_model
from perceiver.config import MaskedLanguageModelConfig, TextDataConfig
from perceiver.data.text import prepare_text
from perceiver.data.tokenizer import vocab_size_of
from perceiver.saving import save_model
from pipelines.checkpoint import CheckpointStore
from pipelines.stage_folder import CHECKPOINTS
from pipelines.storage import Storage
from tests.benchmarks.data import text_config
from tests.benchmarks.settings import REPOSITORY, Settings, say
from tests.benchmarks.workloads import Size, find_workload

KEEP_OPTION = "data.kept_latents_gb"
"""Option of the stage that says how much of the encoder's output may be kept; 0 is none."""
_KEPT_GB = {"without": 0, "with": 10}
_VERB = "text-classifier"
_EPOCHS: dict[Size, int] = {"default": 15, "tiny": 2}
_REVIEWS: dict[Size, int] = {"default": 5000, "tiny": 64}


def measure_frozen_stage(settings: Settings) -> dict[str, Any]:
    """Run the stage without and with the encoder's output kept.

    Returns:
        epochs, reviews and, by "without" and "with", seconds of the whole command, stage_seconds (those of the epochs
        and of the test after them), epoch_seconds (those of the epochs and of encoding for them), val_loss and
        val_accuracy of the best epoch.
    """
    result: dict[str, Any] = {"epochs": _EPOCHS[settings.size], "reviews": _REVIEWS[settings.size]}
    with tempfile.TemporaryDirectory(prefix="perceiver-benchmark-") as folder:
        data = _leave_encoder(settings, Path(folder) / "encoder")
        for name in _KEPT_GB:
            result[name] = _run(Path(folder), name, data, settings)
    return result


def _leave_encoder(settings: Settings, folder: Path) -> TextDataConfig:
    """Save a masked language model with new weights, whose encoder the stage freezes; return the stage's data."""
    mlm = find_workload("mlm", settings.size).model
    assert isinstance(mlm, MaskedLanguageModelConfig)
    frozen = find_workload("frozen", settings.size)
    # A cache of its own, so that what was kept by an earlier run doesn't spare this one the work.
    cache = str(folder.with_name("cache"))
    data = replace(text_config(frozen, settings), limit=_REVIEWS[settings.size], cache_dir=cache)
    tokenizer = prepare_text(data).tokenizer
    mlm = replace(mlm, vocab_size=vocab_size_of(tokenizer))
    folder.mkdir()
    save_model(folder, build_model(mlm), mlm, tokenizer)
    return data


def _run(folder: Path, name: str, data: TextDataConfig, settings: Settings) -> dict[str, float]:
    """Run the command once and return its times and metrics."""
    say(f"    {name} the encoder's output kept")
    command = [sys.executable, "-m", "pipelines", _VERB, *_options(folder, name, data, settings)]
    start = time.perf_counter()
    subprocess.run(command, cwd=REPOSITORY, check=True, stdout=sys.stderr)
    seconds = time.perf_counter() - start
    stage = Storage.from_uri(str(folder / name / _VERB))
    result = json.loads((stage / "stage.json").read_bytes())["result"]
    end = CheckpointStore(stage / CHECKPOINTS).newest()
    assert end is not None
    metrics = {metric: result[metric] for metric in ("val_loss", "val_accuracy")}
    return {"seconds": seconds, "stage_seconds": result["seconds"], "epoch_seconds": end.seconds, **metrics}


def _options(folder: Path, name: str, data: TextDataConfig, settings: Settings) -> list[str]:
    encoder = find_workload("frozen", settings.size).model.encoder
    options: dict[str, Any] = {
        "run_name": name,
        "storage_path": folder,
        "init_from": folder / "encoder",
        "freeze_encoder": "true",
        "data.path": data.path,
        "data.limit": data.limit,
        "data.vocab_size": data.vocab_size,
        "data.max_seq_len": data.max_seq_len,
        "data.cache_dir": data.cache_dir,
        KEEP_OPTION: _KEPT_GB[name],
        "trainer.max_epochs": _EPOCHS[settings.size],
        "encoder.num_latents": encoder.num_latents,
        "encoder.num_latent_channels": encoder.num_latent_channels,
        "encoder.num_self_attention_layers_per_block": encoder.num_self_attention_layers_per_block,
        "scaling.num_workers": 0,
        "tracking.mlflow": "false",
        "tracking.tensorboard": "false",
    }
    return [f"--{option}={value}" for option, value in options.items()]
