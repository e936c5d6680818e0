"""The model folder: what is saved comes back, damage is one line, nothing is unpickled."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from perceiver.build import build_model
from perceiver.config import (
    DecoderConfig,
    EncoderConfig,
    ImageClassifierConfig,
    MaskedLanguageModelConfig,
    MaskingConfig,
    ModelConfig,
    TextClassifierConfig,
)
from perceiver.data.tokenizer import train_tokenizer
from perceiver.errors import UserError
from perceiver.files import write_manifest
from perceiver.saving import (
    CARD,
    CONFIG,
    TOKENIZER,
    WEIGHTS,
    config_from_json,
    config_to_json,
    load_model,
    read_config,
    read_tokenizer,
    save_model,
)

ENCODER = EncoderConfig(
    num_latents=3, num_latent_channels=8, num_layers=2, num_self_attention_layers_per_block=1, num_block_repeats=2
)
TEXT: dict[str, Any] = {"encoder": ENCODER, "vocab_size": 23, "max_seq_len": 6}
CONFIGS: list[ModelConfig] = [
    MaskedLanguageModelConfig(**TEXT, masking=MaskingConfig(0.3), dropout=0.1),
    MaskedLanguageModelConfig(**TEXT, tie_output_embedding=True),
    TextClassifierConfig(**TEXT, class_names=("böse", "neutral", "gut"), dropout=0),
    ImageClassifierConfig(ENCODER, DecoderConfig(2, num_output_channels=6), (4, 5, 3), 2, class_names=("a", "b")),
]
KINDS = pytest.mark.parametrize("config", CONFIGS, ids=["mlm", "tied_mlm", "text_classifier", "image_classifier"])
TIED = CONFIGS[1]


def inputs_of(config: ModelConfig) -> tuple[torch.Tensor, ...]:
    if isinstance(config, ImageClassifierConfig):
        return (torch.rand(2, *config.image_shape),)
    return torch.randint(config.vocab_size, (2, 6)), torch.arange(6) >= torch.tensor([[6], [3]])


def forward(model: torch.nn.Module, config: ModelConfig, inputs: tuple[torch.Tensor, ...]) -> torch.Tensor:
    with torch.no_grad():
        if isinstance(config, MaskedLanguageModelConfig):
            return model(*inputs, masking=False)[0]
        return model(*inputs)


@KINDS
def test_round_trip(config: ModelConfig, tmp_path: Path) -> None:
    model = build_model(config)
    tokenizer = None if isinstance(config, ImageClassifierConfig) else train_tokenizer(["what a film"], 23)
    save_model(tmp_path / "deep" / "model", model, config, tokenizer)
    loaded = load_model(str(tmp_path / "deep" / "model"))
    assert type(loaded.model) is type(model)
    assert loaded.config == config
    assert not any(module.training for module in loaded.model.modules())
    inputs = inputs_of(config)
    assert torch.equal(forward(loaded.model, config, inputs), forward(model.eval(), config, inputs))
    if tokenizer is None:
        assert loaded.tokenizer is None
    else:
        assert loaded.tokenizer is not None
        assert loaded.tokenizer.to_str() == tokenizer.to_str()


def test_further_files_are_sealed_with_the_model(tmp_path: Path) -> None:
    config = CONFIGS[3]
    save_model(tmp_path / "model", build_model(config), config, texts={CARD: "# böse"})
    assert (tmp_path / "model" / CARD).read_text(encoding="utf-8") == "# böse"
    load_model(tmp_path / "model")
    (tmp_path / "model" / CARD).write_text("# other")
    with pytest.raises(UserError, match="README.md was altered"):
        load_model(tmp_path / "model")


def test_tied_weights_stay_tied_and_are_stored_once(tmp_path: Path) -> None:
    save_model(tmp_path, build_model(TIED), TIED)
    model = load_model(tmp_path).model
    assert model.decoder.output_adapter.linear.weight is model.encoder.input_adapter.embedding.weight
    stored = load_file(tmp_path / WEIGHTS)
    assert sum(tensor.numel() for tensor in stored.values()) == sum(p.numel() for p in model.parameters())


def test_only_parameters_are_stored(tmp_path: Path) -> None:
    config = CONFIGS[3]
    model = build_model(config)
    save_model(tmp_path, model, config)
    assert set(load_file(tmp_path / WEIGHTS)) == {name for name, _ in model.named_parameters()}


@KINDS
def test_config_survives_json(config: ModelConfig) -> None:
    again = config_from_json(config_to_json(config))
    assert again == config
    assert hash(again) == hash(config), "tuples are tuples again"


def test_field_that_an_older_version_did_not_write_has_its_default() -> None:
    values = json.loads(config_to_json(CONFIGS[0]))
    del values["tie_output_embedding"], values["encoder"]["num_block_repeats"]
    config = config_from_json(json.dumps(values))
    assert isinstance(config, MaskedLanguageModelConfig)
    assert config.tie_output_embedding is False
    assert config.encoder.num_block_repeats == 1
    assert config.encoder.num_latents == 3


def changed(*path: str, value: Any) -> str:
    """The JSON of an image classifier's configuration with another value at a path."""
    values = json.loads(config_to_json(CONFIGS[3]))
    inner = values
    for name in path[:-1]:
        inner = inner[name]
    inner[path[-1]] = value
    return json.dumps(values)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "Expecting value"),
        ("[" * 100_000, "recursion"),
        ("[1]", "it is [1], but must be an object"),
        ("{}", "task is null, but must be one of masked_language_model, text_classifier, image_classifier"),
        (changed("task", value="poetry"), 'task is "poetry", but must be one of'),
        (changed("task", value=[1]), "task is [1], but must be one of"),
        (changed("num_classes", value=2), "num_classes is not a field of ImageClassifierConfig"),
        (changed("encoder", "depth", value=2), "depth is not a field of EncoderConfig"),
        (changed("encoder", value=3), "encoder is 3, but must be EncoderConfig"),
        (changed("encoder", "num_latents", value="3"), 'num_latents is "3", but must be int'),
        (changed("encoder", "num_latents", value=3.0), "num_latents is 3.0, but must be int"),
        (changed("encoder", "num_latents", value=True), "num_latents is true, but must be int"),
        (changed("encoder", "num_latents", value=None), "num_latents is null, but must be int"),
        (changed("encoder", "num_latents", value=0), "num_latents is 0, but must be 1 or more"),
        (changed("encoder", "cross_attention_first_only", value=1), "cross_attention_first_only is 1, but must be"),
        (changed("decoder", "num_output_channels", value="6"), 'num_output_channels is "6", but must be int | None'),
        (changed("decoder", "num_cross_attention_heads", value=5), "must divide num_output_channels (6) evenly"),
        (changed("image_shape", value=[4, 5]), "image_shape is [4, 5], but must be tuple[int, int, int]"),
        (changed("image_shape", value=[4, 5, 1.5]), "image_shape is 1.5, but must be int"),
        (changed("class_names", value="ab"), 'class_names is "ab", but must be'),
        (changed("class_names", value=["a", 1]), "class_names is 1, but must be str"),
        (changed("dropout", value=float("nan")), "dropout is nan, but must be at least 0 and below 1"),
    ],
)
def test_wrong_config_is_refused(text: str, expected: str, tmp_path: Path) -> None:
    (tmp_path / CONFIG).write_text(text)
    assert expected in error_of(read_config, tmp_path)


def error_of(function: Callable[[Path], Any], folder: Path) -> str:
    with pytest.raises(UserError) as caught:
        function(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """The folder of a tied masked language model."""
    save_model(tmp_path / "model", build_model(TIED), TIED, train_tokenizer(["what a film"], 23))
    return tmp_path / "model"


@pytest.mark.parametrize("name", [WEIGHTS, CONFIG, TOKENIZER, "manifest.json"])
def test_every_file_is_needed_and_checked(name: str, saved: Path) -> None:
    file = saved / name
    content = file.read_bytes()
    file.unlink()
    assert name in error_of(load_model, saved)
    file.write_bytes(content[:-9])
    assert name in error_of(load_model, saved)
    if name != "manifest.json":
        file.write_bytes(content.replace(b"e", b"f", 1))
        assert name in error_of(load_model, saved)
    file.write_bytes(content)
    load_model(saved)


def test_places_without_a_model(tmp_path: Path) -> None:
    assert "holds no model" in error_of(load_model, tmp_path)
    assert "nowhere does not exist: name a model/ folder" in error_of(load_model, tmp_path / "nowhere")
    (tmp_path / "file").touch()
    assert "holds no model" in error_of(load_model, tmp_path / "file")


def reseal(folder: Path) -> None:
    (folder / "manifest.json").unlink()
    write_manifest(folder)


def test_weights_of_another_model_are_refused(saved: Path) -> None:
    (saved / CONFIG).write_text(config_to_json(CONFIGS[0]))
    reseal(saved)
    assert "does not hold the model that config.json describes" in error_of(load_model, saved)
    (saved / CONFIG).write_text(config_to_json(TIED))
    weights = load_file(saved / WEIGHTS)
    save_file({**weights, "encoder.latents": torch.zeros(4, 8)}, saved / WEIGHTS)
    reseal(saved)
    assert "does not hold the model" in error_of(load_model, saved)
    save_file({**weights, "more": torch.zeros(1)}, saved / WEIGHTS)
    reseal(saved)
    assert "does not hold the model" in error_of(load_model, saved)


class Code:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_a_pickle_in_place_of_weights_is_not_read(saved: Path, tmp_path: Path) -> None:
    trace = tmp_path / "ran"
    torch.save(Code(trace), saved / WEIGHTS)
    reseal(saved)
    assert "does not hold the model" in error_of(load_model, saved)
    assert not trace.exists()
    with (saved / WEIGHTS).open("rb") as file:
        torch.load(file, weights_only=False)
    assert trace.exists(), "the file does hold code"


def test_loading_unpickles_nothing(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("unpickled")

    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    monkeypatch.setattr(torch, "load", refuse)
    assert load_model(saved).config == TIED


def test_a_file_that_is_no_tokenizer(saved: Path) -> None:
    (saved / TOKENIZER).write_text("{}")
    assert TOKENIZER in error_of(read_tokenizer, saved)


def test_a_folder_that_holds_something_is_left_alone(saved: Path) -> None:
    before = {file.name: file.read_bytes() for file in saved.iterdir()}
    with pytest.raises(UserError, match="is not empty"):
        save_model(saved, build_model(CONFIGS[3]), CONFIGS[3])
    assert {file.name: file.read_bytes() for file in saved.iterdir()} == before
