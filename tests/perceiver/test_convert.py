"""Parity with the reference: with its recorded results, and with its rules written again with torch's layers."""

import json
import math
import os
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from perceiver.config import ImageClassifierConfig, MaskedLanguageModelConfig, TextClassifierConfig
from perceiver.convert import from_reference, reference_config
from perceiver.errors import UserError
from perceiver.model import PerceiverIO, PerceiverMLM

DATA = os.environ.get("PERCEIVER_TEST_DATA")
TOLERANCE = {"atol": 1e-5, "rtol": 0}


@pytest.mark.skipif(not DATA, reason="PERCEIVER_TEST_DATA does not name the folder of test data")
@pytest.mark.parametrize("name", ["masked_lm", "text_classifier", "image_classifier"])
def test_recorded_results_of_the_reference(name):
    path = Path(DATA).parent / "reference" / f"{name}.safetensors"
    tensors = load_file(path)
    with safe_open(path, "pt") as file:
        config = json.loads(file.metadata()["config"])
    model = from_reference({key: tensor for key, tensor in tensors.items() if key.startswith("state.")}, config)
    x, pad_mask = tensors["input"], tensors.get("pad_mask")
    with torch.no_grad():
        logits = model(x, pad_mask, masking=False)[0] if name == "masked_lm" else model(x, pad_mask)
        torch.testing.assert_close(logits, tensors["logits"], **TOLERANCE)
        if "latents" in tensors:
            torch.testing.assert_close(model.encoder(x, pad_mask), tensors["latents"], **TOLERANCE)


class Residual(nn.Module):
    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, x, *args):
        return x + self.module(x, *args)


class Attention(nn.Module):
    """Named so that the weights are at attention.attention, as in the reference."""

    def __init__(self, channels, kv_channels, heads):
        super().__init__()
        self.attention = nn.MultiheadAttention(channels, heads, kdim=kv_channels, vdim=kv_channels, batch_first=True)
        nn.init.normal_(self.attention.in_proj_bias)


class NormedCrossAttention(nn.Module):
    def __init__(self, channels, kv_channels, heads):
        super().__init__()
        self.q_norm, self.kv_norm = nn.LayerNorm(channels), nn.LayerNorm(kv_channels)
        self.attention = Attention(channels, kv_channels, heads)

    def forward(self, x, inputs, pad_mask=None):
        inputs = self.kv_norm(inputs)
        return self.attention.attention(self.q_norm(x), inputs, inputs, key_padding_mask=pad_mask)[0]


class NormedSelfAttention(nn.Module):
    def __init__(self, channels, heads):
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.attention = Attention(channels, channels, heads)

    def forward(self, x):
        x = self.norm(x)
        return self.attention.attention(x, x, x)[0]


def mlp(channels):
    linears = [nn.Linear(channels, channels) for _ in range(2)]
    return Residual(nn.Sequential(nn.LayerNorm(channels), linears[0], nn.GELU(), linears[1]))


def cross_attention_layer(channels, kv_channels, heads):
    return nn.ModuleList([Residual(NormedCrossAttention(channels, kv_channels, heads)), mlp(channels)])


def self_attention_block(channels, heads, depth):
    layers = [nn.Sequential(Residual(NormedSelfAttention(channels, heads)), mlp(channels)) for _ in range(depth)]
    return nn.Sequential(*layers)


class Adapter(nn.Module):
    """Holds the parameters of an adapter of the reference."""


class ReferenceEncoder(nn.Module):
    def __init__(self, config):
        super().__init__()
        num_latents, channels = config["latent_shape"]
        self.num_layers, self.channels = config["num_layers"], channels
        self.input_adapter, input_channels = Adapter(), channels
        if "vocab_size" in config:
            self.input_adapter.text_embedding = nn.Embedding(config["vocab_size"], channels)
            self.input_adapter.pos_encoding = nn.Parameter(torch.randn(config["max_seq_len"], channels))
        else:
            encoding = image_position_encoding(*config["image_shape"][:2], config["num_frequency_bands"])
            self.input_adapter.register_buffer("position_encoding", encoding)
            input_channels = config["image_shape"][2] + encoding.shape[1]
        self.latent = nn.Parameter(torch.randn(num_latents, channels))
        heads, depth = config["num_heads"], config["num_self_attention_layers_per_block"]
        for name in ("layer_1", "layer_n")[: self.num_layers]:
            parts = [
                cross_attention_layer(channels, input_channels, heads),
                self_attention_block(channels, heads, depth),
            ]
            setattr(self, name, nn.ModuleList(parts))

    def inputs(self, x):
        adapter = self.input_adapter
        if hasattr(adapter, "text_embedding"):
            return adapter.text_embedding(x) * math.sqrt(self.channels) + adapter.pos_encoding[: x.shape[1]]
        return torch.cat([x.flatten(1, 2), adapter.position_encoding.expand(len(x), -1, -1)], dim=-1)

    def forward(self, x, pad_mask=None):
        inputs = self.inputs(x)
        latents = self.latent.expand(len(x), -1, -1)
        for index in range(self.num_layers):
            (attend, feed_forward), block = self.layer_1 if index == 0 else self.layer_n
            latents = block(feed_forward(attend(latents, inputs, pad_mask)))
        return latents


class ReferenceDecoder(nn.Module):
    def __init__(self, config):
        super().__init__()
        _, channels = config["latent_shape"]
        self.cross_attention = cross_attention_layer(channels, channels, config["num_decoder_heads"])
        self.output = nn.Parameter(torch.randn(1 if "num_classes" in config else config["max_seq_len"], channels))
        self.output_adapter = Adapter()
        self.output_adapter.linear = nn.Linear(channels, config.get("num_classes") or config["vocab_size"])

    def forward(self, latents):
        attend, feed_forward = self.cross_attention
        output = feed_forward(attend(self.output.expand(len(latents), -1, -1), latents))
        return self.output_adapter.linear(output)


def image_position_encoding(height, width, num_bands):
    """The rule spelled out pixel by pixel."""
    axes = [(torch.linspace(-1, 1, size), torch.linspace(1, size / 2, num_bands)) for size in (height, width)]
    rows = []
    for y in axes[0][0]:
        for x in axes[1][0]:
            phases = [math.pi * f * p for p, bands in ((y, axes[0][1]), (x, axes[1][1])) for f in bands]
            rows.append([y, x, *(math.sin(phase) for phase in phases), *(math.cos(phase) for phase in phases)])
    return torch.tensor(rows)


def reference_model(config, seed=0):
    torch.manual_seed(seed)
    names = ("encoder", "decoder") if config["task"] == "mlm" else ("0", "1")
    model = nn.Sequential()
    for name, part in zip(names, (ReferenceEncoder(config), ReferenceDecoder(config)), strict=True):
        model.add_module(name, part)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            nn.init.normal_(parameter)
    return model.eval()


TEXT = {"vocab_size": 31, "max_seq_len": 9}
IMAGE = {"image_shape": [4, 6, 2], "num_frequency_bands": 3}


def shapes(task, num_layers, latent_shape, num_heads, num_decoder_heads, depth, **more):
    return {
        "task": task,
        "num_layers": num_layers,
        "latent_shape": list(latent_shape),
        "num_heads": num_heads,
        "num_decoder_heads": num_decoder_heads,
        "num_self_attention_layers_per_block": depth,
        **more,
    }


CONFIGS = [
    shapes("mlm", 1, (5, 8), 2, 4, 1, **TEXT),
    shapes("mlm", 4, (3, 12), 3, 2, 3, **TEXT),
    shapes("text_classification", 2, (5, 8), 1, 8, 2, num_classes=5, **TEXT),
    shapes("image_classification", 1, (5, 8), 4, 1, 2, num_classes=3, **IMAGE),
    shapes("image_classification", 4, (2, 12), 2, 3, 1, num_classes=2, **IMAGE),
    # 2 + 2 + 4 * 3 = 16 channels, as many as the latents have.
    shapes("image_classification", 3, (4, 16), 2, 1, 1, num_classes=2, **IMAGE),
]
MLM_CONFIG, IMAGE_CONFIG = CONFIGS[1], CONFIGS[3]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: f"{c['task']}-{c['num_layers']}-{c['latent_shape']}")
def test_parity_with_a_second_implementation(config):
    reference = reference_model(config)
    model = from_reference(reference.state_dict(), config)
    pad_mask = None
    if "vocab_size" in config:
        x = torch.randint(config["vocab_size"], (3, 9))
        pad_mask = torch.arange(9) >= torch.tensor([9, 4, 1])[:, None]
    else:
        x = torch.rand(3, *config["image_shape"])
    encoder, decoder = reference
    with torch.no_grad():
        latents = encoder(x, pad_mask)
        logits = decoder(latents)
        torch.testing.assert_close(model.encoder(x, pad_mask), latents, **TOLERANCE)
        if config["task"] == "mlm":
            torch.testing.assert_close(model(x, pad_mask, masking=False)[0], logits, **TOLERANCE)
        else:
            torch.testing.assert_close(model(x, pad_mask), logits[:, 0], **TOLERANCE)


def test_translated_configs():
    mlm, text, image = (reference_config(CONFIGS[index]) for index in (1, 2, 3))
    assert isinstance(mlm, MaskedLanguageModelConfig)
    assert (mlm.encoder.num_latents, mlm.encoder.num_latent_channels, mlm.encoder.num_layers) == (3, 12, 4)
    assert (mlm.vocab_size, mlm.max_seq_len) == (31, 9)
    assert isinstance(text, TextClassifierConfig)
    assert text.class_names == ("0", "1", "2", "3", "4")
    assert isinstance(image, ImageClassifierConfig)
    assert (image.image_shape, image.num_frequency_bands) == ((4, 6, 2), 3)
    assert reference_config({**CONFIGS[3], "class_names": ["x", "y", "z"]}).class_names == ("x", "y", "z")


def test_model_is_in_eval_mode_and_of_its_class():
    mlm = from_reference(reference_model(MLM_CONFIG).state_dict(), MLM_CONFIG)
    image = from_reference(reference_model(IMAGE_CONFIG).state_dict(), IMAGE_CONFIG)
    assert isinstance(mlm, PerceiverMLM)
    assert isinstance(image, PerceiverIO)
    assert not mlm.training
    assert not image.training


@pytest.mark.parametrize("prefix", ["state.", "model."])
@pytest.mark.parametrize("config", [MLM_CONFIG, IMAGE_CONFIG], ids=["mlm", "image"])
def test_prefixed_names_and_a_config_of_ours(prefix, config):
    state = reference_model(config).state_dict()
    plain = from_reference(state, config)
    model = from_reference({prefix + name: tensor for name, tensor in state.items()}, reference_config(config))
    for (name, parameter), expected in zip(model.named_parameters(), plain.parameters(), strict=True):
        assert torch.equal(parameter, expected), name


def error_of(state, config):
    with pytest.raises(UserError) as caught:
        from_reference(state, config)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_missing_and_left_over_parameters_are_named():
    state = reference_model(MLM_CONFIG).state_dict()
    state["encoder.latents"] = state.pop("encoder.latent")
    message = error_of(state, MLM_CONFIG)
    assert "lack encoder.latent and" in message
    assert "left over encoder.latents;" in message


def test_weights_of_other_layers_are_an_error():
    one, four = CONFIGS[0], MLM_CONFIG
    assert "lack encoder.layer_n." in error_of(reference_model(one).state_dict(), {**one, "num_layers": 2})
    assert "left over encoder.layer_n." in error_of(reference_model(four).state_dict(), {**four, "num_layers": 1})


@pytest.mark.parametrize(
    "name", ["encoder.latent", "decoder.cross_attention.0.module.attention.attention.in_proj_weight"]
)
def test_parameter_of_another_shape_is_named(name):
    state = reference_model(MLM_CONFIG).state_dict()
    state[name] = state[name][:-1]
    assert f"parameter {name} has the shape" in error_of(state, MLM_CONFIG)


def test_other_positions_are_an_error():
    state = reference_model(IMAGE_CONFIG).state_dict()
    name = "0.input_adapter.position_encoding"
    assert "position_encoding" in error_of({**state, name: state[name] + 2e-4}, IMAGE_CONFIG)
    assert "position_encoding" in error_of({**state, name: state[name][:-1]}, IMAGE_CONFIG)
    from_reference({**state, name: state[name] + 5e-5}, IMAGE_CONFIG)
    del state[name]
    from_reference(state, IMAGE_CONFIG)


def test_wrong_config_is_an_error():
    state = reference_model(MLM_CONFIG).state_dict()
    assert "lacks num_heads" in error_of(state, {key: v for key, v in MLM_CONFIG.items() if key != "num_heads"})
    assert "task is 'translation'" in error_of(state, {**MLM_CONFIG, "task": "translation"})
