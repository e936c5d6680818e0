"""Fills and classes equal what the model's own logits say, and nothing is left changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from torch import Tensor

from perceiver.build import build_model
from perceiver.config import EncoderConfig, ImageClassifierConfig, MaskedLanguageModelConfig, TextClassifierConfig
from perceiver.data.tokenizer import train_tokenizer
from perceiver.errors import UserError
from perceiver.inference import Predictor, encode, evaluating, fill_masks, load
from perceiver.model import PerceiverIO, PerceiverMLM
from perceiver.saving import save_model

TOKENIZER = train_tokenizer(["what a good film", "what a bad film it was"], 40)
ENCODER = EncoderConfig(num_latents=3, num_latent_channels=8, num_layers=2, num_self_attention_layers_per_block=1)
TEXT: dict[str, Any] = {"encoder": ENCODER, "vocab_size": TOKENIZER.get_vocab_size(), "max_seq_len": 8}
MLM = MaskedLanguageModelConfig(**TEXT, dropout=0.5)
TEXT_CLASSIFIER = TextClassifierConfig(**TEXT, class_names=("bad", "fair", "good"), dropout=0.5)
IMAGE_CLASSIFIER = ImageClassifierConfig(ENCODER, image_shape=(4, 5, 3), num_frequency_bands=2, dropout=0.5)
TOLERANCE: dict[str, Any] = {"atol": 1e-6, "rtol": 1e-4}

TEXTS = ["what a [MASK] film", "what a bad film it was", "[MASK] a [MASK]", "", "it was a good [MASK]"]
NUM_MASKS = [1, 0, 2, 0, 1]


def built(config: Any) -> Any:
    """A model whose logits differ clearly."""
    model = build_model(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.5)
    return model


@pytest.fixture
def mlm() -> PerceiverMLM:
    return built(MLM)


def full_probabilities(model: PerceiverMLM, text: str, tokenizer: Tokenizer = TOKENIZER) -> Tensor:
    """Probabilities (masks, vocab_size) of a text that is decoded alone and at every position."""
    ids = torch.tensor([tokenizer.encode(text).ids])
    model.eval()
    with torch.no_grad():
        logits, _ = model(ids, masking=False)
    return logits[ids == tokenizer.token_to_id("[MASK]")].softmax(dim=-1)


def check_fills(fills: list[list[tuple[str, float]]], expected: Tensor, k: int) -> None:
    assert len(fills) == len(expected)
    for fill, row in zip(fills, expected, strict=True):
        best = row.topk(k)
        assert [token for token, _ in fill] == [TOKENIZER.id_to_token(i) for i in best.indices.tolist()]
        torch.testing.assert_close(torch.tensor([p for _, p in fill]), best.values, **TOLERANCE)


@pytest.mark.parametrize("batch_size", [1, 2, 64])
@pytest.mark.parametrize("k", [1, 5])
def test_fills_are_the_best_of_the_full_logits(mlm: PerceiverMLM, batch_size: int, k: int) -> None:
    results = Predictor(mlm, MLM, TOKENIZER, batch_size).fill(TEXTS, k)
    assert [result["text"] for result in results] == TEXTS
    assert [len(result["fills"]) for result in results] == NUM_MASKS
    for result in results:
        if result["fills"]:
            check_fills(result["fills"], full_probabilities(mlm, result["text"]), k)


def test_more_fills_than_tokens_are_all_tokens(mlm: PerceiverMLM) -> None:
    (result,) = fill_masks(mlm, TOKENIZER, ["a [MASK]"], k=1000)
    ((*fills,),) = result["fills"]
    assert {token for token, _ in fills} == set(TOKENIZER.get_vocab())
    assert sum(p for _, p in fills) == pytest.approx(1.0, abs=1e-5)


def test_texts_without_masks_have_no_fills(mlm: PerceiverMLM) -> None:
    texts = ["what a film", "", "it was"]
    assert fill_masks(mlm, TOKENIZER, texts) == [{"text": text, "fills": []} for text in texts]
    assert fill_masks(mlm, TOKENIZER, []) == []
    assert Predictor(mlm, MLM, TOKENIZER).fill([]) == []


def test_a_mask_beyond_the_end_is_left_out_and_shifts_no_other(mlm: PerceiverMLM) -> None:
    long, beyond = "a [MASK] film it was what a film [MASK]", "a film it was what a good film [MASK] [MASK]"
    results = fill_masks(mlm, TOKENIZER, [beyond, "a [MASK]", long, "[MASK] film"], k=3)
    assert [len(result["fills"]) for result in results] == [0, 1, 1, 1]
    cut = {"a [MASK]": "a [MASK]", long: "a [MASK] film it was what a film", "[MASK] film": "[MASK] film"}
    for result in results[1:]:
        check_fills(result["fills"], full_probabilities(mlm, cut[result["text"]]), 3)


def test_tokens_that_the_tokenizer_lacks_are_no_fills() -> None:
    config = MaskedLanguageModelConfig(**{**TEXT, "vocab_size": TOKENIZER.get_vocab_size() + 50})
    (result,) = fill_masks(built(config), TOKENIZER, ["a [MASK]"], k=1000)
    assert sorted(token for token, _ in result["fills"][0]) == sorted(TOKENIZER.get_vocab())


def test_every_module_stays_in_its_mode(mlm: PerceiverMLM) -> None:
    mlm.train()
    mlm.encoder.eval()
    modes = [module.training for module in mlm.modules()]
    assert len(set(modes)) == 2
    first = fill_masks(mlm, TOKENIZER, TEXTS)
    assert [module.training for module in mlm.modules()] == modes
    assert fill_masks(mlm, TOKENIZER, TEXTS) == first, "no dropout"


def test_modes_come_back_after_an_error(mlm: PerceiverMLM) -> None:
    def fail_while_evaluating() -> None:
        with evaluating(mlm):
            assert not any(module.training for module in mlm.modules())
            assert not torch.is_grad_enabled()
            raise KeyError

    mlm.train()
    with pytest.raises(KeyError):
        fail_while_evaluating()
    assert all(module.training for module in mlm.modules())
    assert torch.is_grad_enabled()


def test_encoded_texts() -> None:
    ids, pad_mask = encode(TOKENIZER, ["what a film", "", "a [MASK]"], max_seq_len=2)
    names = [[TOKENIZER.id_to_token(i) for i in row] for row in ids.tolist()]
    assert names == [["what", "a"], ["[UNK]", "[PAD]"], ["a", "[MASK]"]]
    assert pad_mask.tolist() == [[False, False], [False, True], [False, False]]


@pytest.mark.parametrize("batch_size", [1, 2, 3, 64])
def test_text_classes_are_the_softmax_of_the_logits(batch_size: int) -> None:
    model = built(TEXT_CLASSIFIER)
    texts = ["what a film", "it was bad", "", "what a good film it was what a film it was", "good"]
    predictions = Predictor(model, TEXT_CLASSIFIER, TOKENIZER, batch_size).classify(texts)
    assert len(predictions) == len(texts)
    model.eval()
    for prediction, text in zip(predictions, texts, strict=True):
        with torch.no_grad():
            row = model(torch.tensor([TOKENIZER.encode(text).ids[:8] or [1]]))[0].softmax(dim=-1)
        assert list(prediction["probabilities"]) == ["bad", "fair", "good"]
        torch.testing.assert_close(torch.tensor(list(prediction["probabilities"].values())), row, **TOLERANCE)
        assert prediction["label"] == ("bad", "fair", "good")[row.argmax()]
        assert prediction["probability"] == max(prediction["probabilities"].values())


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_image_classes_are_the_softmax_of_the_logits(batch_size: int) -> None:
    model = built(IMAGE_CLASSIFIER)
    images = np.random.default_rng(0).random((5, 4, 5, 3))
    predictions = Predictor(model, IMAGE_CLASSIFIER, batch_size=batch_size).classify(images)
    model.eval()
    with torch.no_grad():
        expected = model(torch.from_numpy(images).float()).softmax(dim=-1)
    rows = torch.tensor([list(prediction["probabilities"].values()) for prediction in predictions])
    torch.testing.assert_close(rows, expected, **TOLERANCE)
    assert [prediction["label"] for prediction in predictions] == [str(i) for i in expected.argmax(dim=-1).tolist()]


def test_classifying_nothing_gives_nothing() -> None:
    assert Predictor(built(TEXT_CLASSIFIER), TEXT_CLASSIFIER, TOKENIZER).classify([]) == []
    assert Predictor(built(IMAGE_CLASSIFIER), IMAGE_CLASSIFIER).classify(np.zeros((0, 4, 5, 3))) == []


def test_classifying_leaves_the_mode_and_uses_no_dropout() -> None:
    model: PerceiverIO = built(TEXT_CLASSIFIER)
    predictor = Predictor(model, TEXT_CLASSIFIER, TOKENIZER)
    model.train()
    assert predictor.classify(["what a film"]) == predictor.classify(["what a film"])
    assert all(module.training for module in model.modules())


def test_saved_and_loaded(mlm: PerceiverMLM, tmp_path: Path) -> None:
    save_model(tmp_path, mlm, MLM, TOKENIZER)
    assert load(tmp_path, batch_size=2).fill(TEXTS) == Predictor(mlm, MLM, TOKENIZER, 2).fill(TEXTS)
    with pytest.raises(UserError, match="does not exist"):
        load(tmp_path / "nowhere")


MISTAKES = [
    (TEXT_CLASSIFIER, "fill", ["a [MASK]"], "doesn't fill masks"),
    (IMAGE_CLASSIFIER, "fill", [], "doesn't fill masks"),
    (MLM, "classify", ["a film"], "doesn't classify"),
    (MLM, "fill", "a [MASK]", "give a list of strings"),
    (MLM, "fill", [3], "give a list of strings"),
    (MLM, "fill", ["a [MASK]", "b\ud83d"], "text 2 has half a character"),
    (TEXT_CLASSIFIER, "classify", ["b\ud83d"], "text 1 has half a character"),
    (IMAGE_CLASSIFIER, "classify", Path("a.png"), "the inputs are one image file: give a list of them"),
    (TEXT_CLASSIFIER, "classify", "a film", "give a list of strings"),
    (TEXT_CLASSIFIER, "classify", np.zeros((1, 4, 5, 3)), "give a list of strings"),
    (IMAGE_CLASSIFIER, "classify", ["a film"], "cannot be read as an image"),
    (IMAGE_CLASSIFIER, "classify", np.zeros((4, 5, 3)), r"images have the shape \(5, 3\), but must have \(4, 5, 3\)"),
    (IMAGE_CLASSIFIER, "classify", [np.zeros((4, 5, 3)), np.zeros((5, 4, 3))], "the inputs are not images"),
]


@pytest.mark.parametrize(("config", "method", "inputs", "expected"), MISTAKES)
def test_mistakes_are_one_line(config: Any, method: str, inputs: Any, expected: str) -> None:
    predictor = Predictor(built(config), config, TOKENIZER)
    with pytest.raises(UserError, match=expected) as caught:
        getattr(predictor, method)(inputs)
    assert "\n" not in str(caught.value)


def test_numbers_below_one_are_refused(mlm: PerceiverMLM) -> None:
    with pytest.raises(UserError, match="k is 0"):
        Predictor(mlm, MLM, TOKENIZER).fill(["a [MASK]"], k=0)
    with pytest.raises(UserError, match="batch_size is 0"):
        Predictor(mlm, MLM, TOKENIZER, batch_size=0)


def test_a_text_model_without_its_tokenizer(mlm: PerceiverMLM) -> None:
    with pytest.raises(UserError, match="has no tokenizer"):
        Predictor(mlm, MLM).fill(["a [MASK]"])
    with pytest.raises(UserError, match="has no tokenizer"):
        Predictor(built(TEXT_CLASSIFIER), TEXT_CLASSIFIER).classify(["a film"])
