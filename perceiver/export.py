"""What of a model leaves for other runtimes: tensors in, probabilities or logits out, any number of inputs at once.

token_ids (B, M) int64, pad_mask (B, M) bool  ->  probabilities (B, classes), or logits (B, M, vocab_size)
images (B, height, width, channels) float32   ->  probabilities (B, classes)
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from perceiver.adapter import InputAdapter
from perceiver.config import ImageClassifierConfig, MaskedLanguageModelConfig, ModelConfig
from perceiver.model import PerceiverIO, PerceiverMLM

_EXAMPLE_BATCH, _EXAMPLE_LENGTH = 2, 7  # torch.export takes a size of 1 for a constant
_CHECKED_BATCHES = (1, 2, 5)


class TextOutputs(nn.Module):
    """Probabilities of a text's classes, or logits of all its tokens.

    Args:
        model: A text classifier or a masked language model.
    """

    def __init__(self, model: PerceiverIO | PerceiverMLM) -> None:
        super().__init__()
        self.model = model

    def forward(self, token_ids: Tensor, pad_mask: Tensor) -> Tensor:
        """Predict from tokens (B, M) and their pad mask (B, M), True where there is padding."""
        if isinstance(self.model, PerceiverMLM):
            logits: Tensor = self.model(token_ids, pad_mask, masking=False)[0]
            return logits
        return self.model(token_ids, pad_mask).softmax(dim=-1)


class ImageOutputs(nn.Module):
    """Probabilities of an image's classes.

    Args:
        model: An image classifier.
    """

    def __init__(self, model: PerceiverIO) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """Predict from images (B, height, width, channels)."""
        return self.model(images).softmax(dim=-1)


Outputs = TextOutputs | ImageOutputs


class WholeInputs(InputAdapter):
    """An input adapter whose inputs come whole: how those in parts are attended to is code that no graph can hold.

    Args:
        adapter: The adapter.
    """

    def __init__(self, adapter: InputAdapter) -> None:
        super().__init__(adapter.num_input_channels)
        self.adapter = adapter

    def forward(self, x: Tensor) -> Tensor:
        """Turn a batch of data into inputs (B, M, C)."""
        inputs: Tensor = self.adapter(x)
        return inputs


def outputs_of(model: PerceiverIO | PerceiverMLM, config: ModelConfig) -> Outputs:
    """Return a model as other runtimes will know it, computed as ever."""
    if isinstance(config, ImageClassifierConfig):
        assert isinstance(model, PerceiverIO)
        return ImageOutputs(model)
    return TextOutputs(model)


def export_program(outputs: Outputs, config: ModelConfig, batch_size: int | None = None) -> ExportedProgram:
    """Trace a model.

    Args:
        outputs: The model, in evaluation mode; it is left as it is.
        config: What it was built from.
        batch_size: The inputs of a call (none: any number).
    """
    whole = copy.deepcopy(outputs).requires_grad_(False)
    whole.model.encoder.input_adapter = WholeInputs(whole.model.encoder.input_adapter)
    example = random_inputs(config, batch_size or _EXAMPLE_BATCH, _EXAMPLE_LENGTH)
    with torch.no_grad():
        return torch.export.export(whole, example, dynamic_shapes=dynamic_shapes(config, batch_size))


def dynamic_shapes(config: ModelConfig, batch_size: int | None) -> dict[str, dict[int, Dim]]:
    """Return the axes of each input whose size is left open."""
    axes = {0: Dim("batch", min=1)} if batch_size is None else {}
    if isinstance(config, ImageClassifierConfig):
        return {"images": axes}
    if config.max_seq_len > 1:
        axes[1] = Dim("sequence", min=1, max=config.max_seq_len)
    return {"token_ids": axes, "pad_mask": axes}


def input_names(config: ModelConfig) -> list[str]:
    """Return the names of the inputs of an exported model, in order."""
    return ["images"] if isinstance(config, ImageClassifierConfig) else ["token_ids", "pad_mask"]


def output_name(config: ModelConfig) -> str:
    """Return what an exported model computes."""
    return "logits" if isinstance(config, MaskedLanguageModelConfig) else "probabilities"


def random_inputs(config: ModelConfig, batch_size: int, length: int) -> tuple[Tensor, ...]:
    """Return random arguments of an exported model.

    Args:
        config: What the model was built from.
        batch_size: Inputs B; the texts among them are of random lengths, and end in padding.
        length: Tokens of a text, padding included; no more than the model knows are made.
    """
    if isinstance(config, ImageClassifierConfig):
        return (torch.rand(batch_size, *config.image_shape) * 2 - 1,)
    length = min(length, config.max_seq_len)
    token_ids = torch.randint(config.vocab_size, (batch_size, length))
    pad_mask = torch.arange(length) >= torch.randint(1, length + 1, (batch_size, 1))
    return token_ids.masked_fill(pad_mask, 0), pad_mask


def check_inputs(config: ModelConfig, batch_size: int | None = None) -> Iterator[tuple[Tensor, ...]]:
    """Yield random arguments of many sizes, of texts also one that is padding alone.

    Args:
        config: What the model was built from.
        batch_size: The inputs of a call (none: any number).
    """
    lengths = [1]
    if not isinstance(config, ImageClassifierConfig):
        lengths = [1, max(1, config.max_seq_len // 3), config.max_seq_len]
    batches = _CHECKED_BATCHES if batch_size is None else (batch_size,)
    for size, length in ((size, length) for size in batches for length in lengths):
        inputs = random_inputs(config, size, length)
        yield inputs
        if len(inputs) == 2 and size > 1:
            inputs[1][-1] = True
            yield inputs


def interface_of(config: ModelConfig, batch_size: int | None = None) -> dict[str, Any]:
    """Describe inputs and output of an exported model, as JSON values; an axis that is named has any size."""
    batch = batch_size or "batch"
    if isinstance(config, ImageClassifierConfig):
        shape = [batch, *config.image_shape]
        meaning = "pixel values as in training: from -1 to 1, or from 0 to 1 where it was without data.normalize"
        inputs = {"images": {"type": "float32", "shape": shape, "meaning": meaning}}
    else:
        shape = [batch, "sequence"]
        most = f"at most {config.max_seq_len} per text"
        inputs = {
            "token_ids": {"type": "int64", "shape": shape, "meaning": f"ids of the tokens, {most}; 0 is padding"},
            "pad_mask": {"type": "bool", "shape": shape, "meaning": "true where there is padding"},
        }
    if isinstance(config, MaskedLanguageModelConfig):
        output = {"type": "float32", "shape": [batch, "sequence", config.vocab_size], "meaning": "of every position"}
    else:
        meaning = "of the classes, in the order of class_names in config.json"
        output = {"type": "float32", "shape": [batch, config.num_classes], "meaning": meaning}
    return {"inputs": inputs, "outputs": {output_name(config): output}}
