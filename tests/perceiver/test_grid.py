from typing import Any

import pytest
import torch
from torch import Tensor

from perceiver import grid
from perceiver.adapter import ImageInputAdapter
from perceiver.attention import CrossAttentionLayer
from perceiver.build import build_model
from perceiver.config import DecoderConfig, EncoderConfig, ImageClassifierConfig
from perceiver.grid import GridInputs, attends_in_place

NUM_CHANNELS = 8


def make_layer(num_kv_channels: int, **options: Any) -> CrossAttentionLayer:
    """Return a layer whose norms and biases are not those of a new one, which would hide that they are left out."""
    layer = CrossAttentionLayer(NUM_CHANNELS, num_kv_channels, num_heads=2, **options)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return layer


def results(layer: CrossAttentionLayer, x: Tensor, inputs: Tensor | GridInputs) -> dict[str, Tensor]:
    """Return what the layer makes of queries and inputs, and the gradients of queries and parameters."""
    x = x.clone().requires_grad_()
    layer.zero_grad()
    output = layer(x, inputs.project(layer) if isinstance(inputs, GridInputs) else layer.project(inputs))
    output.square().sum().backward()
    assert x.grad is not None
    gradients = {name: p.grad.clone() for name, p in layer.named_parameters() if p.grad is not None}
    return {"output": output.detach(), "queries": x.grad, **gradients}


def assert_same(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Compare all but the biases of keys, whose gradients are zero but for rounding."""
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        if name.endswith("k_proj.bias"):
            continue
        torch.testing.assert_close(actual[name], value, rtol=1e-5, atol=1e-5 * value.abs().max().item(), msg=name)


@pytest.mark.parametrize("num_features", [1, 3])
@pytest.mark.parametrize("num_query_rows", [1, 5])
@pytest.mark.parametrize("options", [{}, {"num_qk_channels": 4, "num_v_channels": 6}], ids=["default", "narrow"])
@pytest.mark.parametrize("chunk", [1, 2 * 2 * 3 * 20, 10**6], ids=["1 image", "2 images", "all"])
def test_attention_in_place_equals_that_to_keys_and_values(
    monkeypatch: pytest.MonkeyPatch, num_features: int, num_query_rows: int, options: dict[str, int], chunk: int
) -> None:
    monkeypatch.setattr(grid, "CHUNK_ELEMENTS", chunk)
    features, positions = torch.randn(5, 20, num_features), torch.randn(20, 7)
    layer = make_layer(num_features + 7, **options).double()
    x = torch.randn(num_query_rows, 3, NUM_CHANNELS).double()
    inputs = GridInputs(features.double(), positions.double())
    whole = torch.cat([inputs.features, inputs.positions.expand(5, -1, -1)], dim=-1)
    assert_same(results(layer, x, inputs), results(layer, x, whole))


def test_gradient_is_the_derivative(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grid, "CHUNK_ELEMENTS", 1)
    shapes = [(2, 3, 2, 4), (2, 4, 5), (2, 1, 4), (2, 3, 5), (2, 1, 3)]
    q, *tables = (torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes)
    features, inverse_std = torch.randn(3, 5, 1).double(), torch.rand(3, 5).double() + 0.5

    def attend(q: Tensor, *tables: Tensor) -> Tensor:
        return grid._GridAttention.apply(q, features, inverse_std, *tables)

    assert torch.autograd.gradcheck(attend, (q, *tables))


def make_model(image_shape: tuple[int, int, int], dropout: float = 0.0) -> Any:
    encoder = EncoderConfig(
        num_latents=6, num_latent_channels=16, num_layers=3, num_self_attention_layers_per_block=1,
        num_cross_attention_heads=2, num_self_attention_heads=2,
    )  # fmt: skip
    decoder = DecoderConfig(num_cross_attention_heads=1)
    return build_model(ImageClassifierConfig(encoder, decoder, image_shape, 5, dropout=dropout))


def logits_and_gradients(model: Any, images: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    torch.manual_seed(7)  # of dropout
    logits = model(images)
    logits.square().sum().backward()
    return {"logits": logits.detach(), **{name: p.grad.clone() for name, p in model.named_parameters()}}


@pytest.mark.parametrize("image_shape", [(9, 7, 1), (4, 4, 3)])
def test_model_of_images_is_the_plain_one(monkeypatch: pytest.MonkeyPatch, image_shape: tuple[int, int, int]) -> None:
    model, images = make_model(image_shape), 2 * torch.rand(5, *image_shape) - 1
    fast = logits_and_gradients(model, images)
    monkeypatch.setattr(ImageInputAdapter, "inputs", lambda self, x: self(x))
    monkeypatch.setattr(ImageInputAdapter, "forward", whole_inputs)
    plain = logits_and_gradients(model, images)
    assert_same(fast, plain)
    biases = [value for name, value in fast.items() if "encoder.cross" in name and name.endswith("k_proj.bias")]
    assert len(biases) == 2
    assert not any(bias.any() for bias in biases)


def test_training_goes_on_after_inference_in_the_same_thread() -> None:
    grid._scratch.memory = None
    model, images = make_model((6, 6, 1)), torch.rand(3, 6, 6, 1)
    with torch.inference_mode():
        predicted = model(images)
    torch.testing.assert_close(logits_and_gradients(model, images)["logits"], predicted.clone())
    assert torch.equal(model(images), predicted)


def whole_inputs(adapter: ImageInputAdapter, x: Tensor) -> Tensor:
    positions = adapter.position_encoding.expand(len(x), -1, -1)
    return torch.cat([x.reshape(len(x), -1, x.shape[-1]), positions], dim=-1)


def test_dropout_of_attention_weights_leaves_it_to_keys_and_values(monkeypatch: pytest.MonkeyPatch) -> None:
    model, images = make_model((5, 5, 1), dropout=0.5).train(), torch.rand(4, 5, 5, 1)
    fast = logits_and_gradients(model, images)
    monkeypatch.setattr(ImageInputAdapter, "inputs", whole_inputs)
    assert_same(fast, logits_and_gradients(model, images))


def test_padding_and_gradients_of_pixels_are_those_of_the_plain_model(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model((3, 4, 1))
    pad_mask = torch.arange(12).expand(2, -1) >= torch.tensor([[12], [5]])

    def run() -> tuple[Tensor, Tensor]:
        torch.manual_seed(1)
        images = torch.rand(2, 3, 4, 1).requires_grad_()
        logits = model(images, pad_mask)
        logits.sum().backward()
        assert images.grad is not None
        return logits.detach(), images.grad

    fast = run()
    monkeypatch.setattr(ImageInputAdapter, "inputs", whole_inputs)
    torch.testing.assert_close(fast, run(), rtol=1e-5, atol=1e-6)


def test_where_it_attends_in_place() -> None:
    q, features = torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, 1)
    assert attends_in_place(q, features, dropout_p=0.0)
    assert not attends_in_place(q, features, dropout_p=0.1)
    assert not attends_in_place(q.to("meta"), features, dropout_p=0.0)
    assert not attends_in_place(q, features.clone().requires_grad_(), dropout_p=0.0)
    with torch.autocast("cpu", torch.bfloat16):
        assert not attends_in_place(q, features, dropout_p=0.0)
