import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from perceiver.build import build_model
from perceiver.config import DecoderConfig, EncoderConfig, TextClassifierConfig
from perceiver.data import encoded
from perceiver.data.encoded import EncodedSource, EncodedTexts
from perceiver.data.text_module import TextSource
from perceiver.model import PerceiverEncoder
from tests.perceiver.data.test_text_module import make_table

CPU = torch.device("cpu")
ENCODER = EncoderConfig(
    num_latents=4, num_latent_channels=8, num_layers=2, num_self_attention_layers_per_block=1,
    num_cross_attention_heads=2, num_self_attention_heads=2,
)  # fmt: skip
LATENT_BYTES = 4 * 4 * 8


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoded, "_BATCH_SIZE", 4)
    monkeypatch.setattr(encoded, "_PART_SIZE", 8)


def make_encoder(seed: int = 0) -> PerceiverEncoder:
    torch.manual_seed(seed)
    model = build_model(TextClassifierConfig(ENCODER, DecoderConfig(1), vocab_size=40, max_seq_len=32, dropout=0.5))
    return model.encoder.eval().requires_grad_(False)


def source(num_texts: int = 21, seed: int = 0) -> TextSource:
    return TextSource([make_table(num_texts, seed)])


class CountingEncoder:
    """Counts the texts that an encoder reads."""

    def __init__(self, encoder: PerceiverEncoder) -> None:
        self.num_texts = 0
        encoder.register_forward_hook(self._count)

    def _count(self, module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self.num_texts += len(output)


def test_latents_are_those_that_the_encoder_makes_of_each_text(cache_dir: Path) -> None:
    encoder, texts = make_encoder(), source()
    (kept,) = EncodedTexts(str(cache_dir), 1e9).keep(encoder, [texts], CPU)
    assert isinstance(kept, EncodedSource)
    assert len(kept) == 21
    np.testing.assert_array_equal(kept.lengths, texts.lengths)
    samples = np.array([20, 3, 3, 0, 17])
    batch, original = kept.read(samples, epoch=5), texts.read(samples, epoch=0)
    assert torch.equal(batch["labels"], original["labels"])
    expected = encoder(original["input_ids"], original["pad_mask"])
    torch.testing.assert_close(batch["latents"], expected, rtol=1e-5, atol=1e-6)


def test_each_text_is_read_once_whoever_asks(cache_dir: Path) -> None:
    encoder = make_encoder()
    counter = CountingEncoder(encoder)
    splits = [source(), source(5, seed=1)]
    first = EncodedTexts(str(cache_dir), 1e9, worker=0, num_workers=2).keep(encoder, splits, CPU)
    second = EncodedTexts(str(cache_dir), 1e9, worker=1, num_workers=2).keep(encoder, splits, CPU)
    assert counter.num_texts == 26
    for one, other in zip(first, second, strict=True):
        samples = np.arange(len(one))
        assert torch.equal(one.read(samples, 0)["latents"], other.read(samples, 0)["latents"])


def test_encoding_is_announced_where_there_is_something_to_encode(cache_dir: Path) -> None:
    announced: list[bool] = []
    for expected in (True, False):
        EncodedTexts(str(cache_dir), 1e9).keep(make_encoder(), [source()], CPU, lambda: announced.append(True))
        assert bool(announced) == expected
        announced.clear()


def test_workers_start_with_different_parts(cache_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names: list[str] = []

    def note(cache_dir: str, name: str, build: Any) -> Path:
        names.append(name)
        folder = Path(cache_dir) / name
        folder.mkdir(parents=True, exist_ok=True)
        build(folder)
        return folder

    monkeypatch.setattr(encoded, "cached_folder", note)
    EncodedTexts(str(cache_dir), 1e9, worker=1, num_workers=3).keep(make_encoder(), [source()], CPU)
    assert [name[-5:] for name in names] == ["00001", "00002", "00000"]


def test_other_weights_or_texts_are_encoded_anew(cache_dir: Path) -> None:
    texts = EncodedTexts(str(cache_dir), 1e9)
    samples = np.arange(5)
    results = [
        texts.keep(make_encoder(seed), [source(5, data_seed)], CPU)[0].read(samples, 0)["latents"]
        for seed, data_seed in [(0, 0), (1, 0), (0, 1), (0, 0)]
    ]
    assert not torch.allclose(results[0], results[1])
    assert not torch.allclose(results[0], results[2])
    assert torch.equal(results[0], results[3])


def test_what_would_take_too_much_space_is_not_kept(cache_dir: Path) -> None:
    texts, encoder = source(), make_encoder()
    wanted: list[float] = []
    too_small = EncodedTexts(str(cache_dir), 21 * LATENT_BYTES - 1)
    assert too_small.keep(encoder, [texts], CPU, without_room=wanted.append) == [texts]
    assert wanted == [21 * LATENT_BYTES]
    assert not list(cache_dir.iterdir())
    assert EncodedTexts(str(cache_dir), 21 * LATENT_BYTES).keep(encoder, [texts], CPU) != [texts]


def test_latents_used_least_recently_make_room(cache_dir: Path) -> None:
    for seed in range(3):
        EncodedTexts(str(cache_dir), 1e9).keep(make_encoder(seed), [source()], CPU)
    taken = sum(file.stat().st_size for file in cache_dir.rglob("*") if file.is_file())
    folders = sorted(cache_dir.glob("encoded-*"), key=lambda folder: folder.stat().st_mtime)
    assert len(folders) == 3
    os.utime(folders[0])  # used just now
    (cache_dir / "tokens-of-somebody").mkdir()
    EncodedTexts(str(cache_dir), taken).keep(make_encoder(3), [source()], CPU)
    left = set(cache_dir.glob("encoded-*"))
    assert folders[0] in left
    assert folders[1] not in left
    assert (cache_dir / "tokens-of-somebody").exists()


def test_filler_has_one_row_without_a_label(cache_dir: Path) -> None:
    (kept,) = EncodedTexts(str(cache_dir), 1e9).keep(make_encoder(), [source()], CPU)
    filler = kept.filler()
    assert filler["latents"].shape == (1, 4, 8)
    assert filler["labels"].tolist() == [-100]
