"""A space is checked against the configuration that it changes, and what it gives is accepted by it."""

from __future__ import annotations

from pathlib import Path

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from perceiver.errors import UserError
from pipelines.cli import PIPELINES
from pipelines.config import MLMStageConfig, SentimentConfig, TextClassifierStageConfig
from tune.space import SPACES, load_space, value_of, with_dividing_heads, with_values


def write(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "space.yaml"
    file.write_text(text)
    return file


def test_kinds_of_ranges(tmp_path: Path) -> None:
    space = load_space(
        write(
            tmp_path,
            """
            encoder.num_latents: {choice: [8, 16]}
            encoder.num_layers: {integer: [1, 4]}
            encoder.num_latent_channels: {log-integer: [16, 256]}
            dropout: {uniform: [0, 0.3]}
            optimizer.learning_rate: {log-uniform: [1.0e-4, 1.0e-2]}
            decoder.num_output_channels: {choice: [null, 32]}
            """,
        ),
        MLMStageConfig(),
    )
    assert space == {
        "encoder.num_latents": CategoricalDistribution([8, 16]),
        "encoder.num_layers": IntDistribution(1, 4),
        "encoder.num_latent_channels": IntDistribution(16, 256, log=True),
        "dropout": FloatDistribution(0.0, 0.3),
        "optimizer.learning_rate": FloatDistribution(1e-4, 1e-2, log=True),
        "decoder.num_output_channels": CategoricalDistribution([None, 32]),
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("encoder.num_latent: {choice: [8]}", "encoder.num_latent is no field of the configuration: did you mean enc"),
        ("encoder: {choice: [8]}", "encoder is a group of fields: name one of them, such as encoder.num_latents"),
        ("encoder.num_latents: {choice: []}", "encoder.num_latents has an empty choice"),
        ("encoder.num_latents: {choice: [8, 8]}", "that holds a value twice"),
        ("encoder.num_latents: {choice: [many]}", "encoder.num_latents takes whole numbers, but not 'many'"),
        ("encoder.num_latents: {choice: [true]}", "encoder.num_latents takes whole numbers, but not True"),
        ("encoder.num_latents: {uniform: [8, 16]}", "encoder.num_latents takes whole numbers, but not 8.0"),
        ("encoder.num_latents: {integer: [8.5, 16]}", "but integer needs whole numbers"),
        ("dropout: {uniform: [0.3, 0.1]}", "dropout has the minimum 0.3 above the maximum 0.1: exchange them"),
        ("dropout: {uniform: [0.3]}", "but a range is a minimum and a maximum"),
        ("dropout: {uniform: 0.3}", "but has to hold a list, such as {uniform: [0.0, 0.3]}"),
        ("dropout: {normal: [0, 1]}", "dropout has normal, but has to be one of {choice:"),
        ("dropout: 0.3", "dropout is 0.3, but has to be one of {choice:"),
        ("optimizer.learning_rate: {log-uniform: [0, 1]}", "has the minimum 0, but log-uniform needs one above 0"),
        ("optimizer.name: {choice: [sgd]}", "optimizer.name takes one of adam, adamw, but not 'sgd'"),
        ("trainer.max_epochs: {choice: [1, 2]}", "trainer.max_epochs is the budget of a trial"),
        ("", "has to hold fields, such as"),
        ("- a", "has to hold fields, such as"),
        ("a: [", "is not valid YAML"),
    ],
)
def test_mistakes_in_a_space(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        load_space(write(tmp_path, text), MLMStageConfig())
    assert message in str(error.value)
    assert "space.yaml" in str(error.value)


def test_a_space_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        load_space(tmp_path / "none.yaml", MLMStageConfig())


@pytest.mark.parametrize("verb", PIPELINES)
def test_each_pipeline_has_a_space(verb: str) -> None:
    space = load_space(SPACES / f"{verb}.yaml", PIPELINES[verb]())
    searched = " ".join(space)
    for part in ("num_latents", "num_latent_channels", "num_layers", "layers_per_block", "heads", "learning_rate",
                 "weight_decay", "dropout"):  # fmt: skip
        assert part in searched


def test_values_that_are_only_right_together_are_set_together() -> None:
    config = with_values(
        TextClassifierStageConfig(),
        {
            "encoder.num_latent_channels": 48,
            "encoder.num_cross_attention_heads": 3,
            "encoder.num_self_attention_heads": 3,
            "dropout": 0.1,
        },
    )
    assert (config.encoder.num_latent_channels, config.encoder.num_cross_attention_heads, config.dropout) == (
        48,
        3,
        0.1,
    )
    assert value_of(config, "encoder.num_self_attention_heads") == 3
    assert value_of(config, "encoder.nothing") is None


def test_a_combination_that_the_configuration_refuses() -> None:
    with pytest.raises(ValueError, match="num_cross_attention_heads is 7"):
        with_values(MLMStageConfig(), {"encoder.num_cross_attention_heads": 7})


def test_heads_become_the_nearest_that_divide_the_channels() -> None:
    heads = CategoricalDistribution([1, 2, 3, 4, 8, 16])
    space = {
        "encoder.num_latent_channels": CategoricalDistribution([12, 64]),
        "encoder.num_cross_attention_heads": heads,
        "mlm.decoder.num_cross_attention_heads": heads,
    }
    values = {
        "encoder.num_latent_channels": 12,
        "encoder.num_cross_attention_heads": 8,
        "mlm.decoder.num_cross_attention_heads": 4,
    }
    mended = with_dividing_heads(SentimentConfig(), values, space)
    assert mended == {**values, "encoder.num_cross_attention_heads": 4}
    with_values(SentimentConfig(), {**mended, "encoder.num_self_attention_heads": 4})


def test_heads_divide_channels_of_their_own_where_a_layer_has_some() -> None:
    base = with_values(MLMStageConfig(), {"encoder.num_cross_attention_qk_channels": 48})
    space = {"encoder.num_cross_attention_heads": CategoricalDistribution([3, 4, 32])}
    mended = with_dividing_heads(base, {"encoder.num_cross_attention_heads": 32}, space)
    assert mended == {"encoder.num_cross_attention_heads": 4}
