"""Build what a worker trains, a stage's task and data, from what the driver prepared."""

from __future__ import annotations

import torch

from perceiver.attention import recompute_activations
from perceiver.build import build_model
from perceiver.config import MaskedLanguageModelConfig, TextDataConfig
from perceiver.data.encoded import EncodedTexts
from perceiver.data.image_module import ImageDataModule
from perceiver.data.images import prepare_images
from perceiver.data.modules import DataModule
from perceiver.data.sampling import Loading
from perceiver.data.text import prepare_text
from perceiver.data.text_module import TextDataModule, TextSource
from perceiver.model import PerceiverIO, PerceiverMLM
from perceiver.saving import load_model
from perceiver.tasks.base import Task
from perceiver.tasks.image_classifier import ImageClassifier
from perceiver.tasks.masked_language_model import MaskedLanguageModel
from perceiver.tasks.text_classifier import TextClassifier
from pipelines.config import ImageClassifierStageConfig, MLMStageConfig, StageConfig, TextClassifierStageConfig
from pipelines.control import Report
from pipelines.stages import Prepared
from pipelines.storage import Storage

_NO_ROOM = "reads the texts in each epoch: their latents would take {:.2g} GB, more than data.kept_latents_gb"
_HELD_BYTES = 2e9  # images that a GPU holds, so that no batch travels there


def build(
    config: StageConfig,
    prepared: Prepared,
    loading: Loading,
    device: torch.device | None = None,
    report: Report = lambda state: None,
) -> tuple[Task, DataModule]:
    """Build a stage's task and its data on a worker.

    Args:
        config: Settings of the stage.
        prepared: What the driver learned.
        loading: Which part of the data this worker reads, and from where on.
        device: Device that the worker trains on (none: the CPU).
        report: Told what phase begins, where one takes its time, and what the user should know.
    """
    device = device or torch.device("cpu")
    data = _build_data(config, prepared, loading)
    total_steps = data.steps_per_epoch * config.trainer.max_epochs
    torch.manual_seed(config.trainer.seed)
    model = build_model(prepared.model)
    task = _build_task(config, prepared, model, total_steps)
    if config.trainer.compile:
        model.encoder.compile_blocks()
    if config.trainer.activation_checkpointing:
        recompute_activations(model)
    trains = loading.start_epoch < config.trainer.max_epochs
    if isinstance(config, TextClassifierStageConfig) and config.freeze_encoder and trains:
        _keep_latents(model, data, config.data, device, report)
    if isinstance(data, ImageDataModule) and device.type != "cpu":
        data.hold(device, _HELD_BYTES)
    return task, data


def _keep_latents(
    model: PerceiverIO | PerceiverMLM,
    data: DataModule,
    config: TextDataConfig,
    device: torch.device,
    report: Report,
) -> None:
    """Let the frozen encoder read each text that it would see in every epoch now, and never again."""
    texts = EncodedTexts(
        config.cache_dir, config.kept_latents_gb * 1e9, worker=data.loading.rank, num_workers=data.loading.world_size
    )
    sources = [source for source in (data.train, data.validation) if isinstance(source, TextSource)]
    data.train, data.validation = texts.keep(
        model.encoder.eval(),
        sources,
        device,
        before_encoding=lambda: report({"phase": "encoding the texts"}),
        without_room=lambda size: report({"note": _NO_ROOM.format(size / 1e9)}) if config.kept_latents_gb else None,
    )


def _build_data(config: StageConfig, prepared: Prepared, loading: Loading) -> TextDataModule | ImageDataModule:
    if isinstance(config, ImageClassifierStageConfig):
        return ImageDataModule(prepare_images(config.data), config.data, loading)
    masking = config.masking if isinstance(config, MLMStageConfig) else None
    texts = prepare_text(config.data, prepared.load_tokenizer(), labelled=masking is None)
    return TextDataModule(texts, config.data, loading, masking)


def _build_task(config: StageConfig, prepared: Prepared, model: PerceiverIO | PerceiverMLM, total_steps: int) -> Task:
    optimizer, seed = config.optimizer, config.trainer.seed
    if isinstance(config, MLMStageConfig):
        assert isinstance(model, PerceiverMLM)
        tokenizer = prepared.load_tokenizer()
        samples, k = config.samples, config.num_predictions
        return MaskedLanguageModel(model, prepared.vocab_size, optimizer, total_steps, seed, tokenizer, samples, k)
    assert isinstance(model, PerceiverIO)
    if isinstance(config, ImageClassifierStageConfig):
        return ImageClassifier(model, prepared.num_classes, optimizer, total_steps, seed)
    if config.init_from is not None:
        _take_weights(model, config.init_from)
    return TextClassifier(model, prepared.num_classes, optimizer, total_steps, seed, config.freeze_encoder)


def _take_weights(model: PerceiverIO, init_from: str) -> None:
    """Start a classifier from a masked language model's encoder, or from the whole of another classifier."""
    with Storage.from_uri(init_from).as_local_folder() as folder:
        source = load_model(folder)
    if isinstance(source.config, MaskedLanguageModelConfig):
        model.encoder.load_state_dict(source.model.encoder.state_dict())
    else:
        model.load_state_dict(source.model.state_dict())
