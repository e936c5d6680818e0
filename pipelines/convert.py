"""`python -m pipelines convert`: a checkpoint of krasserm/perceiver-io becomes a model folder."""

from __future__ import annotations

import argparse
import pickle
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.utilities.parsing import AttributeDict
from tokenizers import Tokenizer

from perceiver.config import (
    DecoderConfig,
    EncoderConfig,
    ImageClassifierConfig,
    MaskedLanguageModelConfig,
    ModelConfig,
    TextClassifierConfig,
)
from perceiver.convert import from_reference
from perceiver.data.tokenizer import load_tokenizer
from perceiver.errors import UserError
from perceiver.saving import save_model
from pipelines.cli import ConvertCommand
from pipelines.storage import Storage

# What checkpoints of Lightning hold beside tensors and plain containers; none of it runs code when it is read.
_HARMLESS = [argparse.Namespace, AttributeDict, ModelCheckpoint, Tokenizer]

State = dict[str, torch.Tensor]


def convert(command: ConvertCommand) -> None:
    """Convert a checkpoint and say what came out.

    Raises:
        UserError: If the checkpoint can't be read, doesn't say what is needed, or the folder exists.
    """
    out = Storage.from_uri(command.out)
    if out.names():
        raise UserError(f"{command.out} is not empty: name another folder for the model")
    checkpoint = _read(command.checkpoint)
    state = {name.removeprefix("model."): value for name, value in checkpoint["state_dict"].items()}
    hyperparameters = _hyperparameters(checkpoint)
    config = _config(state, hyperparameters, command)
    model = from_reference(state, config)
    tokenizer = _tokenizer(config, hyperparameters, command)
    with tempfile.TemporaryDirectory(prefix="perceiver-convert-") as folder:
        save_model(Path(folder), model, config, tokenizer)
        out.upload_folder(folder)
    print(f"{out}: {sum(p.numel() for p in model.parameters()):,} parameters")


def _read(path: str) -> dict[str, Any]:
    try:
        with torch.serialization.safe_globals(_HARMLESS):
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist: name a Lightning checkpoint (.ckpt)") from error
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        reason = str(error).split(". ")[0].splitlines()[0]
        raise UserError(f"{path} can't be read as a checkpoint without running code in it: {reason}") from error
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise UserError(f"{path} is not a Lightning checkpoint: it has no state_dict")
    return checkpoint


def _hyperparameters(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """Return the hyperparameters as one flat mapping, whether they were saved one by one or as parsed arguments."""
    flat: dict[str, Any] = {}
    for name, value in dict(checkpoint.get("hyper_parameters", {})).items():
        flat |= vars(value) if isinstance(value, argparse.Namespace) else {name: value}
    return flat


def _config(state: State, hyperparameters: Mapping[str, Any], command: ConvertCommand) -> ModelConfig:
    """Describe the model: shapes come from the weights, heads and layers from the hyperparameters or the command."""
    is_mlm = any(name.startswith("encoder.") for name in state)
    encoder, decoder = ("encoder", "decoder") if is_mlm else ("0", "1")
    if f"{encoder}.latent" not in state or f"{decoder}.output" not in state:
        raise UserError(f"{command.checkpoint} is not a checkpoint of krasserm/perceiver-io: it has no latents")

    def number(override: int | None, option: str, *names: str) -> int:
        found = [hyperparameters[name] for name in names if name in hyperparameters]
        if override is None and not found:
            raise UserError(f"{command.checkpoint} doesn't say its {option}: add --{option} N")
        return int(found[0] if override is None else override)

    num_latents, num_channels = state[f"{encoder}.latent"].shape
    blocks = {name.split(".")[3] for name in state if name.startswith(f"{encoder}.layer_1.1.")}
    cross, own = ("num_encoder_cross_attention_heads", "num_encoder_self_attention_heads")
    has_shared = any(name.startswith(f"{encoder}.layer_n.") for name in state)
    shape: dict[str, Any] = {
        "encoder": EncoderConfig(
            num_latents=num_latents,
            num_latent_channels=num_channels,
            num_layers=number(command.num_layers, "num_layers", "num_encoder_layers") if has_shared else 1,
            num_self_attention_layers_per_block=len(blocks),
            num_cross_attention_heads=number(command.num_heads, "num_heads", cross),
            num_self_attention_heads=number(command.num_heads, "num_heads", own),
        ),
        "decoder": DecoderConfig(
            num_cross_attention_heads=number(
                command.num_decoder_heads, "num_decoder_heads", "num_decoder_cross_attention_heads"
            ),
            num_output_channels=state[f"{decoder}.output"].shape[1],
        ),
    }
    num_outputs = state[f"{decoder}.output_adapter.linear.bias"].shape[0]
    class_names = tuple(str(label) for label in range(num_outputs))
    embedding = state.get(f"{encoder}.input_adapter.text_embedding.weight")
    if embedding is None:
        image = _image(state, f"{encoder}.", command.image_shape or hyperparameters.get("image_shape"))
        return ImageClassifierConfig(**shape, **image, class_names=class_names)
    text = {
        "vocab_size": embedding.shape[0],
        "max_seq_len": state[f"{encoder}.input_adapter.pos_encoding"].shape[0],
    }
    if is_mlm:
        return MaskedLanguageModelConfig(**shape, **text)
    return TextClassifierConfig(**shape, **text, class_names=class_names)


def _image(state: State, encoder: str, image_shape: tuple[int, ...] | None) -> dict[str, Any]:
    """Read the shape of images off the table of position encodings (M, 2 (2 bands + 1)), raw coordinates first."""
    table = state.get(f"{encoder}input_adapter.position_encoding")
    if table is None:
        raise UserError("the checkpoint has no position_encoding, so the shape of its images is unknown")
    num_inputs, num_channels = table.shape
    if image_shape is None:
        height, width = (len(table[:, axis].unique()) for axis in (0, 1))
        num_pixel_channels = state[f"{encoder}layer_1.0.0.module.kv_norm.weight"].shape[0] - num_channels
        image_shape = (height, width, num_pixel_channels)
    if image_shape[0] * image_shape[1] != num_inputs:
        raise UserError(f"image_shape is {tuple(image_shape)}, but the checkpoint's images have {num_inputs} pixels")
    return {"image_shape": tuple(image_shape), "num_frequency_bands": (num_channels // 2 - 1) // 2}


def _tokenizer(config: ModelConfig, hyperparameters: Mapping[str, Any], command: ConvertCommand) -> Tokenizer | None:
    if isinstance(config, ImageClassifierConfig):
        return None
    tokenizer = hyperparameters.get("tokenizer")
    if command.tokenizer is not None:
        tokenizer = load_tokenizer(command.tokenizer)
    if not isinstance(tokenizer, Tokenizer):
        raise UserError(
            "the checkpoint holds no tokenizer: add --tokenizer FILE (the reference keeps it in its data folder, "
            "as imdb-tokenizer-10003.json)"
        )
    if tokenizer.get_vocab_size() > config.vocab_size:
        raise UserError(
            f"the tokenizer has {tokenizer.get_vocab_size()} tokens, but the model knows {config.vocab_size}: "
            f"name the tokenizer that the model was trained with"
        )
    return tokenizer
