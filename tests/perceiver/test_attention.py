import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from perceiver.attention import (
    MLP,
    CrossAttentionLayer,
    MultiHeadAttention,
    SelfAttentionLayer,
    attend,
    needs_fused_kernel,
    packed_linear,
)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def random_qkv(num_queries=3, num_inputs=5, qk_channels=4, v_channels=4):
    return (
        torch.randn(2, 2, num_queries, qk_channels),
        torch.randn(2, 2, num_inputs, qk_channels),
        torch.randn(2, 2, num_inputs, v_channels),
    )


def test_attend_equals_the_formula():
    q, k, v = random_qkv(qk_channels=4, v_channels=6)
    weights = (q @ k.transpose(-1, -2) / math.sqrt(4)).softmax(dim=-1)
    torch.testing.assert_close(attend(q, k, v), weights @ v)


def test_padding_is_as_if_it_were_not_there():
    q, k, v = random_qkv()
    pad_mask = torch.tensor([[False, False, True, True, True], [False] * 5])
    result = attend(q, k, v, pad_mask)
    torch.testing.assert_close(result[:1], attend(q[:1], k[:1, :, :2], v[:1, :, :2]))
    torch.testing.assert_close(result[1:], attend(q[1:], k[1:], v[1:]))


def textbook_kernel(q, k, v, attn_mask=None, dropout_p=0.0):
    """Attention by the formula, for which a row with nothing to attend to is NaN."""
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, -math.inf)
    return scores.softmax(dim=-1) @ v


@pytest.mark.parametrize("kernel", [F.scaled_dot_product_attention, textbook_kernel], ids=["torch", "textbook"])
def test_row_of_padding_gives_zeros_and_finite_gradients(monkeypatch, kernel):
    monkeypatch.setattr(F, "scaled_dot_product_attention", kernel)
    q, k, v = (x.requires_grad_() for x in random_qkv())
    pad_mask = torch.tensor([[True] * 5, [False] * 5])
    result = attend(q, k, v, pad_mask)
    assert torch.equal(result[0], torch.zeros_like(result[0]))
    torch.testing.assert_close(result[1:], attend(q[1:], k[1:], v[1:]))

    result.square().sum().backward()
    for x in (q, k, v):
        assert torch.equal(x.grad[0], torch.zeros_like(x.grad[0]))
        assert x.grad[1].isfinite().all()
        assert x.grad[1].any()


def test_dropout_of_attention_weights_keeps_their_mean():
    q, k = torch.zeros(1, 1, 20_000, 2), torch.zeros(1, 1, 4, 2)
    v = torch.ones(1, 1, 4, 2)
    result = attend(q, k, v, dropout_p=0.5)
    assert set(result.unique().tolist()) == {0.0, 0.5, 1.0, 1.5, 2.0}
    assert result.mean().item() == pytest.approx(1.0, abs=0.02)


def test_multi_head_attention_equals_torchs():
    attention, reference = MultiHeadAttention(8, 6, num_heads=2), nn.MultiheadAttention(8, 2, kdim=6, vdim=6)
    biases = torch.randn(24)
    with torch.no_grad():
        for name, bias in zip("qkv", biases.chunk(3), strict=True):
            linear = getattr(attention, f"{name}_proj")
            linear.bias.copy_(bias)
            getattr(reference, f"{name}_proj_weight").copy_(linear.weight)
        reference.in_proj_bias.copy_(biases)
    reference.out_proj.load_state_dict(attention.out_proj.state_dict())

    x_q, x_kv = torch.randn(2, 3, 8), torch.randn(2, 5, 6)
    pad_mask = torch.tensor([[False, False, False, True, True], [False] * 5])
    reference.batch_first = True
    expected, _ = reference(x_q, x_kv, x_kv, key_padding_mask=pad_mask)
    torch.testing.assert_close(attention(x_q, attention.project_kv(x_kv), pad_mask), expected)


def test_channels_of_queries_values_and_output():
    attention = MultiHeadAttention(8, 6, num_heads=2, num_qk_channels=4, num_v_channels=10, num_output_channels=3)
    kv = attention.project_kv(torch.randn(2, 5, 6))
    assert kv.keys.shape == (2, 2, 5, 2)
    assert kv.values.shape == (2, 2, 5, 5)
    assert attention(torch.randn(2, 7, 8), kv).shape == (2, 7, 3)


@pytest.mark.parametrize("channels", [{"num_qk_channels": 9}, {"num_v_channels": 9}])
def test_heads_must_divide_channels(channels):
    with pytest.raises(ValueError, match=r"num_heads is 2, but must divide .* \(9\) evenly"):
        MultiHeadAttention(8, 8, num_heads=2, **channels)


@pytest.mark.parametrize(("num_kv_channels", "fan"), [(64, 4 * 64), (32, 64 + 32)], ids=["equal", "unequal"])
def test_initial_values_are_those_of_torchs_attention(num_kv_channels, fan):
    attention = MultiHeadAttention(64, num_kv_channels, num_heads=4)
    bound = math.sqrt(6 / fan)
    largest = attention.k_proj.weight.abs().max().item()
    assert 0.98 * bound < largest <= bound * (1 + 1e-6)
    assert attention.out_proj.weight.abs().max().item() == pytest.approx(1 / math.sqrt(64), rel=0.02)
    for linear in (attention.q_proj, attention.k_proj, attention.v_proj, attention.out_proj):
        assert not linear.bias.any()


def test_mlp_is_norm_linear_exact_gelu_linear():
    mlp = MLP(4, widening_factor=3)
    norm, hidden, _, output = mlp
    x = torch.randn(2, 5, 4)
    h = hidden(norm(x))
    assert h.shape == (2, 5, 12)
    exact_gelu = h * 0.5 * (1 + torch.erf(h / math.sqrt(2)))
    torch.testing.assert_close(mlp(x), output(exact_gelu))


@pytest.mark.parametrize("query_residual", [True, False])
def test_cross_attention_layer_equals_the_formula(query_residual):
    layer = CrossAttentionLayer(8, 6, num_heads=2, query_residual=query_residual)
    x, inputs = torch.randn(2, 3, 8), torch.randn(2, 5, 6)
    attended = layer.attention(layer.q_norm(x), layer.attention.project_kv(layer.kv_norm(inputs)))
    expected = x + attended if query_residual else attended
    expected = expected + layer.mlp(expected)
    torch.testing.assert_close(layer(x, layer.project(inputs)), expected)


def test_self_attention_layer_equals_the_formula():
    layer = SelfAttentionLayer(8, num_heads=2)
    x = torch.randn(2, 3, 8)
    normalized = layer.norm(x)
    expected = x + layer.attention(normalized, layer.attention.project_kv(normalized))
    expected = expected + layer.mlp(expected)
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize("layer_class", [SelfAttentionLayer, CrossAttentionLayer])
@pytest.mark.parametrize("branch", ["attention", "mlp"])
def test_dropout_of_each_branch_in_training_only(layer_class, branch):
    channels = (8,) if layer_class is SelfAttentionLayer else (8, 8)
    layer = layer_class(*channels, num_heads=2, dropout=0.999999)
    # Of the other branch nothing is left; this one gives ones, whatever becomes of its inputs.
    for part, value in ((layer.attention.out_proj, branch == "attention"), (layer.mlp[-1], branch == "mlp")):
        nn.init.zeros_(part.weight)
        nn.init.constant_(part.bias, float(value))
    x = torch.randn(2, 3, 8)
    kv = () if layer_class is SelfAttentionLayer else (layer.project(x),)
    assert torch.equal(layer(x, *kv), x)
    assert torch.equal(layer.eval()(x, *kv), x + 1)


def test_dropout_of_attention_weights_in_training_only():
    attention = MultiHeadAttention(8, 8, num_heads=2, dropout=0.5)
    x = torch.randn(2, 3, 8)
    kv = attention.project_kv(x)
    assert not torch.equal(attention(x, kv), attention(x, kv))
    attention.eval()
    assert torch.equal(attention(x, kv), attention(x, kv))


@pytest.mark.parametrize(
    ("device", "dtype", "channels", "expected"),
    [
        ("cuda", torch.bfloat16, 16, True),
        ("cuda", torch.float32, 8, True),
        ("cuda", torch.float64, 16, False),
        ("cuda", torch.bfloat16, 6, False),
        ("cpu", torch.float32, 16, False),
    ],
)
def test_gpus_have_to_use_a_fused_kernel_where_there_is_one(device, dtype, channels, expected):
    q = SimpleNamespace(device=torch.device(device), dtype=dtype, shape=(1, 1, 1, channels))
    assert needs_fused_kernel(q, q) is expected


def test_where_a_fused_kernel_is_needed_torch_may_use_no_other(monkeypatch):
    allowed = []

    def note(*args, **kwargs):
        allowed.append((torch.backends.cuda.flash_sdp_enabled(), torch.backends.cuda.math_sdp_enabled()))
        return textbook_kernel(*args, **kwargs)

    monkeypatch.setattr(F, "scaled_dot_product_attention", note)
    for needed in (True, False):
        monkeypatch.setattr("perceiver.attention.needs_fused_kernel", lambda q, v, needed=needed: needed)
        attend(*random_qkv())
    assert allowed == [(True, False), (True, True)]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("padding", [False, True])
def test_gpu_attends_like_the_cpu(dtype, padding):
    q, k, v = random_qkv(qk_channels=16, v_channels=16)
    pad_mask = torch.tensor([[False, False, True, True, True], [False] * 5]) if padding else None
    on_gpu = (x.to("cuda", dtype) for x in (q, k, v))
    result = attend(*on_gpu, None if pad_mask is None else pad_mask.to("cuda"))
    torch.testing.assert_close(result.cpu().float(), attend(q, k, v, pad_mask), rtol=0.02, atol=0.02)


def test_queries_shared_by_all_rows_are_as_if_repeated():
    layer = CrossAttentionLayer(num_q_channels=8, num_kv_channels=6, num_heads=2)
    x, inputs = torch.randn(1, 3, 8), torch.randn(4, 5, 6)
    torch.testing.assert_close(layer(x, layer.project(inputs)), layer(x.expand(4, -1, -1), layer.project(inputs)))


def test_packed_layers_are_the_layers():
    layers, x = [nn.Linear(5, 3), nn.Linear(5, 4)], torch.randn(2, 6, 5)
    for result, layer in zip(packed_linear(x, *layers), layers, strict=True):
        torch.testing.assert_close(result, layer(x))
