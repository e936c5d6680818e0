"""The maps say what was read: weights times values are what attention returned, and the model notices nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from perceiver.attention import KeyValue
from perceiver.attention_maps import attention_maps, input_attribution, observed
from perceiver.build import build_model
from perceiver.config import (
    DecoderConfig,
    EncoderConfig,
    ImageClassifierConfig,
    MaskedLanguageModelConfig,
    ModelConfig,
    TextClassifierConfig,
)
from perceiver.grid import GridKeyValue

NUM_LATENTS, NUM_LAYERS, NUM_TOKENS = 6, 3, 9
ENCODER = EncoderConfig(
    num_latents=NUM_LATENTS, num_latent_channels=16, num_layers=NUM_LAYERS, num_self_attention_layers_per_block=2,
    num_cross_attention_heads=2, num_cross_attention_qk_channels=8, num_cross_attention_v_channels=12,
)  # fmt: skip
DECODER = DecoderConfig(num_cross_attention_heads=4)
CONFIGS: dict[str, ModelConfig] = {
    "mlm": MaskedLanguageModelConfig(ENCODER, DECODER, vocab_size=30, max_seq_len=12, dropout=0.3),
    "text": TextClassifierConfig(ENCODER, DECODER, vocab_size=30, max_seq_len=12, dropout=0.3),
    "image": ImageClassifierConfig(ENCODER, DECODER, image_shape=(4, 3, 2), num_frequency_bands=2, dropout=0.3),
}
PAD_MASK = torch.arange(NUM_TOKENS) >= torch.tensor([[NUM_TOKENS], [4]])


def make(kind: str, double: bool = False) -> tuple[Any, tuple[Any, ...]]:
    """Return a model whose weights are large enough for attention that is not uniform, and what it is called with."""
    torch.manual_seed(3)
    model = build_model(CONFIGS[kind])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    if kind == "image":
        arguments: tuple[Any, ...] = (torch.rand(2, 4, 3, 2, dtype=torch.float64 if double else torch.float32),)
    else:
        arguments = (torch.randint(3, 30, (2, NUM_TOKENS)), PAD_MASK)
    return (model.double() if double else model).eval(), arguments


def call(model: nn.Module, kind: str, arguments: tuple[Any, ...]) -> Tensor:
    with torch.no_grad():
        return model(*arguments, masking=False)[0] if kind == "mlm" else model(*arguments)


@pytest.fixture
def attended(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Tensor, Tensor]]:
    """Values and what attention to them returned, for each attention of the passes that follow."""
    noted: list[tuple[Tensor, Tensor]] = []
    plain, in_place = KeyValue.attend, GridKeyValue.attend

    def attend(kv: KeyValue, *arguments: Any) -> Tensor:
        noted.append((kv.values, plain(kv, *arguments)))
        return noted[-1][1]

    def attend_in_place(kv: GridKeyValue, *arguments: Any) -> Tensor:
        result = in_place(kv, *arguments)
        noted.append((kv.written_out().values, result))
        return result

    monkeypatch.setattr(KeyValue, "attend", attend)
    monkeypatch.setattr(GridKeyValue, "attend", attend_in_place)
    return noted


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize(("double", "tolerance"), [(False, 1e-5), (True, 1e-10)], ids=["32 bit", "64 bit"])
def test_weights_times_values_are_what_attention_returned(
    attended: list[tuple[Tensor, Tensor]], kind: str, double: bool, tolerance: float
) -> None:
    model, arguments = make(kind, double)
    with observed(model) as applications:
        call(model, kind, arguments)
    assert len(applications) == len(attended) == NUM_LAYERS * 3 + 1
    for (_, weights), (values, result) in zip(applications, attended, strict=True):
        torch.testing.assert_close(weights @ values, result, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("kind", CONFIGS)
def test_maps_have_the_shapes_of_the_model_and_their_rows_add_up_to_one(kind: str) -> None:
    model, arguments = make(kind)
    maps = attention_maps(model, *arguments)
    num_inputs, num_outputs = (12, 1) if kind == "image" else (NUM_TOKENS, NUM_TOKENS if kind == "mlm" else 1)
    assert [weights.shape for weights in maps.cross] == [(2, 2, NUM_LATENTS, num_inputs)] * NUM_LAYERS
    assert maps.decoder.shape == (2, 4, num_outputs, NUM_LATENTS)
    for weights in (*maps.cross, maps.decoder):
        torch.testing.assert_close(weights.sum(dim=-1), torch.ones(weights.shape[:-1]))
        assert weights.std(dim=-1).max() > 0.05, "attention that is uniform would hide mistakes"
    if kind != "image":
        assert all(not weights[1, :, :, 4:].any() for weights in maps.cross), "padding is read"


@pytest.mark.parametrize("kind", CONFIGS)
def test_the_model_computes_the_same_bits_and_keeps_no_hook(kind: str) -> None:
    model, arguments = make(kind)
    before = call(model, kind, arguments)
    model.train()
    maps = attention_maps(model, *arguments)
    assert all(module.training for module in model.modules())
    model.eval()
    assert torch.equal(maps.output, before)
    assert torch.equal(call(model, kind, arguments), before)
    assert not any(module._forward_hooks for module in model.modules())


def test_a_row_of_padding_alone_reads_nothing() -> None:
    model, (tokens, _) = make("text")
    pad_mask = torch.tensor([[False] * NUM_TOKENS, [True] * NUM_TOKENS])
    maps = attention_maps(model, tokens, pad_mask)
    assert all(not weights[1].any() and weights[0].any() for weights in maps.cross)
    shares = input_attribution(model, tokens, pad_mask)
    assert shares.isfinite().all()
    assert not shares[1].any()


def test_an_encoder_that_reads_once_has_one_map() -> None:
    once = EncoderConfig(num_latents=4, num_latent_channels=8, num_layers=3, cross_attention_first_only=True)
    model = build_model(TextClassifierConfig(once, vocab_size=30, max_seq_len=12))
    assert len(attention_maps(model, torch.randint(3, 30, (2, 5))).cross) == 1


@pytest.mark.parametrize("kind", CONFIGS)
def test_shares_of_the_inputs_add_up_to_one_and_padding_has_none(kind: str) -> None:
    model, arguments = make(kind)
    shares = input_attribution(model, *arguments)
    assert shares.shape == (2, 12 if kind == "image" else NUM_TOKENS)
    torch.testing.assert_close(shares.sum(dim=1), torch.ones(2))
    assert (shares >= 0).all()
    if kind != "image":
        assert not shares[1, 4:].any()


def test_shares_of_a_model_of_one_layer_are_products_of_its_maps() -> None:
    _, arguments = make("image")
    one = EncoderConfig(num_latents=4, num_latent_channels=8, num_layers=1, num_self_attention_layers_per_block=1)
    model = build_model(ImageClassifierConfig(one, DECODER, (4, 3, 2), 2)).eval()
    with observed(model) as applications:
        call(model, "image", arguments)
    cross, among, decoder = (weights.mean(dim=1) for _, weights in applications)
    expected = decoder @ (0.5 * among @ cross + 0.5 * cross)
    torch.testing.assert_close(input_attribution(model, *arguments), expected[:, 0])


def test_the_one_input_that_differs_is_the_one_that_is_read() -> None:
    """A model whose keys point to one token: all that is read on the way to the prediction is that token."""
    model, _ = make("text")
    tokens = torch.tensor([[5, 6, 7, 8]])
    adapter = model.encoder.input_adapter
    with torch.no_grad():
        adapter.positions.zero_()
        for layer in (model.encoder.cross_attention_1, model.encoder.cross_attention_n):
            layer.attention.q_proj.weight.zero_()
            layer.attention.q_proj.bias.fill_(1.0)
            normed = layer.kv_norm(adapter(tokens))[0, 2]
            layer.attention.k_proj.weight.copy_(normed.expand_as(layer.attention.k_proj.weight) * 10)
    assert input_attribution(model, tokens).argmax(dim=1).tolist() == [2]
    assert input_attribution(model, tokens)[0, 2] > 0.95
