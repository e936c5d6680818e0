"""What is done about a stage that ran before, and what its folder says about it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from perceiver.config import TrainerConfig
from perceiver.files import write_manifest
from pipelines.cli import Command, parse
from pipelines.config import RunConfig, ScalingConfig, SentimentConfig, StageConfig, TrackingConfig
from pipelines.stage_folder import Decision, StageFolder, write_config
from pipelines.stages import Prepared, fingerprint
from pipelines.storage import Storage
from tests.pipelines.tiny import image_config, mlm_config, text_classifier_config, text_data

RUN = RunConfig("some run", "some/where", ScalingConfig(num_workers=0), TrackingConfig(mlflow=False))


def prepared_for(config: StageConfig, data: str = "data", source: str = "input") -> Prepared:
    """Say what `prepare` would say, without any data."""
    model = mlm_config(Path("cache")).model(300)
    return Prepared(model, None, data, fingerprint(config, data, source), False)


CONFIG = mlm_config(Path("cache"))
PREPARED = prepared_for(CONFIG)


@pytest.fixture
def folder(tmp_path: Path) -> StageFolder:
    return StageFolder(Storage.from_uri(tmp_path / "run"), "mlm")


@pytest.fixture
def finished(folder: StageFolder, tmp_path: Path) -> StageFolder:
    """A folder whose stage is finished."""
    folder.begin(CONFIG, PREPARED, RUN)
    model = tmp_path / "run" / "mlm" / "model"
    model.mkdir()
    (model / "model.safetensors").write_bytes(b"weights")
    write_manifest(model)
    folder.finish(CONFIG, PREPARED, {"epochs": 2, "val_loss": 0.5})
    return folder


def test_nothing_there_starts(folder: StageFolder) -> None:
    assert folder.decide(CONFIG, PREPARED) == Decision("start")


def test_unfinished_stage_resumes(folder: StageFolder) -> None:
    folder.begin(CONFIG, PREPARED, RUN)
    assert folder.decide(CONFIG, PREPARED) == Decision("resume", "it was interrupted")


def test_finished_stage_is_skipped(finished: StageFolder) -> None:
    decision = finished.decide(CONFIG, PREPARED)
    assert decision == Decision("skip", "its settings, data and input model are unchanged")
    assert finished.result() == {"epochs": 2, "val_loss": 0.5}


@pytest.mark.parametrize("damage", ["altered", "missing"])
def test_damaged_model_resumes(finished: StageFolder, damage: str) -> None:
    file = finished.storage.local_path / "model" / "model.safetensors"
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(b"Weights")
    assert finished.decide(CONFIG, PREPARED) == Decision("resume", "its model is missing or damaged")


def trainer(**changes: Any) -> StageConfig:
    return replace(CONFIG, trainer=replace(CONFIG.trainer, **changes))


@pytest.mark.parametrize(
    ("config", "data", "source", "reason"),
    [
        (trainer(max_epochs=3), "data", "input", "trainer.max_epochs 2 -> 3"),
        (trainer(max_epochs=3, seed=1), "data", "input", "trainer.max_epochs 2 -> 3, trainer.seed 0 -> 1"),
        (replace(CONFIG, samples=("[MASK]",)), "data", "input", "samples ['this [MASK] was [MASK]'] -> ['[MASK]']"),
        (
            replace(trainer(max_epochs=1, seed=1, batch_size=1, gradient_clip_norm=2.0), dropout=0.1),
            "data",
            "input",
            "dropout 0.2 -> 0.1, trainer.max_epochs 2 -> 1, trainer.batch_size 16 -> 1 and 2 more",
        ),
        (CONFIG, "more data", "input", "other data"),
        (CONFIG, "data", "other input", "another input model"),
        (trainer(checkpoint_every_n_steps=7), "data", "other input", "another input model"),
    ],
)
def test_what_changed_is_named(finished: StageFolder, config: StageConfig, data: str, source: str, reason: str) -> None:
    assert finished.decide(config, prepared_for(config, data, source)) == Decision("restart", reason)


def test_change_counts_before_the_end_too(folder: StageFolder) -> None:
    folder.begin(CONFIG, PREPARED, RUN)
    config = trainer(max_epochs=3)
    assert folder.decide(config, prepared_for(config)) == Decision("restart", "trainer.max_epochs 2 -> 3")


def test_every_earlier_result_is_kept(folder: StageFolder, tmp_path: Path) -> None:
    places = []
    for value in (b"first", b"second", b"third"):
        folder.begin(CONFIG, PREPARED, RUN)
        (folder.storage / "result").write_bytes(value)
        places.append(folder.set_aside())
        assert not folder.storage.exists()
        assert folder.decide(CONFIG, PREPARED) == Decision("start")
    superseded = tmp_path / "run" / "superseded"
    assert [place.local_path for place in places] == [superseded / f"mlm-{number}" for number in (1, 2, 3)]
    assert [(place / "result").read_bytes() for place in places] == [b"first", b"second", b"third"]


def test_beginning_clears_away_what_failed_attempts_left(folder: StageFolder) -> None:
    folder.begin(CONFIG, PREPARED, RUN)
    place = folder.storage.local_path
    torn = place / f".model.{'0' * 32}.new"
    torn.mkdir()
    for name in ("error.txt", f".stage.json.{'1' * 32}.tmp", ".mine", "metrics.jsonl"):
        (place / name).write_text("")
    (torn / "model.safetensors").write_text("half of it")
    folder.begin(CONFIG, PREPARED, RUN)
    assert sorted(path.name for path in place.iterdir()) == [".mine", "config.yaml", "metrics.jsonl", "stage.json"]


@pytest.mark.parametrize(
    ("verb", "config"),
    [
        ("mlm", CONFIG),
        ("mlm", replace(CONFIG, samples=("naïve [MASK]: 'yes'", "# [MASK]"), tie_output_embedding=True)),
        (
            "text-classifier",
            text_classifier_config(Path("cache"), init_from="s3://bucket/run/mlm/model", freeze_encoder=True),
        ),
        ("image-classifier", image_config(Path("cache"))),
        ("sentiment", SentimentConfig(data=text_data(Path("cache")), baselines=False)),
    ],
)
def test_config_goes_back_in_through_its_verb(tmp_path: Path, verb: str, config: Any) -> None:
    write_config(Storage.from_uri(tmp_path), config, RUN)
    assert parse([verb, "--config", str(tmp_path / "config.yaml")]) == Command(verb, config, RUN)


def test_stages_of_the_chain_go_back_in_alone(tmp_path: Path) -> None:
    chain = SentimentConfig(data=text_data(Path("cache")))
    assert chain.frozen.trainer != TrainerConfig(), "the verbs' defaults differ, so that one in place of another shows"
    verbs = {"mlm": "mlm", "frozen": "text-classifier", "finetune": "text-classifier"}
    for name, config in chain.stages(str(tmp_path)).items():
        StageFolder(Storage.from_uri(tmp_path), name).begin(config, PREPARED, RUN)
        command = parse([verbs[name], "--config", str(tmp_path / name / "config.yaml")])
        assert command == Command(verbs[name], config, RUN)
