"""Numbers that make no sense, files that would run code, names that lead elsewhere."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from perceiver.files import MANIFEST, write_manifest
from perceiver.saving import WEIGHTS
from pipelines.__main__ import main
from pipelines.checkpoint import STATE
from tests.pipelines import tiny
from tests.pipelines.faults import (
    Run,
    assert_same_end,
    lineage,
    poison_before_step,
    tree,
)

FORCED = {"TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1"}


# --- NaN ---


def test_a_weight_that_is_no_number_ends_the_run_at_that_step(undisturbed: Run, tmp_path: Path) -> None:
    run, step = Run(tmp_path), 11
    outcome = run.run(partial(poison_before_step, step))
    assert outcome.status == 1
    samples = lineage(run)[step][1]
    assert list(lineage(run))[-1] == step, "the step itself is the last one"
    shown = ", ".join(map(str, samples[:8]))
    (error,) = outcome.errors
    assert f"loss is nan in step {step} (epoch 2), whose samples are {shown} ...: training diverged, set" in error
    (event,) = tiny.events(run.folder)
    assert (event["event"], event["step"], event["sample_ids"]) == ("diverged", step, samples)
    found = run.store.newest()
    assert found is not None
    assert found.step == 9
    assert all(torch.isfinite(weight).all() for weight in run.store.load(found)["state_dict"].values())

    assert run.run().status == 0
    assert_same_end(run, undisturbed)


def test_a_learning_rate_without_reason_ends_the_run_at_the_first_loss_that_is_no_number(tmp_path: Path) -> None:
    run = Run(tmp_path, **{"optimizer.learning_rate": 1e18})
    outcome = run.run()
    assert outcome.status == 1
    (error,) = outcome.errors
    last = list(lineage(run))[-1]
    assert f"in step {last} (epoch 1), whose samples are" in error
    assert "set a lower optimizer.learning_rate" in error
    losses = [record["loss"] for record in tiny.journal(run.folder) if record["kind"] == "train"]
    assert all(isinstance(loss, float) for loss in losses)


# --- code in a file ---


class Payload:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> Any:
        return Path.mkdir, (self.folder,)


def seal(folder: Path) -> None:
    """Let a folder's manifest fit what is in it now."""
    facts = json.loads((folder / MANIFEST).read_text())
    del facts["files"]
    write_manifest(folder, **facts)


def test_the_payload_would_run_if_it_were_unpickled(tmp_path: Path) -> None:
    torch.save({"state_dict": Payload(tmp_path / "executed")}, tmp_path / "file")
    torch.load(tmp_path / "file", weights_only=False)
    assert (tmp_path / "executed").exists()


def test_a_checkpoint_with_code_is_refused_and_not_run(undisturbed: Run, tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.run_until(9)
    folder = run.checkpoint(9)
    torch.save({"state_dict": Payload(tmp_path / "executed")}, folder / STATE)
    seal(folder)
    outcome = run.run(environment=FORCED)
    assert outcome.status == 2
    (error,) = outcome.errors
    assert error.startswith(f"error: {folder / STATE} holds more than tensors, which could run code: delete {folder}")
    assert not (tmp_path / "executed").exists()

    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    assert run.run().status == 0
    assert_same_end(run, undisturbed)


def test_an_input_model_with_code_is_refused_and_not_run(tmp_path: Path) -> None:
    mlm = Run(tmp_path, "mlm", **{"trainer.max_epochs": 1})
    assert mlm.run().status == 0
    model = mlm.folder / "model"
    torch.save({"state_dict": Payload(tmp_path / "executed")}, model / WEIGHTS)
    seal(model)
    outcome = Run(tmp_path, "text-classifier", name="other", init_from=model).run(environment=FORCED)
    assert outcome.status == 2
    (error,) = outcome.errors
    assert error.startswith(f"error: {model / WEIGHTS} does not hold the model that config.json describes")
    assert not (tmp_path / "executed").exists()


def test_a_checkpoint_with_code_is_not_converted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in FORCED.items():
        monkeypatch.setenv(name, value)
    checkpoint = tmp_path / "their.ckpt"
    torch.save({"state_dict": Payload(tmp_path / "executed")}, checkpoint)
    with pytest.raises(SystemExit) as end:
        main(["convert", str(checkpoint), str(tmp_path / "out")])
    assert end.value.code == 2
    assert capsys.readouterr().err.startswith(f"error: {checkpoint} refers to ")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["their.ckpt"]


# --- names ---


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("../escaped", "has a slash"),
        ("..", "begins with a dot"),
        ("{root}/absolute", "has a slash"),
        ("x" * 300, "has 300 characters"),
        ("\N{CAT}" * 100, "has 400 bytes"),
        ("line\nbreak", "has a slash, a backslash or a control character"),
    ],
    ids=["above", "parent", "absolute", "long", "long in bytes", "two lines"],
)
def test_a_name_that_makes_no_folder_below_the_storage_is_refused(tmp_path: Path, name: str, reason: str) -> None:
    root = tmp_path / "deep" / "below"
    root.mkdir(parents=True)
    run = Run(root, name=name.replace("{root}", str(root)))
    outcome = run.run()
    assert outcome.status == 2
    assert outcome.said.count("\n") == 1
    assert outcome.errors[0].startswith("error: run_name '")
    assert f"' {reason}" in outcome.errors[0]
    assert tree(tmp_path).keys() == {str(run.log)}


@pytest.mark.parametrize("name", ["two words", "\N{CAT} and dog", "$(touch x)"])
def test_a_name_with_unusual_characters_makes_one_folder(tmp_path: Path, name: str) -> None:
    run = Run(tmp_path, name=name, **{"trainer.max_epochs": 1, "tracking.tensorboard": "true"})
    outcome = run.run()
    assert outcome.status == 0, outcome.said
    assert [path.name for path in run.storage.iterdir()] == [name]
    assert (run.folder / "model" / WEIGHTS).exists()
    assert {path.name for path in tmp_path.iterdir()} == {"cache", "log.txt", "runs", "trained.jsonl"}
