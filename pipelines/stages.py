"""The kinds of stages: what each reads, and what makes its result another one.

`prepare` runs on the driver and finds every mistake before a worker starts. What a worker builds is in pipelines.build,
whose imports take seconds, which a driver that has nothing to train doesn't wait for.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from tokenizers import Tokenizer

from perceiver.config import (
    ImageClassifierConfig,
    MaskedLanguageModelConfig,
    ModelConfig,
    TextClassifierConfig,
)
from perceiver.data.image_sources import DIGITS
from perceiver.data.images import prepare_images
from perceiver.data.text import prepare_text
from perceiver.data.text_sources import TOY_REVIEWS
from perceiver.data.tokenizer import SPECIAL_TOKENS, vocab_size_of
from perceiver.errors import UserError
from perceiver.files import folder_digest
from perceiver.saving import CARD, CONFIG, read_config, read_tokenizer
from pipelines.config import (
    ImageClassifierStageConfig,
    MLMStageConfig,
    SentimentConfig,
    StageConfig,
    TextClassifierStageConfig,
)
from pipelines.storage import Storage

AnyConfig = TypeVar("AnyConfig", bound=StageConfig | SentimentConfig)

# Settings that change where things lie or how fast they come, but not the result.
_WITHOUT_EFFECT = {
    "data": ("path", "test_path", "unlabelled_path", "tokenizer", "cache_dir", "loader_workers", "kept_latents_gb"),
    "trainer": (
        "checkpoint_every_n_steps",
        "checkpoint_every_n_minutes",
        "log_gradient_norm",
        "micro_batch_size",
        "activation_checkpointing",
    ),
}
_PATHS = ("path", "test_path", "unlabelled_path", "tokenizer")


@dataclass(frozen=True)
class Prepared:
    """What the driver learned about a stage from its data and its input model.

    Attributes:
        model: The model to train.
        tokenizer: Tokenizer as JSON; None for images.
        data_fingerprint: Identity of the data's content.
        fingerprint: Identity of the stage's result: its settings, data and input model.
        synthetic: Whether the data is made up.
    """

    model: ModelConfig
    tokenizer: str | None
    data_fingerprint: str
    fingerprint: str
    synthetic: bool

    @property
    def vocab_size(self) -> int:
        """Number of tokens of a masked language model."""
        assert isinstance(self.model, MaskedLanguageModelConfig)
        return self.model.vocab_size

    @property
    def num_classes(self) -> int:
        """Number of classes of a classifier."""
        assert not isinstance(self.model, MaskedLanguageModelConfig)
        return self.model.num_classes

    def load_tokenizer(self) -> Tokenizer:
        """Return the tokenizer of a text model."""
        assert self.tokenizer is not None
        return Tokenizer.from_str(self.tokenizer)


@dataclass(frozen=True)
class StagePlan:
    """All that a worker needs to train a stage.

    Attributes:
        name: Name of the stage.
        config: Its settings.
        prepared: What the driver learned about its data and model.
        storage: Folder of its result.
        tests: Whether the best weights are tested at the end; a trial of a search isn't, and pauses after each epoch,
            whose checkpoint has to be whole by then.
    """

    name: str
    config: StageConfig
    prepared: Prepared
    storage: Storage
    tests: bool = True


def prepare(config: StageConfig) -> Prepared:
    """Load a stage's data, describe its model, and check both.

    Raises:
        UserError: If the data or the input model can't be used.
    """
    if isinstance(config, ImageClassifierStageConfig):
        images = prepare_images(config.data)
        model: ModelConfig = config.model(images.input_shape, images.class_names, images.margin)
        return Prepared(model, None, images.fingerprint, fingerprint(config, images.fingerprint), False)
    source, tokenizer, input_fingerprint = None, None, ""
    if isinstance(config, TextClassifierStageConfig) and config.init_from is not None:
        source, tokenizer, input_fingerprint = _inspect_input(config, config.init_from)
    texts = prepare_text(config.data, tokenizer, labelled=isinstance(config, TextClassifierStageConfig))
    if isinstance(config, TextClassifierStageConfig) and isinstance(source, TextClassifierConfig):
        _check_classes(source, texts.class_names, config)
    vocab_size = vocab_size_of(texts.tokenizer)
    if vocab_size <= len(SPECIAL_TOKENS):
        raise UserError(f"the texts of {config.data.path} hold no words: set data.text_column to a column that does")
    if isinstance(config, MLMStageConfig):
        model = config.model(vocab_size)
    else:
        model = config.model(vocab_size, texts.class_names)
    identity = fingerprint(config, texts.fingerprint, input_fingerprint)
    return Prepared(model, texts.tokenizer.to_str(), texts.fingerprint, identity, texts.synthetic)


def with_absolute_paths(config: AnyConfig) -> AnyConfig:
    """Return settings with local paths that mean the same in any working folder, such as that of a Ray worker.

    Args:
        config: Those of a stage, or of a pipeline whose stages share their data.
    """
    data = config.data
    paths: dict[str, Any] = {name: _absolute(getattr(data, name)) for name in _PATHS if getattr(data, name, None)}
    if not data.cache_dir.startswith("~"):
        paths["cache_dir"] = str(Path(data.cache_dir).resolve())
    changes: dict[str, Any] = {"data": replace(data, **paths)}
    if isinstance(config, TextClassifierStageConfig) and config.init_from is not None:
        changes["init_from"] = _absolute(config.init_from)
    return replace(config, **changes)


def _absolute(path: str) -> str:
    """Return a path as an absolute one; what is not there is no path, but a hub name, a URI or a built-in data set."""
    local = Path(os.path.expanduser(path))
    is_built_in = path in (TOY_REVIEWS, DIGITS)
    return str(local.resolve()) if local.exists() and not is_built_in else path


def fingerprint(config: StageConfig, data_fingerprint: str, input_fingerprint: str = "") -> str:
    """Return the identity of a stage's result.

    Args:
        config: Settings; those that don't change the result are left out.
        data_fingerprint: Identity of the data's content.
        input_fingerprint: Identity of the model that the stage starts from.
    """
    identity = {
        "kind": type(config).__name__,
        "settings": settings_with_effect(config),
        "data": data_fingerprint,
        "input": input_fingerprint,
    }
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def settings_with_effect(config: StageConfig) -> dict[str, Any]:
    """Return a stage's settings without those that don't change its result."""
    settings = asdict(config)
    settings.pop("init_from", None)
    for section, names in _WITHOUT_EFFECT.items():
        for name in names:
            settings[section].pop(name, None)
    return settings


def _inspect_input(config: TextClassifierStageConfig, init_from: str) -> tuple[ModelConfig, Tokenizer, str]:
    """Check that the input model is whole and fits the config; return its config, its tokenizer and its identity."""
    storage = Storage.from_uri(init_from, "init_from")
    if not (storage / CONFIG).is_readable():
        raise UserError(f"init_from {storage} holds no model ({CONFIG} can't be read): name a model/ folder of a run")
    with storage.as_local_folder() as folder:
        source = read_config(folder)
        tokenizer = read_tokenizer(folder)
        identity = folder_digest(folder, without=CARD)
    if isinstance(source, ImageClassifierConfig) or tokenizer is None:
        raise UserError(f"init_from {init_from} is an image model: name the model/ folder of a text stage")
    _check_same("encoder", source.encoder, config.encoder, init_from)
    if isinstance(source, TextClassifierConfig):
        _check_same("decoder", source.decoder, config.decoder, init_from)
    if source.max_seq_len != config.data.max_seq_len:
        raise UserError(
            f"data.max_seq_len is {config.data.max_seq_len}, but the model in {init_from} reads {source.max_seq_len} "
            f"tokens: set data.max_seq_len to {source.max_seq_len}"
        )
    return source, tokenizer, identity


def _check_classes(
    source: TextClassifierConfig, class_names: tuple[str, ...], config: TextClassifierStageConfig
) -> None:
    if source.num_classes != len(class_names):
        raise UserError(
            f"{config.data.path} has {len(class_names)} classes, but the classifier in {config.init_from} tells "
            f"{source.num_classes} apart: start from a masked language model, or use other data"
        )


def _check_same(section: str, source: Any, wanted: Any, init_from: str) -> None:
    for f in fields(source):
        there, here = getattr(source, f.name), getattr(wanted, f.name)
        if there != here:
            raise UserError(
                f"{section}.{f.name} is {json.dumps(here)}, but the model in {init_from} has {json.dumps(there)}: "
                f"set {section}.{f.name} to {json.dumps(there)}, or start from another model"
            )
