"""`python -m pipelines convert`: a checkpoint of krasserm/perceiver-io becomes a model folder."""

from __future__ import annotations

import tempfile
from typing import Any

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
from perceiver.data.tokenizer import load_tokenizer, vocab_size_of
from perceiver.errors import UserError
from perceiver.model import PerceiverIO, PerceiverMLM
from perceiver.saving import save_model, task_name
from pipelines.cli import ConvertCommand
from pipelines.reference_checkpoint import ReferenceCheckpoint, read_checkpoint
from pipelines.storage import Storage


def convert(command: ConvertCommand) -> None:
    """Convert a checkpoint and say what came out. Nothing is written unless all went well.

    Raises:
        UserError: If the checkpoint can't be read or doesn't say what is needed, or the folder is not empty.
    """
    out = Storage.from_uri(command.out)
    if out.exists() and (not out.is_dir() or out.names()):
        raise UserError(f"{out} is not empty: name another folder for the model")
    checkpoint = read_checkpoint(command.checkpoint)
    config = describe(checkpoint, command)
    tokenizer = _tokenizer(config, command)
    model = from_reference(checkpoint.state, config)
    _write(out, model, config, tokenizer)
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    print(f"{out}: {task_name(config)} with {num_parameters:,} parameters")
    folder = repr(str(out)) if out.is_local else "FOLDER"  # a local copy
    print(f"in Python: from perceiver.inference import load; predictor = load({folder})")


def describe(checkpoint: ReferenceCheckpoint, command: ConvertCommand) -> ModelConfig:
    """Describe a model: shapes come from the weights, heads and layers from the settings, or all from the command.

    Args:
        checkpoint: The model.
        command: Overrides.

    Raises:
        UserError: If something is unknown, or doesn't fit the rest.
    """
    try:
        common: dict[str, Any] = {
            "encoder": _encoder(checkpoint, command),
            "decoder": _decoder(checkpoint, command),
        }
        if "encoder.input_adapter.text_embedding.weight" not in checkpoint.state:
            return ImageClassifierConfig(**common, **_images(checkpoint, command), class_names=_class_names(checkpoint))
        vocab_size, _ = checkpoint.shape("encoder.input_adapter.text_embedding.weight", 2)
        max_seq_len, _ = checkpoint.shape("encoder.input_adapter.pos_encoding", 2)
        common |= {"vocab_size": vocab_size, "max_seq_len": max_seq_len}
        if checkpoint.is_mlm:
            return MaskedLanguageModelConfig(**common)
        return TextClassifierConfig(**common, class_names=_class_names(checkpoint))
    except UserError:
        raise
    except ValueError as error:  # a config's
        raise UserError(f"{command.checkpoint} can't be converted: {error}") from error


def _encoder(checkpoint: ReferenceCheckpoint, command: ConvertCommand) -> EncoderConfig:
    num_latents, num_latent_channels = checkpoint.shape("encoder.latent", 2)
    # encoder.layer_1.1.INDEX.* are the self-attention layers
    layers = {name.split(".")[3] for name in checkpoint.state if name.startswith("encoder.layer_1.1.")}
    cross, own = "num_encoder_cross_attention_heads", "num_encoder_self_attention_heads"
    return EncoderConfig(
        num_latents=num_latents,
        num_latent_channels=num_latent_channels,
        num_layers=_num_layers(checkpoint, command),
        num_self_attention_layers_per_block=len(layers),
        num_cross_attention_heads=_number(checkpoint, cross, "num_heads", command.num_heads),
        num_self_attention_heads=_number(checkpoint, own, "num_heads", command.num_heads),
    )


def _decoder(checkpoint: ReferenceCheckpoint, command: ConvertCommand) -> DecoderConfig:
    _, num_latent_channels = checkpoint.shape("encoder.latent", 2)
    _, num_output_channels = checkpoint.shape("decoder.output", 2)
    heads = "num_decoder_cross_attention_heads"
    return DecoderConfig(
        num_cross_attention_heads=_number(checkpoint, heads, "num_decoder_heads", command.num_decoder_heads),
        num_output_channels=None if num_output_channels == num_latent_channels else num_output_channels,
    )


def _num_layers(checkpoint: ReferenceCheckpoint, command: ConvertCommand) -> int:
    has_shared_layer = any(name.startswith("encoder.layer_n.") for name in checkpoint.state)
    if command.num_layers is None and not has_shared_layer:
        return 1
    return _number(checkpoint, "num_encoder_layers", "num_layers", command.num_layers)


def _number(checkpoint: ReferenceCheckpoint, setting: str, option: str, override: int | None) -> int:
    """Return a number from the command or, if it has none, from the checkpoint."""
    number = checkpoint.settings.get(setting) if override is None else override
    if not isinstance(number, int):
        raise UserError(f"{checkpoint.path} doesn't say its {setting}: add --{option} N")
    return number


def _class_names(checkpoint: ReferenceCheckpoint) -> tuple[str, ...]:
    (num_classes,) = checkpoint.shape("decoder.output_adapter.linear.bias", 1)
    return tuple(map(str, range(num_classes)))


def _images(checkpoint: ReferenceCheckpoint, command: ConvertCommand) -> dict[str, Any]:
    """Find the shape of images, and how many frequency bands the encoding of positions has."""
    (num_input_channels,) = checkpoint.shape("encoder.layer_1.0.0.module.kv_norm.weight", 1)
    height, width, channels = command.image_shape or _image_shape(checkpoint, num_input_channels)
    # an input is a pixel's channels and, for both of its axes, the position with a sine and a cosine for each band
    num_bands, rest = divmod(num_input_channels - channels - 2, 4)
    if rest:
        raise UserError(
            f"image_shape is {(height, width, channels)}, which doesn't fit the {num_input_channels} input channels "
            f"of {checkpoint.path}: give the images' own --image_shape"
        )
    return {"image_shape": (height, width, channels), "num_frequency_bands": num_bands}


def _image_shape(checkpoint: ReferenceCheckpoint, num_input_channels: int) -> tuple[int, int, int]:
    """Read the shape of images off the table of positions (pixels, channels), whose rows begin with coordinates."""
    table = checkpoint.state.get("encoder.input_adapter.position_encoding")
    if table is None or table.ndim != 2 or table.shape[1] < 2:
        raise UserError(f"{checkpoint.path} doesn't say its image_shape: add --image_shape [HEIGHT,WIDTH,CHANNELS]")
    height, width = (len(table[:, axis].unique()) for axis in (0, 1))
    return height, width, num_input_channels - table.shape[1]


def _tokenizer(config: ModelConfig, command: ConvertCommand) -> Tokenizer | None:
    """Load the tokenizer of a text model and check that the model knows its tokens."""
    if isinstance(config, ImageClassifierConfig):
        if command.tokenizer is not None:
            raise UserError(f"{command.checkpoint} is an image classifier: leave out --tokenizer")
        return None
    if command.tokenizer is None:
        raise UserError(
            f"{command.checkpoint} is a text model and doesn't hold its tokenizer: add --tokenizer FILE (the reference "
            f"has it in its data folder, as imdb-tokenizer-{config.vocab_size}.json)"
        )
    tokenizer = load_tokenizer(command.tokenizer)
    if vocab_size_of(tokenizer) > config.vocab_size:
        raise UserError(
            f"tokenizer {command.tokenizer} has {vocab_size_of(tokenizer)} tokens, but the model knows "
            f"{config.vocab_size}: name the one that the model was trained with"
        )
    return tokenizer


def _write(out: Storage, model: PerceiverIO | PerceiverMLM, config: ModelConfig, tokenizer: Tokenizer | None) -> None:
    with tempfile.TemporaryDirectory(prefix="perceiver-convert-") as folder:
        save_model(folder, model, config, tokenizer)
        try:
            out.upload_folder(folder)
        except OSError as error:
            raise UserError(f"{out} can't be written ({error.strerror or error}): name another folder") from error
