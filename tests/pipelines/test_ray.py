"""Through Ray: two workers train as one process does, and one worker needs no process group."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from safetensors.torch import load_file

from pipelines.__main__ import main
from pipelines.cluster import cluster
from pipelines.config import ScalingConfig

pytestmark = pytest.mark.slow

OPTIONS = {
    "data.path": "digits",
    "data.limit": 170,  # not divisible by the batch, whose last one leaves a worker without a sample
    "encoder.num_latents": 4,
    "encoder.num_latent_channels": 16,
    "encoder.num_layers": 2,
    "encoder.num_self_attention_layers_per_block": 1,
    "num_frequency_bands": 4,
    "trainer.max_epochs": 2,
    "trainer.batch_size": 38,
    "tracking.mlflow": "false",
    "tracking.tensorboard": "false",
    "tracking.report": "false",
}


def train(tmp_path: Path, num_workers: int, strategy: str = "ddp") -> Path:
    run_name = f"{strategy}{num_workers}"
    options = {
        **OPTIONS,
        "scaling.num_workers": num_workers,
        "scaling.strategy": strategy,
        "run_name": run_name,
        "storage_path": tmp_path,
        "data.cache_dir": tmp_path / "cache",
    }
    main(["image-classifier", *(f"--{name}={value}" for name, value in options.items())])
    return tmp_path / run_name / "image-classifier"


def read_journal(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_workers_leave_the_journal_and_the_model_of_one_process(strategy: str, tmp_path: Path) -> None:
    one, two = train(tmp_path, 0), train(tmp_path, 2, strategy)
    varying = {"time", "samples_per_second", "data_wait", "checkpoint_wait"}
    for ours, theirs in zip(read_journal(two), read_journal(one), strict=True):
        assert ours.keys() == theirs.keys()
        for name in ours.keys() - varying:
            expected = theirs[name] if isinstance(theirs[name], str) else pytest.approx(theirs[name], rel=1e-4)
            assert ours[name] == expected, name
    ours, theirs = (load_file(folder / "model" / "model.safetensors") for folder in (two, one))
    assert ours.keys() == theirs.keys()
    # The bias of keys cancels in the softmax: its gradient is rounding noise, which Adam blows up to whole steps.
    compared = [name for name in ours if not name.endswith("k_proj.bias")]
    assert max((ours[name] - theirs[name]).abs().max().item() for name in compared) < 1e-4
    assert not (two / ".ray").exists()
    of_two, of_one = (pq.read_table(folder / "predictions.parquet") for folder in (two, one))
    assert of_two.drop(["probabilities"]) == of_one.drop(["probabilities"])
    assert (two / "system-0.jsonl").exists()
    assert not (two / "system-1.jsonl").exists(), "both workers are on one node"
    results = [json.loads((folder / "stage.json").read_text())["result"] for folder in (two, one)]
    assert [result["num_workers"] for result in results] == [2, 1]


def test_one_worker_has_no_process_group_and_two_have_one(tmp_path: Path) -> None:
    import ray.train
    import torch
    from ray.train.torch import TorchTrainer

    from pipelines.ray_train import _GroupIfNeeded

    def has_group() -> bool:
        return torch.distributed.is_initialized()

    with cluster(ScalingConfig(num_workers=2)):
        for num_workers, expected in ((1, False), (2, True)):
            trainer = TorchTrainer(
                has_group,
                torch_config=_GroupIfNeeded(),
                scaling_config=ray.train.ScalingConfig(num_workers=num_workers),
                run_config=ray.train.RunConfig(name=f"workers{num_workers}", storage_path=str(tmp_path)),
            )
            assert trainer.fit().return_value is expected
