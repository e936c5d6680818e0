"""A user's mistake is one line that says what is wrong and how to mend it; nothing starts, nothing is written over."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import ray

from tests.tune.options import options
from tune.__main__ import main

MISTAKES: dict[str, tuple[str, dict[str, Any], str]] = {
    "verb": ("image-clasifier", {}, "unknown verb image-clasifier: did you mean image-classifier?"),
    "option": ("image-classifier", {"num_sample": 3}, "unknown option --num_sample: did you mean --num_samples?"),
    "no-trials": ("image-classifier", {"num_samples": 0}, "num_samples is 0, but must be 1 or more"),
    "no-time": ("image-classifier", {"time_budget": 0}, "time_budget is 0.0, but must be above 0"),
    "metric": ("image-classifier", {"metric": "val_f1"},
               "--metric is val_f1, but trials report val_loss and val_accuracy: choose one of them"),
    "scheduler": ("image-classifier", {"scheduler": "bohb"}, "--scheduler: expected one of 'asha', 'pbt', 'none'"),
    "space": ("image-classifier", {"space": "{root}/none.yaml"}, "--space {root}/none.yaml does not exist"),
    "field": ("image-classifier", {"space": "{root}/field.yaml"},
              "--space {root}/field.yaml: encoder.latents is no field of the configuration: did you mean enc"),
    "nothing": ("image-classifier", {"space": "{root}/nothing.yaml"},
                "--space gives nothing that the configuration accepts (num_cross_attention_heads is "),
    "cpus": ("image-classifier", {"resources_per_trial": '{"CPU": 4096}'}, "a trial needs 4096 CPU"),
    "workers": ("image-classifier", {"workers_per_trial": 4096}, "a trial needs 4096 CPU"),
    "shared-gpu": ("image-classifier", {"workers_per_trial": 2, "resources_per_trial": '{"GPU": 0.5}'},
                   "resources_per_trial is GPU: 0.5, but must be whole CPUs and one GPU or none where"),
    "scaling": ("image-classifier", {"scaling.num_workers": 2}, "use --workers_per_trial and --resources_per_trial"),
    "pbt-workers": ("image-classifier", {"scheduler": "pbt", "workers_per_trial": 2}, "workers_per_trial is 2, but"),
    "pbt-space": ("image-classifier", {"scheduler": "pbt"}, "which --scheduler pbt can't change in the middle"),
    "pbt-chain": ("sentiment", {"scheduler": "pbt", "space": None, "num_frequency_bands": None,
                                "trainer.max_epochs": None, "trainer.batch_size": None},
                  "--scheduler pbt needs a pipeline of one stage: use --scheduler asha for sentiment"),
    "data": ("image-classifier", {"data.path": "{root}/nowhere/"}, "{root}/nowhere/ does not exist"),
    "name": ("image-classifier", {"run_name": "a/b"}, "run_name 'a/b' has a slash"),
    "taken-by-a-run": ("image-classifier", {"run_name": "run"}, "runs/run is there, but is no search: choose another"),
    "taken-by-a-search": ("image-classifier", {"run_name": "old"}, "runs/old holds a search already: go on with"),
    "resume-nothing": ("image-classifier", {"resume": "true"}, "--resume needs a search to go on with, but {root}/"),
    "resume-another": ("image-classifier", {"resume": "true", "run_name": "old"}, "its pipeline was another: use the"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_mistake(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray, "init", lambda *args, **kwargs: pytest.fail("Ray started in spite of the mistake"))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    (tmp_path / "field.yaml").write_text("encoder.latents: {choice: [1]}")
    (tmp_path / "nothing.yaml").write_text("encoder.num_cross_attention_heads: {choice: [3, 5]}")
    (tmp_path / "runs" / "run" / "mlm").mkdir(parents=True)
    (tmp_path / "runs" / "old").mkdir()
    (tmp_path / "runs" / "old" / "search.json").write_text(json.dumps({"verb": "mlm"}))
    before = sorted((tmp_path / "runs").rglob("*"))

    verb, changes, message = MISTAKES[name]
    filled = {
        key: value.replace("{root}", str(tmp_path)) if isinstance(value, str) else value
        for key, value in changes.items()
    }
    with pytest.raises(SystemExit) as end:
        main([verb, *options(tmp_path, **filled)])
    assert end.value.code == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1
    assert message.replace("{root}", str(tmp_path)) in said[0]
    after = [path for path in (tmp_path / "runs").rglob("*") if path.name not in (".lock", "search")]
    assert sorted(after) == before


def test_overview(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main([])
    assert end.value.code == 0
    assert "image-classifier" in capsys.readouterr().out
