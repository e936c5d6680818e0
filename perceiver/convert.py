"""Weights of the reference implementation (krasserm/perceiver-io, first public form) as weights of our models."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from perceiver.build import build_model
from perceiver.config import (
    DecoderConfig,
    EncoderConfig,
    ImageClassifierConfig,
    MaskedLanguageModelConfig,
    ModelConfig,
    TextClassifierConfig,
)
from perceiver.errors import UserError
from perceiver.model import PerceiverIO, PerceiverMLM

POSITION_TOLERANCE = 1e-4
"""Largest difference between position encodings that counts as rounding."""

# From our names to the reference's: first what is outside of layers, then where a layer is, then what is in it.
_RENAMES = (
    (r"^encoder\.latents$", "encoder.latent"),
    (r"^decoder\.queries$", "decoder.output"),
    (r"\.input_adapter\.embedding\.", ".input_adapter.text_embedding."),
    (r"\.input_adapter\.positions$", ".input_adapter.pos_encoding"),
    (r"^encoder\.cross_attention_(1|n)\.", r"encoder.layer_\1.0."),
    (r"^encoder\.self_attention_(1|n)\.layers\.(\d+)\.", r"encoder.layer_\1.1.\2."),
    (r"\.(norm|q_norm|kv_norm)\.", r".0.module.\1."),
    (r"\.attention\.", ".0.module.attention.attention."),
    (r"\.mlp\.", ".1.module."),
)


class _Source(NamedTuple):
    """Where the reference keeps one of our parameters."""

    name: str
    """Name in the reference."""
    part: int | None
    """0, 1, 2 for queries, keys, values where the reference stacks the three; None where it does not."""


def from_reference(
    state_dict: Mapping[str, Tensor], config: Mapping[str, Any] | ModelConfig
) -> PerceiverIO | PerceiverMLM:
    """Build a model with the weights of a reference model.

    Args:
        state_dict: The reference model's parameters; names may begin with "state." or "model.".
        config: Shapes of the model, see reference_config, or a config of ours.

    Returns:
        The model in eval mode.

    Raises:
        UserError: If parameters are missing, left over or of another shape.
    """
    model = build_model(reference_config(config) if isinstance(config, Mapping) else config)
    reference = {_plain_name(name): tensor for name, tensor in state_dict.items()}
    parameters = dict(model.named_parameters())
    sources = {name: _find_source(name, reference) for name in parameters}
    buffers = dict(model.named_buffers())
    _check_names(reference, {source.name for source in sources.values()}, buffers)
    _check_buffers(reference, buffers)

    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(_take(reference, sources[name], parameter))
    return model.eval()


def reference_config(config: Mapping[str, Any]) -> ModelConfig:
    """Translate the shapes of a reference model to a config of ours.

    Args:
        config: task (mlm, text_classification or image_classification), latent_shape, num_layers,
            num_self_attention_layers_per_block, num_heads, num_decoder_heads; vocab_size and max_seq_len for texts or
            image_shape and num_frequency_bands for images; num_classes, and class_names if known, for classifiers.

    Raises:
        UserError: If a key is missing or the task is unknown.
    """
    try:
        return _translate(config)
    except KeyError as error:
        raise UserError(f"the reference's config lacks {error.args[0]}, but must have it") from error


def _translate(config: Mapping[str, Any]) -> ModelConfig:
    num_latents, num_latent_channels = config["latent_shape"]
    encoder = EncoderConfig(
        num_latents=num_latents,
        num_latent_channels=num_latent_channels,
        num_layers=config["num_layers"],
        num_self_attention_layers_per_block=config["num_self_attention_layers_per_block"],
        num_cross_attention_heads=config["num_heads"],
        num_self_attention_heads=config["num_heads"],
    )
    decoder = DecoderConfig(num_cross_attention_heads=config["num_decoder_heads"])
    task = config["task"]
    if task == "mlm":
        return MaskedLanguageModelConfig(
            encoder, decoder, vocab_size=config["vocab_size"], max_seq_len=config["max_seq_len"]
        )
    if task == "text_classification":
        return TextClassifierConfig(
            encoder, decoder, config["vocab_size"], config["max_seq_len"], class_names=_class_names(config)
        )
    if task == "image_classification":
        height, width, channels = config["image_shape"]
        return ImageClassifierConfig(
            encoder, decoder, (height, width, channels), config["num_frequency_bands"], class_names=_class_names(config)
        )
    raise UserError(f"task is {task!r}, but must be mlm, text_classification or image_classification")


def _class_names(config: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(config.get("class_names") or map(str, range(config["num_classes"])))


def _plain_name(name: str) -> str:
    """Take what differs between checkpoints out of a reference name, so that it begins with encoder or decoder."""
    name = re.sub(r"^((state|model)\.)+", "", name)
    return re.sub(r"^1\.", "decoder.", re.sub(r"^0\.", "encoder.", name))


def _find_source(name: str, reference: Mapping[str, Tensor]) -> _Source:
    for pattern, replacement in _RENAMES:
        name = re.sub(pattern, replacement, name)
    projection = re.fullmatch(r"(.*\.)([qkv])_proj\.(weight|bias)", name)
    if projection is None:
        return _Source(name, None)
    stem, letter, kind = projection.groups()
    separate = f"{stem}{letter}_proj_{kind}"
    if separate in reference:
        return _Source(separate, None)
    return _Source(f"{stem}in_proj_{kind}", "qkv".index(letter))


def _take(reference: Mapping[str, Tensor], source: _Source, parameter: Tensor) -> Tensor:
    tensor = reference[source.name]
    num_rows, *other_axes = parameter.shape
    expected = (num_rows if source.part is None else 3 * num_rows, *other_axes)
    if tuple(tensor.shape) != expected:
        raise UserError(
            f"parameter {source.name} has the shape {tuple(tensor.shape)}, but must have {expected}; "
            "check that the config is the weights'"
        )
    return tensor if source.part is None else tensor[source.part * num_rows : (source.part + 1) * num_rows]


def _check_names(reference: Iterable[str], expected: set[str], buffers: Iterable[str]) -> None:
    missing = sorted(expected - set(reference))
    left_over = sorted(set(reference) - expected - set(buffers))
    if missing or left_over:
        raise UserError(
            f"the weights lack {_listing(missing)} and have left over {_listing(left_over)}; "
            "check that the config is the weights'"
        )


def _listing(names: list[str]) -> str:
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return ", ".join(names[:4]) + more if names else "nothing"


def _check_buffers(reference: Mapping[str, Tensor], buffers: Mapping[str, Tensor]) -> None:
    for name in buffers.keys() & reference.keys():
        ours, theirs = buffers[name], reference[name]
        if ours.shape != theirs.shape or (ours - theirs).abs().max() > POSITION_TOLERANCE:
            raise UserError(
                f"{name} {tuple(theirs.shape)} differs from the one that belongs to the config's image_shape"
            )
