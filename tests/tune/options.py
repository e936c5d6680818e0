"""The options of small searches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

SPACE = """
encoder.num_latents: {choice: [2, 4, 6]}
encoder.num_cross_attention_heads: {choice: [1, 2, 4]}
optimizer.learning_rate: {log-uniform: [1.0e-3, 1.0e-1]}
"""


def options(root: Path, **changes: Any) -> list[str]:
    """Return the command line of a search over tiny image classifiers, but for the verb.

    Args:
        root: Folder of everything.
        changes: Other options; one that is None is left out.
    """
    space = root / "space.yaml"
    if not space.exists():
        space.write_text(SPACE)
    settings: dict[str, Any] = {
        "run_name": "search",
        "storage_path": root / "runs",
        "space": space,
        "num_samples": 4,
        "data.path": "digits",
        "data.limit": 100,
        "data.cache_dir": root / "cache",
        "encoder.num_latents": 2,
        "encoder.num_latent_channels": 8,
        "encoder.num_layers": 1,
        "encoder.num_self_attention_layers_per_block": 1,
        "num_frequency_bands": 2,
        "trainer.max_epochs": 3,
        "trainer.batch_size": 20,
        "tracking.mlflow": "false",
        **changes,
    }
    return [f"--{name}={value}" for name, value in settings.items() if value is not None]
