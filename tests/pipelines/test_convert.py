"""Checkpoints of the reference become model folders: same logits, one-line mistakes, no code run."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from jsonargparse import Namespace
from safetensors import safe_open
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor, nn

from perceiver.config import ImageClassifierConfig, MaskedLanguageModelConfig, TextClassifierConfig
from perceiver.data.tokenizer import train_tokenizer
from perceiver.inference import load
from perceiver.saving import SavedModel, load_model
from pipelines.__main__ import main
from tests.perceiver.test_convert import IMAGE, TEXT, NormedSelfAttention, reference_model, shapes

MLM = shapes("mlm", 3, (5, 8), 2, 4, 2, **TEXT)
TEXT_CLASSIFIER = shapes("text_classification", 2, (5, 8), 4, 1, 1, num_classes=3, **TEXT)
IMAGE_CLASSIFIER = shapes("image_classification", 4, (4, 12), 3, 2, 2, num_classes=5, **IMAGE)
CONFIGS = [MLM, TEXT_CLASSIFIER, IMAGE_CLASSIFIER]
TOLERANCE: dict[str, Any] = {"atol": 1e-5, "rtol": 0}


def keywords(config: dict[str, Any]) -> dict[str, Any]:
    """The hyperparameters as keyword arguments of the reference's module."""
    latents, channels = config["latent_shape"]
    return {
        "num_latents": latents,
        "num_latent_channels": channels,
        "num_encoder_layers": config["num_layers"],
        "num_encoder_cross_attention_heads": config["num_heads"],
        "num_encoder_self_attention_heads": config["num_heads"],
        "num_encoder_self_attention_layers_per_block": config["num_self_attention_layers_per_block"],
        "num_decoder_cross_attention_heads": config["num_decoder_heads"],
        "dropout": 0.1,
        "optimizer_init": {"class_path": "torch.optim.Adam", "init_args": Namespace(lr=0.001)},
    }


def parsed_arguments(config: dict[str, Any]) -> dict[str, Any]:
    return {"args": argparse.Namespace(**keywords(config), gpus=-1, predict_samples=["a [MASK]"])}


def sections(config: dict[str, Any]) -> dict[str, Any]:
    encoder = {
        "num_layers": config["num_layers"],
        "num_cross_attention_heads": config["num_heads"],
        "num_self_attention_heads": config["num_heads"],
        "num_self_attention_layers_per_block": config["num_self_attention_layers_per_block"],
    }
    return {"num_latents": 1, "encoder": encoder, "decoder": {"num_cross_attention_heads": config["num_decoder_heads"]}}


def save_checkpoint(path: Path, state: dict[str, Tensor], hyperparameters: Any = None, **more: Any) -> Path:
    content = {"state_dict": {f"model.{name}": tensor for name, tensor in state.items()}, "epoch": 3, **more}
    if hyperparameters is not None:
        content |= {"hyper_parameters": hyperparameters, "hparams_name": "args"}
    torch.save(content, path)
    return path


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A checkpoint of a masked language model."""
    return save_checkpoint(tmp_path / "mlm.ckpt", reference_model(MLM).state_dict(), keywords(MLM))


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer of 31 tokens, as many as the models know."""
    file = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    trained = train_tokenizer(["a good film", "a bad film", "do go along, gladly bold"], TEXT["vocab_size"])
    assert trained.get_vocab_size() == TEXT["vocab_size"]
    trained.save(str(file))
    return file


def run(checkpoint: Path, out: Path, *options: Any) -> SavedModel:
    main(["convert", str(checkpoint), str(out), *map(str, options)])
    return load_model(out)


def logits_of(model: nn.Module, x: Tensor, pad_mask: Tensor | None, is_mlm: bool) -> Tensor:
    with torch.no_grad():
        return model(x, pad_mask, masking=False)[0] if is_mlm else model(x, pad_mask)


def check_parity(saved: SavedModel, reference: nn.Sequential, config: dict[str, Any]) -> None:
    encoder, decoder = reference
    x, pad_mask = torch.rand(3, *IMAGE["image_shape"]), None
    if "vocab_size" in config:
        x = torch.randint(config["vocab_size"], (3, config["max_seq_len"]))
        pad_mask = torch.arange(x.shape[1]) >= torch.tensor([9, 4, 1])[:, None]
    with torch.no_grad():
        expected = decoder(encoder(x, pad_mask))
    is_mlm = config["task"] == "mlm"
    logits = logits_of(saved.model, x, pad_mask, is_mlm)
    torch.testing.assert_close(logits, expected if is_mlm else expected[:, 0], **TOLERANCE)


@pytest.mark.parametrize("hyperparameters", [keywords, parsed_arguments, sections])
@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config["task"])
def test_same_logits_as_the_reference(
    config: dict[str, Any], hyperparameters: Callable[[dict[str, Any]], Any], tmp_path: Path, tokenizer: Path
) -> None:
    reference = reference_model(config)
    path = save_checkpoint(tmp_path / "a.ckpt", reference.state_dict(), hyperparameters(config))
    is_text = "vocab_size" in config
    saved = run(path, tmp_path / "out", *(["--tokenizer", tokenizer] if is_text else []))
    check_parity(saved, reference, config)
    assert not saved.model.training
    if is_text:
        assert saved.tokenizer is not None
        assert saved.tokenizer.to_str() == Tokenizer.from_file(str(tokenizer)).to_str()
    else:
        assert saved.tokenizer is None


@pytest.mark.skipif("PERCEIVER_TEST_DATA" not in os.environ, reason="PERCEIVER_TEST_DATA names no folder of test data")
@pytest.mark.parametrize("name", ["masked_lm", "text_classifier", "image_classifier"])
def test_recorded_results_of_the_reference(name: str, tmp_path: Path) -> None:
    file = Path(os.environ["PERCEIVER_TEST_DATA"]).parent / "reference" / f"{name}.safetensors"
    tensors = load_file(file)
    with safe_open(file, "pt") as opened:
        config = json.loads(opened.metadata()["config"])
    state = {key.removeprefix("state."): tensor for key, tensor in tensors.items() if key.startswith("state.")}
    path = save_checkpoint(tmp_path / "a.ckpt", state, keywords(config))
    options: list[Any] = []
    if "vocab_size" in config:
        train_tokenizer(["what a film"], config["vocab_size"]).save(str(tmp_path / "tokenizer.json"))
        options = ["--tokenizer", tmp_path / "tokenizer.json"]
    model = run(path, tmp_path / "out", *options).model
    logits = logits_of(model, tensors["input"], tensors.get("pad_mask"), name == "masked_lm")
    torch.testing.assert_close(logits, tensors["logits"], **TOLERANCE)


def test_configs(tmp_path: Path, tokenizer: Path) -> None:
    configs = []
    for index, config in enumerate(CONFIGS):
        path = save_checkpoint(tmp_path / f"{index}.ckpt", reference_model(config).state_dict(), keywords(config))
        options = ["--tokenizer", tokenizer] if "vocab_size" in config else []
        configs.append(run(path, tmp_path / str(index), *options).config)
    mlm, text, image = configs
    assert isinstance(mlm, MaskedLanguageModelConfig)
    encoder = mlm.encoder
    assert (encoder.num_latents, encoder.num_latent_channels, encoder.num_layers) == (5, 8, 3)
    assert (encoder.num_self_attention_layers_per_block, encoder.num_cross_attention_heads) == (2, 2)
    assert (mlm.decoder.num_cross_attention_heads, mlm.decoder.num_output_channels) == (4, None)
    assert (mlm.vocab_size, mlm.max_seq_len) == (31, 9)
    assert isinstance(text, TextClassifierConfig)
    assert text.class_names == ("0", "1", "2")
    assert isinstance(image, ImageClassifierConfig)
    assert (image.image_shape, image.num_frequency_bands, image.num_classes) == ((4, 6, 2), 3, 5)


def test_cross_and_self_attention_may_have_other_heads(tmp_path: Path) -> None:
    reference = reference_model(IMAGE_CLASSIFIER)
    for module in reference.modules():
        if isinstance(module, NormedSelfAttention):
            attention = module.attention.attention
            attention.num_heads, attention.head_dim = 6, attention.embed_dim // 6
    hyperparameters = {**keywords(IMAGE_CLASSIFIER), "num_encoder_self_attention_heads": 6}
    path = save_checkpoint(tmp_path / "a.ckpt", reference.state_dict(), hyperparameters)
    saved = run(path, tmp_path / "out")
    check_parity(saved, reference, IMAGE_CLASSIFIER)
    assert saved.config.encoder.num_cross_attention_heads == 3
    assert saved.config.encoder.num_self_attention_heads == 6


OPTIONS = ["--num_layers", "4", "--num_heads", "3", "--num_decoder_heads", "2"]


def test_the_command_says_what_the_checkpoint_does_not(tmp_path: Path) -> None:
    reference = reference_model(IMAGE_CLASSIFIER)
    state = reference.state_dict()
    del state["0.input_adapter.position_encoding"]
    path = save_checkpoint(tmp_path / "a.ckpt", state)
    check_parity(run(path, tmp_path / "out", *OPTIONS, "--image_shape", "[4,6,2]"), reference, IMAGE_CLASSIFIER)


def test_the_command_overrides_the_checkpoint(tmp_path: Path) -> None:
    reference = reference_model(IMAGE_CLASSIFIER)
    wrong = keywords({**IMAGE_CLASSIFIER, "num_layers": 2, "num_heads": 1, "num_decoder_heads": 1})
    path = save_checkpoint(tmp_path / "a.ckpt", reference.state_dict(), wrong)
    check_parity(run(path, tmp_path / "out", *OPTIONS), reference, IMAGE_CLASSIFIER)


def test_a_single_layer_needs_no_number_of_layers(tmp_path: Path) -> None:
    config = {**IMAGE_CLASSIFIER, "num_layers": 1}
    reference = reference_model(config)
    path = save_checkpoint(tmp_path / "a.ckpt", reference.state_dict())
    check_parity(run(path, tmp_path / "out", "--num_heads", "3", "--num_decoder_heads", "2"), reference, config)


def test_output_says_where_how_large_and_how_to_load(
    tmp_path: Path, checkpoint: Path, tokenizer: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = run(checkpoint, tmp_path / "out", "--tokenizer", tokenizer).model
    result, usage = capsys.readouterr().out.splitlines()
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    assert result == f"{tmp_path / 'out'}: masked_language_model with {num_parameters:,} parameters"
    scope: dict[str, Any] = {}
    exec(usage.removeprefix("in Python: "), scope)
    assert scope["predictor"].fill(["a [MASK] film"]) == load(tmp_path / "out").fill(["a [MASK] film"])


def mistake(arguments: Sequence[str | Path], folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """Run a conversion that must fail and leave the folder as it is; return what it says."""
    before = sorted(folder.rglob("*"))
    with pytest.raises(SystemExit) as caught:
        main(["convert", *map(str, arguments)])
    assert caught.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert sorted(folder.rglob("*")) == before
    return captured.err


def test_models_of_others_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = save_checkpoint(tmp_path / "a.ckpt", nn.Linear(2, 3).state_dict(), keywords(MLM))
    assert "no parameter encoder.latent with 2 axes" in mistake([path, tmp_path / "out"], tmp_path, capsys)
    state = reference_model(IMAGE_CLASSIFIER).state_dict()
    for name in ("0.latent", "1.output", "1.output_adapter.linear.bias", "0.layer_1.0.0.module.kv_norm.weight"):
        rest = {key: tensor for key, tensor in state.items() if key != name}
        path = save_checkpoint(tmp_path / "a.ckpt", rest, keywords(IMAGE_CLASSIFIER))
        assert name.partition(".")[2] in mistake([path, tmp_path / "out"], tmp_path, capsys)
    state["0.more"] = torch.ones(1)
    path = save_checkpoint(tmp_path / "a.ckpt", state, keywords(IMAGE_CLASSIFIER))
    assert "left over encoder.more" in mistake([path, tmp_path / "out"], tmp_path, capsys)


@pytest.mark.parametrize("missing", [0, 2, 4])
def test_unknown_numbers_name_their_option(missing: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = save_checkpoint(tmp_path / "a.ckpt", reference_model(IMAGE_CLASSIFIER).state_dict())
    given = OPTIONS[:missing] + OPTIONS[missing + 2 :]
    assert f"add {OPTIONS[missing]} N" in mistake([path, tmp_path / "out", *given], tmp_path, capsys)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--num_heads", "5"], "num_cross_attention_heads is 5, but must divide num_latent_channels (12) evenly"),
        (["--num_layers", "1"], "left over encoder.layer_n"),
        (["--num_layers", "0"], "num_layers is 0, but must be 1 or more"),
        (["--image_shape", "[4,6,3]"], "image_shape is (4, 6, 3), which doesn't fit the 16 input channels"),
        (["--image_shape", "[6,4,2]"], "position_encoding (24, 14) differs"),
        (["--tokenizer", "tokenizer.json"], "is an image classifier: leave out --tokenizer"),
    ],
)
def test_options_that_do_not_fit(
    options: list[str], expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = reference_model(IMAGE_CLASSIFIER).state_dict()
    path = save_checkpoint(tmp_path / "a.ckpt", state, keywords(IMAGE_CLASSIFIER))
    assert expected in mistake([path, tmp_path / "out", *options], tmp_path, capsys)


def test_layers_that_are_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = reference_model({**IMAGE_CLASSIFIER, "num_layers": 1}).state_dict()
    path = save_checkpoint(tmp_path / "a.ckpt", state, keywords(IMAGE_CLASSIFIER))
    assert "lack encoder.layer_n" in mistake([path, tmp_path / "out", "--num_layers", "4"], tmp_path, capsys)


def test_unknown_image_shape(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = reference_model(IMAGE_CLASSIFIER).state_dict()
    del state["0.input_adapter.position_encoding"]
    path = save_checkpoint(tmp_path / "a.ckpt", state, keywords(IMAGE_CLASSIFIER))
    assert "add --image_shape" in mistake([path, tmp_path / "out"], tmp_path, capsys)


def test_tokenizer_must_be_there_and_fit(tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def message(*options: str | Path) -> str:
        return mistake([checkpoint, tmp_path / "out", *options], tmp_path, capsys)

    large = tmp_path / "large.json"
    train_tokenizer(["some more letters than the model could ever know"], 60).save(str(large))
    assert "add --tokenizer FILE" in message()
    assert "no.json does not exist" in message("--tokenizer", tmp_path / "no.json")
    assert "tokens, but the model knows 31" in message("--tokenizer", large)
    large.write_text("{}")
    assert "large.json cannot be read" in message("--tokenizer", large)


def test_out_must_be_empty(
    tmp_path: Path, checkpoint: Path, tokenizer: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    assert run(checkpoint, out, "--tokenizer", tokenizer).tokenizer is not None
    capsys.readouterr()
    content = (out / "config.json").read_bytes()
    assert "out is not empty" in mistake([checkpoint, out, "--tokenizer", tokenizer], tmp_path, capsys)
    assert (out / "config.json").read_bytes() == content
    assert "mlm.ckpt is not empty" in mistake([checkpoint, checkpoint, "--tokenizer", tokenizer], tmp_path, capsys)
    below = checkpoint / "out"
    assert f"{below} can't be written" in mistake([checkpoint, below, "--tokenizer", tokenizer], tmp_path, capsys)
