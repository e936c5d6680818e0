"""Which parameters are optimized and decay, and the learning rate at single steps."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from perceiver.build import build_model
from perceiver.config import EncoderConfig, MaskedLanguageModelConfig, OptimizerConfig
from perceiver.model import PerceiverIO, PerceiverMLM
from perceiver.optim import build_optimizer, can_fuse, parameter_groups, schedule_factor

ENCODER = EncoderConfig(num_latents=2, num_latent_channels=4, num_layers=2, num_self_attention_layers_per_block=1)


def language_model(tied: bool = False) -> PerceiverIO | PerceiverMLM:
    config = MaskedLanguageModelConfig(encoder=ENCODER, vocab_size=7, max_seq_len=3, tie_output_embedding=tied)
    return build_model(config)


def one_step(config: OptimizerConfig, weight: float, gradient: float) -> float:
    """Return the weight of a linear layer after one step."""
    layer = nn.Linear(1, 1, bias=False)
    nn.init.constant_(layer.weight, weight)
    layer.weight.grad = torch.full((1, 1), gradient)
    build_optimizer(layer, config).step()
    return layer.weight.item()


def test_adam_adds_the_decay_to_the_gradient() -> None:
    # The first step of Adam has the size of the learning rate and the sign of the gradient, here 0.5 + 0.1 * -10.
    config = OptimizerConfig("adam", learning_rate=0.01, weight_decay=0.1)
    assert one_step(config, weight=-10.0, gradient=0.5) == pytest.approx(-9.99, abs=1e-5)


def test_adamw_takes_the_decay_from_the_weight() -> None:
    config = OptimizerConfig("adamw", learning_rate=0.01, weight_decay=0.1)
    assert one_step(config, weight=-10.0, gradient=0.5) == pytest.approx(-10 * (1 - 0.01 * 0.1) - 0.01, abs=1e-5)


def test_adam_decays_all_parameters_with_the_settings() -> None:
    model = language_model()
    optimizer = build_optimizer(model, OptimizerConfig("adam", learning_rate=0.02, weight_decay=0.3))
    assert type(optimizer) is torch.optim.Adam
    (group,) = optimizer.param_groups
    assert (group["lr"], group["weight_decay"]) == (0.02, 0.3)
    assert [id(p) for p in group["params"]] == [id(p) for p in model.parameters()]


@pytest.mark.parametrize("tied", [False, True])
def test_adamw_decays_matrices_of_linear_layers_alone(tied: bool) -> None:
    model = language_model(tied)
    optimizer = build_optimizer(model, OptimizerConfig("adamw", learning_rate=0.02, weight_decay=0.3))
    assert type(optimizer) is torch.optim.AdamW
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed, other = ({names[id(p)] for p in group["params"]} for group in optimizer.param_groups)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.3, 0.0]
    assert [group["lr"] for group in optimizer.param_groups] == [0.02, 0.02]
    assert decayed | other == set(names.values())
    assert not decayed & other
    matrices = {name for name, parameter in model.named_parameters() if parameter.ndim == 2}
    learned = {"encoder.latents", "decoder.queries", "encoder.input_adapter.positions"}
    assert decayed == matrices - learned - {"encoder.input_adapter.embedding.weight"}
    assert ("decoder.output_adapter.linear.weight" in decayed) is not tied


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_frozen_parameters_are_not_in_the_optimizer(name: Any) -> None:
    model = language_model()
    model.encoder.requires_grad_(False)
    optimizer = build_optimizer(model, OptimizerConfig(name, weight_decay=0.1))
    optimized = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert optimized == {id(p) for p in model.decoder.parameters()}


def test_groups_keep_the_order_of_parameters() -> None:
    model = language_model()
    order = {id(p): index for index, p in enumerate(model.parameters())}
    for group in parameter_groups(model, 0.1):
        indices = [order[id(p)] for p in group["params"]]
        assert indices == sorted(indices)


def rates(config: OptimizerConfig, total_steps: int) -> list[float]:
    """Return the learning rates that an optimizer has at each step, and after the last one."""
    layer = nn.Linear(1, 1)
    optimizer = build_optimizer(layer, config)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule_factor(config, total_steps))
    result = []
    for _ in range(total_steps + 1):
        result.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return result


def test_constant() -> None:
    assert rates(OptimizerConfig(learning_rate=2.0), 3) == [2.0] * 4


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_warm_up_rises_to_the_learning_rate(schedule: Any) -> None:
    config = OptimizerConfig(learning_rate=2.0, schedule=schedule, warmup_steps=3)
    assert rates(config, 9)[:4] == pytest.approx([0.5, 1.0, 1.5, 2.0])


def test_linear_reaches_zero_after_the_last_step() -> None:
    config = OptimizerConfig(learning_rate=2.0, schedule="linear", warmup_steps=1)
    assert rates(config, 5) == pytest.approx([1.0, 2.0, 1.5, 1.0, 0.5, 0.0])


def test_cosine_reaches_zero_after_the_last_step() -> None:
    config = OptimizerConfig(learning_rate=2.0, schedule="cosine")
    expected = [1 + math.cos(math.pi * step / 4) for step in range(5)]
    assert rates(config, 4) == pytest.approx(expected, abs=1e-9)
    assert rates(config, 4)[2] == pytest.approx(1.0)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_steps_beyond_the_last_one_have_rate_zero(schedule: Any) -> None:
    factor = schedule_factor(OptimizerConfig(schedule=schedule), 4)
    assert factor(4) == factor(5) == factor(100) == pytest.approx(0.0)


def test_a_warm_up_as_long_as_the_run_is_cut_short() -> None:
    config = OptimizerConfig(learning_rate=2.0, schedule="linear", warmup_steps=4)
    assert rates(config, 3)[:3] == pytest.approx([0.4, 0.8, 1.2])
    assert schedule_factor(config, 4)(4) == pytest.approx(1.0)


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_fused_optimizer_takes_the_plain_ones_steps(name: Any) -> None:
    config = OptimizerConfig(name, learning_rate=0.01, weight_decay=0.1)
    models = [nn.Linear(4, 3), nn.Linear(4, 3)]
    models[1].load_state_dict(models[0].state_dict())
    for model, fused in zip(models, (True, False), strict=True):
        optimizer = build_optimizer(model, config, fused)
        for step in range(5):
            optimizer.zero_grad()
            model(torch.full((2, 4), step - 1.5)).square().sum().backward()
            optimizer.step()
    torch.testing.assert_close(models[0].state_dict(), models[1].state_dict(), rtol=1e-6, atol=1e-7)


def test_float16_takes_no_fused_optimizer() -> None:
    assert can_fuse("32-true")
    assert can_fuse("bf16-mixed")
    assert not can_fuse("16-mixed")
