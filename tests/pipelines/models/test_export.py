"""An exported file computes what the model computes, says what it is, and is whole or absent."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib import util
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor

from perceiver.build import build_model
from perceiver.config import (
    EncoderConfig,
    ImageClassifierConfig,
    MaskedLanguageModelConfig,
    ModelConfig,
    TextClassifierConfig,
)
from perceiver.data.tokenizer import train_tokenizer
from perceiver.saving import CONFIG, TOKENIZER, config_from_json, load_model, save_model
from pipelines.__main__ import main
from pipelines.models import export as export_module
from pipelines.models.export import INTERFACE, TOLERANCES, greatest_difference

TOKENS = train_tokenizer(["what a good film", "what a bad film it was"], 40)
ENCODER = EncoderConfig(num_latents=3, num_latent_channels=8, num_layers=2, num_self_attention_layers_per_block=1)
TEXT: dict[str, Any] = {"encoder": ENCODER, "vocab_size": TOKENS.get_vocab_size(), "max_seq_len": 12}
TINY: dict[str, ModelConfig] = {
    "masked_language_model": MaskedLanguageModelConfig(**TEXT),
    "text_classifier": TextClassifierConfig(**TEXT),
    "image_classifier": ImageClassifierConfig(ENCODER, image_shape=(5, 4, 3), num_frequency_bands=2),
}
DEFAULT: dict[str, ModelConfig] = {
    "masked_language_model": MaskedLanguageModelConfig(),
    "text_classifier": TextClassifierConfig(),
    "image_classifier": ImageClassifierConfig(),
}
TASKS = list(TINY)
SUFFIX = {"onnx": "onnx", "torch-export": "pt2"}

Run = Callable[..., Tensor]


def save(folder: Path, config: ModelConfig) -> Path:
    """Write the folder of a model whose outputs differ clearly from input to input."""
    model = build_model(config)
    with torch.no_grad():  # the last layer alone: larger weights throughout would amplify rounding, layer by layer
        model.decoder.output_adapter.linear.weight.mul_(10.0)
    save_model(folder, model, config, None if isinstance(config, ImageClassifierConfig) else TOKENS)
    return folder


def export(folder: Path, format_: str, *options: str) -> Path:
    file = folder.parent / f"{folder.name}.{SUFFIX[format_]}"
    with pytest.raises(SystemExit) as exit_info:
        main(["export", "--model", str(folder), "--format", format_, "--output", str(file), *options])
    assert exit_info.value.code == 0
    return file


def run_torch(file: Path) -> Run:
    return torch.export.load(file).module()


def run_onnx(file: Path) -> Run:
    session = onnxruntime.InferenceSession(file)
    names = [node.name for node in session.get_inputs()]
    return lambda *inputs: torch.from_numpy(
        session.run(None, dict(zip(names, (x.numpy() for x in inputs), strict=True)))[0]
    )


RUN = {"onnx": run_onnx, "torch-export": run_torch}


@pytest.mark.parametrize("task", TASKS)
def test_a_program_computes_what_the_model_computes(task: str, tmp_path: Path) -> None:
    folder = save(tmp_path / "model", TINY[task])
    file = export(folder, "torch-export")
    assert greatest_difference(run_torch(file), load_model(folder)) < 1e-5
    assert {path.name for path in tmp_path.iterdir()} == {"model", "model.pt2"}


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("format_", SUFFIX)
@pytest.mark.parametrize("task", TASKS)
def test_a_file_of_the_default_size_computes_what_the_model_computes(
    task: str, format_: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = save(tmp_path / "model", DEFAULT[task])
    file = export(folder, format_)
    assert greatest_difference(RUN[format_](file), load_model(folder)) <= TOLERANCES[format_]
    out, err = capsys.readouterr()
    assert out.startswith(f"{file}: {task}; greatest difference from the model's own outputs: ")
    assert "probabilities: float32 (batch" in out or "logits: float32 (batch, sequence" in out
    assert err == ""


def test_the_shortest_texts_that_a_model_may_know_are_exported(tmp_path: Path) -> None:
    for max_seq_len in (1, 2):
        config = replace(TINY["text_classifier"], max_seq_len=max_seq_len)
        folder = save(tmp_path / str(max_seq_len), config)
        assert greatest_difference(run_torch(export(folder, "torch-export")), load_model(folder)) < 1e-5


def test_a_fixed_batch_size_is_kept_and_longer_texts_are_refused(tmp_path: Path) -> None:
    run = run_torch(export(save(tmp_path / "model", TINY["text_classifier"]), "torch-export", "--batch", "3"))

    def classify(batch_size: int, length: int) -> Tensor:
        return run(torch.ones(batch_size, length, dtype=torch.long), torch.zeros(batch_size, length, dtype=torch.bool))

    assert classify(3, 12).shape == (3, 2)
    for shape in ((2, 12), (3, 13)):
        with pytest.raises(Exception, match=r"size|shape|Guard"):
            classify(*shape)


def test_a_program_carries_configuration_tokenizer_and_interface(tmp_path: Path) -> None:
    folder = save(tmp_path / "model", TINY["text_classifier"])
    texts = {CONFIG: "", TOKENIZER: "", INTERFACE: ""}
    torch.export.load(export(folder, "torch-export"), extra_files=texts)
    assert config_from_json(texts[CONFIG]) == TINY["text_classifier"]
    assert json.loads(texts[TOKENIZER]) == json.loads((folder / TOKENIZER).read_text())
    interface = json.loads(texts[INTERFACE])
    assert list(interface["inputs"]) == ["token_ids", "pad_mask"]
    assert interface["outputs"]["probabilities"]["shape"] == ["batch", 2]


@pytest.mark.slow
def test_onnx_carries_them_too_and_has_the_operators_wanted(tmp_path: Path) -> None:
    folder = save(tmp_path / "model", TINY["masked_language_model"])
    file = export(folder, "onnx", "--opset", "18")
    session = onnxruntime.InferenceSession(file)
    texts = session.get_modelmeta().custom_metadata_map
    assert config_from_json(texts[CONFIG]) == TINY["masked_language_model"]
    assert json.loads(texts[TOKENIZER]) == json.loads((folder / TOKENIZER).read_text())
    described = json.loads(texts[INTERFACE])
    assert {node.name: node.shape for node in session.get_inputs()} == {
        name: facts["shape"] for name, facts in described["inputs"].items()
    }
    assert {node.name: node.shape for node in session.get_outputs()} == {
        name: facts["shape"] for name, facts in described["outputs"].items()
    }
    assert [opset.version for opset in onnx.load(file).opset_import if opset.domain == ""] == [18]


def test_nothing_is_written_where_the_outputs_differ(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = save(tmp_path / "model", TINY["image_classifier"])
    (tmp_path / "model.pt2").write_text("what was there")
    for wrong, shown in ((1e-3, "0.001"), (float("nan"), "nan")):
        monkeypatch.setattr(export_module, "greatest_difference", lambda *_, wrong=wrong: wrong)
        with pytest.raises(SystemExit) as exit_info:
            main(["export", f"--model={folder}", "--format=torch-export", f"--output={tmp_path / 'model.pt2'}"])
        assert exit_info.value.code == 1
        assert f"differs from the model by {shown}" in capsys.readouterr().err
    assert (tmp_path / "model.pt2").read_text() == "what was there"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--output=m.bin"], "onnx files end in .onnx"),
        (["--output=m.onnx", "--opset=9"], "must be 18 to 23"),
        (["--output=m.pt2", "--format=torch-export", "--opset=18"], "leave it out"),
        (["--output=m.onnx", "--batch=0"], "batch is 0"),
        (["--output=nowhere/m.onnx"], "a folder that exists"),
        (["--output=m.onnx", "--model=nowhere"], "model nowhere does not exist"),
    ],
)
def test_a_mistake_is_one_line(
    options: list[str],
    expected: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = save(tmp_path / "model", TINY["text_classifier"])
    with pytest.raises(SystemExit) as exit_info:
        main(["export", f"--model={folder}", *options])
    err = capsys.readouterr().err
    assert (exit_info.value.code, err.count("\n")) == (2, 1)
    assert expected in err
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_missing_packages_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find_spec = util.find_spec
    monkeypatch.setattr(export_module, "find_spec", lambda name: None if name.startswith("onnx") else find_spec(name))
    with pytest.raises(SystemExit, match="2"):
        main(["export", "--model", "any", "--output", str(tmp_path / "model.onnx")])
    assert "needs onnx, onnxscript, onnxruntime: pip install '.[export]'" in capsys.readouterr().err


def test_the_command_line_does_not_load_torch() -> None:
    code = "import sys, pipelines.models.tools; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
