"""What identifies a stage's result, which input models fit, and which weights a classifier starts from."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from perceiver.build import build_model
from perceiver.config import EncoderConfig, MaskedLanguageModelConfig
from perceiver.data.sampling import Loading
from perceiver.data.text import load_text
from perceiver.errors import UserError
from perceiver.model import PerceiverIO
from perceiver.saving import load_model, save_model
from perceiver.tasks.base import Task
from pipelines.build import build
from pipelines.config import StageConfig, TextClassifierStageConfig
from pipelines.stages import Prepared, fingerprint, prepare, with_absolute_paths
from tests.pipelines.tiny import (
    ENCODER,
    TRAINER,
    image_config,
    mlm_config,
    text_classifier_config,
    text_data,
    train,
    weights,
)

CONFIGS: dict[str, StageConfig] = {
    "mlm": mlm_config(Path("cache")),
    "text-classifier": text_classifier_config(Path("cache"), init_from="mlm/model"),
    "image-classifier": image_config(Path("cache")),
}
WITHOUT_EFFECT = {
    "data.path",
    "data.test_path",
    "data.unlabelled_path",
    "data.tokenizer",
    "data.cache_dir",
    "data.loader_workers",
    "data.kept_latents_gb",
    "trainer.checkpoint_every_n_steps",
    "trainer.checkpoint_every_n_minutes",
    "trainer.log_gradient_norm",
    "trainer.micro_batch_size",
    "trainer.activation_checkpointing",
    "init_from",
}
OTHER_CHOICE = {
    "validation": "test",
    "name": "adamw",
    "schedule": "linear",
    "precision": "bf16-mixed",
    "select_by": "val_accuracy",
    "gradient_clip_norm": 0.5,
    "samples": ("an other [MASK]",),
}


def leaves(config: Any, prefix: str = "") -> Iterator[str]:
    """Yield the dotted name of every setting."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        name = f"{prefix}{field.name}"
        yield from leaves(value, f"{name}.") if dataclasses.is_dataclass(value) else [name]


def changed(config: Any, name: str) -> Any:
    """Give a setting another valid value."""
    first, _, rest = name.partition(".")
    value = getattr(config, first)
    if rest:
        return dataclasses.replace(config, **{first: changed(value, rest)})
    return dataclasses.replace(config, **{first: OTHER_CHOICE.get(first, _other(value))})


def _other(value: Any) -> Any:
    match value:
        case bool():
            return not value
        case float():
            return value / 2 or 0.1
        case None:
            return 8  # as a number of channels or of samples
        case int():
            return value * 2 or 1
        case _:
            return f"other {value}"


@pytest.mark.parametrize(
    ("kind", "setting"), [(kind, setting) for kind, config in CONFIGS.items() for setting in leaves(config)]
)
def test_fingerprint_changes_with_every_setting_that_matters(kind: str, setting: str) -> None:
    before, after = CONFIGS[kind], changed(CONFIGS[kind], setting)
    assert before != after
    same = fingerprint(before, "data", "input") == fingerprint(after, "data", "input")
    assert same == (setting in WITHOUT_EFFECT)


def test_fingerprint_changes_with_data_input_model_and_kind() -> None:
    config = CONFIGS["text-classifier"]
    known = [("a", "b"), ("c", "b"), ("a", "c"), ("ab", "")]
    assert len({fingerprint(config, data, source) for data, source in known}) == len(known)
    assert fingerprint(config, "a", "b") == fingerprint(dataclasses.replace(config), "a", "b")
    assert len({fingerprint(config, "a") for config in CONFIGS.values()}) == len(CONFIGS)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def table(cache: Path) -> Path:
    """A CSV file with texts and labels."""
    rows = load_text(text_data(cache)).train.select(range(120))
    rows.to_csv(cache / "reviews.csv", index=False)
    return cache / "reviews.csv"


@pytest.fixture(scope="module")
def mlm_folder(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mlm")
    train(mlm_config(cache, trainer=dataclasses.replace(TRAINER, max_epochs=1)), folder)
    return folder / "model"


@pytest.fixture(scope="module")
def frozen_config(cache: Path, mlm_folder: Path) -> TextClassifierStageConfig:
    return text_classifier_config(cache, init_from=str(mlm_folder), freeze_encoder=True, dropout=0.5)


@pytest.fixture(scope="module")
def frozen_folder(frozen_config: TextClassifierStageConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("frozen")
    train(frozen_config, folder)
    return folder / "model"


def test_place_of_the_data_has_no_effect_but_its_content_has(cache: Path, table: Path, tmp_path: Path) -> None:
    moved, relabelled = tmp_path / "elsewhere.csv", tmp_path / "relabelled.csv"
    shutil.copy(table, moved)
    text = table.read_text()
    assert text.endswith((",0\n", ",1\n"))
    relabelled.write_text(text[:-2] + str(1 - int(text[-2])) + "\n")

    def of(path: Path, at: Path) -> Prepared:
        return prepare(text_classifier_config(cache, data=text_data(at, path=str(path))))

    original = of(table, cache)
    assert of(moved, tmp_path / "other cache") == original
    assert of(relabelled, cache).fingerprint != original.fingerprint
    assert of(relabelled, cache).data_fingerprint != original.data_fingerprint


def test_place_of_the_input_model_has_no_effect_but_its_weights_have(
    cache: Path, mlm_folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(mlm_folder, tmp_path / "moved")
    source = load_model(mlm_folder)
    with torch.no_grad():
        next(source.model.parameters())[0] += 1.0
    save_model(tmp_path / "altered", source.model, source.config, source.tokenizer)
    original, moved, altered = (
        prepare(text_classifier_config(cache, init_from=str(folder)))
        for folder in (mlm_folder, tmp_path / "moved", tmp_path / "altered")
    )
    assert moved == original
    assert altered.fingerprint != original.fingerprint
    assert altered.data_fingerprint == original.data_fingerprint


def test_prepared_tells_made_up_data_from_other(cache: Path, table: Path) -> None:
    assert prepare(mlm_config(cache)).synthetic
    assert not prepare(mlm_config(cache, data=text_data(cache, path=str(table)))).synthetic
    assert not prepare(image_config(cache)).synthetic


def test_input_model_decides_about_the_tokenizer(cache: Path, table: Path, mlm_folder: Path) -> None:
    data = text_data(cache, path=str(table))
    prepared = prepare(text_classifier_config(cache, data=data, init_from=str(mlm_folder)))
    assert prepared.tokenizer == prepare(mlm_config(cache)).tokenizer
    assert prepared.tokenizer != prepare(text_classifier_config(cache, data=data)).tokenizer


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"encoder": EncoderConfig(num_latents=5, num_latent_channels=16)},
            r"encoder\.num_latents is 5, but .* has 4: set encoder\.num_latents to 4",
        ),
        (
            {"encoder": dataclasses.replace(ENCODER, self_attention_widening_factor=2)},
            r"encoder\.self_attention_widening_factor is 2, but .* has 1",
        ),
        ({"data": text_data(Path("cache"), max_seq_len=25)}, r"set data\.max_seq_len to 24"),
    ],
)
def test_input_model_of_another_shape_is_refused(mlm_folder: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        prepare(text_classifier_config(Path("cache"), init_from=str(mlm_folder), **changes))


def test_classifier_with_another_decoder_is_refused(cache: Path, frozen_folder: Path) -> None:
    config = text_classifier_config(cache, init_from=str(frozen_folder))
    other = dataclasses.replace(config, decoder=dataclasses.replace(config.decoder, widening_factor=2))
    with pytest.raises(UserError, match=r"decoder\.widening_factor is 2, but .* has 1"):
        prepare(other)


def test_image_model_is_refused(cache: Path, tmp_path: Path) -> None:
    config = prepare(image_config(cache)).model
    save_model(tmp_path / "image", build_model(config), config)
    with pytest.raises(UserError, match=r"is an image model: name the model/ folder of a text stage"):
        prepare(text_classifier_config(cache, init_from=str(tmp_path / "image")))


def test_missing_model_is_refused(cache: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere holds no model"):
        prepare(text_classifier_config(cache, init_from=str(tmp_path / "nowhere")))


def build_task(config: StageConfig) -> Task:
    return build(config, prepare(config), Loading(batch_size=16, seed=config.trainer.seed))[0]


def network(config: StageConfig) -> PerceiverIO:
    """Build a stage's network as it is before training."""
    model = build_task(config).model
    assert isinstance(model, PerceiverIO)
    return model


def equal(one: nn.Module, other: nn.Module) -> list[bool]:
    """Return of each parameter whether it is the same, bit for bit."""
    pairs = zip(one.named_parameters(), other.named_parameters(), strict=True)
    return [name == its_name and torch.equal(value, its_value) for (name, value), (its_name, its_value) in pairs]


def test_weights_come_from_the_encoder_of_a_masked_language_model(cache: Path, mlm_folder: Path) -> None:
    source = load_model(mlm_folder)
    assert isinstance(source.config, MaskedLanguageModelConfig)
    model = network(text_classifier_config(cache, init_from=str(mlm_folder)))
    scratch = network(text_classifier_config(cache))
    assert all(equal(model.encoder, source.model.encoder))
    assert not all(equal(scratch.encoder, source.model.encoder))
    assert all(equal(model.decoder, scratch.decoder))


def test_weights_come_from_the_whole_of_a_classifier(cache: Path, frozen_folder: Path) -> None:
    source = load_model(frozen_folder)
    assert all(equal(network(text_classifier_config(cache, init_from=str(frozen_folder))), source.model))


def test_initial_weights_follow_from_the_seed(cache: Path) -> None:
    config = image_config(cache)
    other = dataclasses.replace(config, trainer=dataclasses.replace(config.trainer, seed=1))
    assert all(equal(network(config), network(config)))
    assert not all(equal(network(config), network(other)))


def test_frozen_encoder_keeps_its_weights_and_the_decoder_learns(
    cache: Path, mlm_folder: Path, frozen_folder: Path
) -> None:
    trained, source = load_model(frozen_folder).model, load_model(mlm_folder).model
    assert all(equal(trained.encoder, source.encoder))
    scratch = network(text_classifier_config(cache))
    assert not any(equal(trained.decoder.output_adapter, scratch.decoder.output_adapter))


def test_unfrozen_encoder_changes(cache: Path, frozen_folder: Path, tmp_path: Path) -> None:
    train(text_classifier_config(cache, init_from=str(frozen_folder)), tmp_path)
    assert weights(tmp_path) != weights(frozen_folder.parent)
    trained, source = load_model(tmp_path / "model").model, load_model(frozen_folder).model
    assert not any(equal(trained.encoder.input_adapter, source.encoder.input_adapter))


def test_frozen_encoder_runs_without_dropout_and_the_decoder_with(frozen_config: TextClassifierStageConfig) -> None:
    task = build_task(frozen_config).train()
    assert isinstance(task.model, PerceiverIO)
    encoder, decoder, tokens = task.model.encoder, task.model.decoder, torch.arange(3, 15).view(2, 6)
    latents = encoder(tokens)
    assert torch.equal(encoder(tokens), latents)
    assert not torch.equal(decoder(latents), decoder(latents))
    unfrozen = network(dataclasses.replace(frozen_config, freeze_encoder=False)).train()
    assert not torch.equal(unfrozen.encoder(tokens), unfrozen.encoder(tokens))


def test_paths_mean_the_same_in_a_workers_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("train.csv", "test.csv", "toy_reviews"):
        (tmp_path / name).touch()
    (tmp_path / "model").mkdir()
    data = text_data(Path("cache"), path="train.csv", test_path="./test.csv")
    config = text_classifier_config(tmp_path, data=data, init_from="model")
    absolute = with_absolute_paths(config)
    assert isinstance(absolute, TextClassifierStageConfig)
    expected = dataclasses.replace(
        data, path=f"{tmp_path}/train.csv", test_path=f"{tmp_path}/test.csv", cache_dir=f"{tmp_path}/cache"
    )
    assert absolute == dataclasses.replace(config, data=expected, init_from=f"{tmp_path}/model")
    assert with_absolute_paths(absolute) == absolute


@pytest.mark.parametrize("path", ["stanfordnlp/imdb", "toy_reviews"])
def test_hub_names_and_built_in_data_are_no_paths(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "toy_reviews").mkdir()
    data = text_data(Path("~/cache"), path=path)
    config = text_classifier_config(tmp_path, data=data, init_from="s3://bucket/run/mlm/model")
    assert with_absolute_paths(config) == config
