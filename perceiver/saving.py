"""The model folder: weights, configuration and tokenizer, readable without unpickling anything.

model.safetensors   parameters
config.json         {"task": ..., the fields of the model's configuration}
tokenizer.json      for texts
README.md           what the model is, for people (where a pipeline trained it)
manifest.json       size and sha256 of each file
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any, NamedTuple, get_args, get_origin, get_type_hints

import yaml
from safetensors import SafetensorError
from safetensors.torch import load_model as load_safetensors
from safetensors.torch import save_model as save_safetensors
from tokenizers import Tokenizer
from torch import nn

from perceiver.build import build_model
from perceiver.config import ImageClassifierConfig, MaskedLanguageModelConfig, ModelConfig, TextClassifierConfig
from perceiver.data.tokenizer import load_tokenizer
from perceiver.errors import UserError
from perceiver.files import read_manifest, write_manifest
from perceiver.model import PerceiverIO, PerceiverMLM

WEIGHTS, CONFIG, TOKENIZER, CARD = "model.safetensors", "config.json", "tokenizer.json", "README.md"
MODEL, RUN_CONFIG = "model", "config.yaml"  # in the folder of a stage, and in that of a run

TASKS: dict[str, type] = {
    "masked_language_model": MaskedLanguageModelConfig,
    "text_classifier": TextClassifierConfig,
    "image_classifier": ImageClassifierConfig,
}


class SavedModel(NamedTuple):
    """What a model folder holds.

    Attributes:
        model: The network with its weights, in evaluation mode.
        config: What it was built from.
        tokenizer: Tokenizer of its texts; None for images.
    """

    model: PerceiverIO | PerceiverMLM
    config: ModelConfig
    tokenizer: Tokenizer | None


def task_name(config: ModelConfig) -> str:
    """Return the name that a kind of model has in config.json."""
    return next(name for name, kind in TASKS.items() if isinstance(config, kind))


def config_to_json(config: ModelConfig) -> str:
    """Write a model's configuration as JSON."""
    return json.dumps({"task": task_name(config), **asdict(config)}, indent=2) + "\n"


def config_from_json(text: str) -> ModelConfig:
    """Read a model's configuration; a field that is not there has its default.

    Raises:
        ValueError: If the text is not JSON, the task or a field is unknown, or a value is refused.
    """
    values = json.loads(text)
    if not isinstance(values, dict):
        raise ValueError(f"it is {_shown(values)}, but must be an object")
    task = values.pop("task", None)
    if not isinstance(task, str) or task not in TASKS:
        raise ValueError(f"task is {_shown(task)}, but must be one of {', '.join(TASKS)}")
    config: ModelConfig = dataclass_from_dict(TASKS[task], values)
    return config


def dataclass_from_dict(kind: type, values: dict[str, Any]) -> Any:
    """Build a dataclass, and those nested in it, from what `dataclasses.asdict` and JSON made of it.

    Args:
        kind: Dataclass whose fields are numbers, booleans, strings, None, tuples of these or dataclasses.
        values: Values of its fields.

    Raises:
        ValueError: If a field is unknown or a value is refused.
    """
    hints = get_type_hints(kind)
    if unknown := sorted(set(values) - set(hints)):
        raise ValueError(f"{unknown[0]} is not a field of {kind.__name__}")
    return kind(**{name: _checked(name, value, hints[name]) for name, value in values.items()})


def _checked(name: str, value: Any, hint: Any) -> Any:
    """Return a field's value as its type has it, or raise a ValueError."""
    if is_dataclass(hint) and isinstance(value, dict):
        assert isinstance(hint, type)
        return dataclass_from_dict(hint, value)
    if get_origin(hint) is tuple:
        item_hint, *_ = get_args(hint)  # all items of a field have one type
        if isinstance(value, list) and _has_length(hint, value):
            return tuple(_checked(name, item, item_hint) for item in value)
        raise ValueError(f"{name} is {_shown(value)}, but must be {hint}")
    # By its very type, as a bool would pass for an int.
    allowed = get_args(hint) or (hint,)
    if type(value) in allowed or (type(value) is int and float in allowed):
        return value
    raise ValueError(f"{name} is {_shown(value)}, but must be {getattr(hint, '__name__', hint)}")


def _has_length(hint: Any, items: list[Any]) -> bool:
    """Tell whether a tuple's type admits as many items as there are."""
    return Ellipsis in get_args(hint) or len(get_args(hint)) == len(items)


def _shown(value: Any) -> str:
    return json.dumps(value)[:80]


def save_model(
    folder: str | Path,
    model: nn.Module,
    config: ModelConfig,
    tokenizer: Tokenizer | None = None,
    texts: Mapping[str, str] | None = None,
) -> None:
    """Write a model folder; its manifest comes last, so that a torn folder is noticed.

    Args:
        folder: Folder to create, or an empty one.
        model: The network.
        config: What it was built from.
        tokenizer: Tokenizer of its texts; None for images.
        texts: Further files by their names, such as README.md.

    Raises:
        UserError: If the folder holds anything.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise UserError(f"{folder} is not empty: name another folder for the model")
    save_safetensors(model, str(folder / WEIGHTS), metadata={"format": "pt"})
    (folder / CONFIG).write_text(config_to_json(config), encoding="utf-8")
    if tokenizer is not None:
        tokenizer.save(str(folder / TOKENIZER))
    for name, text in (texts or {}).items():
        (folder / name).write_text(text, encoding="utf-8")
    write_manifest(folder, task=task_name(config))


def read_config(folder: Path) -> ModelConfig:
    """Read the configuration of a model folder.

    Raises:
        UserError: If the folder holds no model.
    """
    try:
        return config_from_json((folder / CONFIG).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{folder} holds no model ({CONFIG} can't be read): name a model/ folder of a run") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{folder / CONFIG} is not a model's configuration: {error}") from error


def read_tokenizer(folder: Path) -> Tokenizer | None:
    """Read the tokenizer of a model folder; None where it has none.

    Raises:
        UserError: If the file does not hold a tokenizer.
    """
    path = folder / TOKENIZER
    return load_tokenizer(path) if path.exists() else None


def find_model_folder(folder: Path) -> Path:
    """Return the model folder that a folder is or holds: a stage's own, or that of a run's last stage.

    Args:
        folder: A model/ folder, or the folder of a stage or of a run.

    Raises:
        UserError: If there is no such folder, or a run has several models, and its settings don't tell which is the
            last.
    """
    if not folder.exists():
        raise UserError(f"{folder} does not exist: name a model/ folder, or the folder of a stage or of a run")
    for place in (folder, folder / MODEL):
        if (place / CONFIG).is_file():
            return place
    stages = {path.parent.parent.name: path.parent for path in folder.glob(f"*/{MODEL}/{CONFIG}")}
    if len(stages) <= 1:
        return next(iter(stages.values()), folder)
    order = [name for name in _settings(folder) if name in stages]
    if not order:
        raise UserError(f"{folder} holds the models of {', '.join(sorted(stages))}: name the folder of one")
    return stages[order[-1]]


def _settings(run: Path) -> dict[str, Any]:
    """Return the settings of a run, in which stages are in their order."""
    try:
        settings = yaml.safe_load((run / RUN_CONFIG).read_bytes())
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return {}
    return settings if isinstance(settings, dict) else {}


def load_model(folder: str | Path) -> SavedModel:
    """Load a model folder, or that of a stage or a run.

    Raises:
        UserError: If the folder holds no model or its files are damaged.
    """
    folder = find_model_folder(Path(folder).expanduser())
    config = read_config(folder)
    read_manifest(folder)
    try:
        model = build_model(config)
        load_safetensors(model, folder / WEIGHTS)
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        # The error of torch has a line for every parameter.
        message = f"{folder / WEIGHTS} does not hold the model that {CONFIG} describes: write or copy the folder again"
        raise UserError(message) from error
    model.eval()
    return SavedModel(model, config, read_tokenizer(folder))
