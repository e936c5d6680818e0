"""README.md of a model folder: what the model is, what it was trained on, how good it is, and how to load it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from perceiver.config import ImageClassifierConfig, MaskedLanguageModelConfig, ModelConfig, TextClassifierConfig
from perceiver.saving import task_name
from pipelines.config import ImageClassifierStageConfig, TextClassifierStageConfig
from pipelines.stages import StagePlan

LIBRARY = "perceiver-ray"

_CLASSES_SHOWN = 20
_PIPELINE_TAGS = {
    "masked_language_model": "fill-mask",
    "text_classifier": "text-classification",
    "image_classifier": "image-classification",
}
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class Baseline:
    """Test figures of what a model has to beat.

    Attributes:
        name: What it does.
        accuracy: Its accuracy; None where nothing was tested.
        loss: Its mean cross-entropy in nats; None where it has no probabilities.
    """

    name: str
    accuracy: float | None
    loss: float | None = None


def render_card(plan: StagePlan, result: Mapping[str, Any], baseline: Baseline) -> str:
    """Return the card of a stage's model, in the form of the Hugging Face hub.

    The same training gives the same card, whenever it was interrupted.

    Args:
        plan: What was trained.
        result: The stage's result, with the figures of its test.
        baseline: What the figures are compared with.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("pipelines", "models"),
        undefined=StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    config, data = plan.prepared.model, plan.config.data
    return environment.get_template("card.md.j2").render(
        front_matter=_front_matter(plan, result),
        name=_name(plan),
        what=_what(config),
        synthetic=plan.prepared.synthetic,
        data=_data_name(plan),
        data_fingerprint=plan.prepared.data_fingerprint[:16],
        validation=_validation(data.validation == "test", data.limit),
        class_names=_class_names(config),
        architecture=_architecture(config, result),
        training=_training(plan, result),
        baseline_name=baseline.name,
        figures=_figures(result, baseline),
        best_epoch=result["best_epoch"],
        select_by=plan.config.trainer.select_by.replace("val_", "validation "),
        validation_is_test=data.validation == "test",
        limits=_limits(config),
        example=_example(plan),
    )


def _front_matter(plan: StagePlan, result: Mapping[str, Any]) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    task = _PIPELINE_TAGS[task_name(plan.prepared.model)]
    data = _data_name(plan)
    accuracy = EvalResult(
        task_type=task,
        dataset_type=data,
        dataset_name=data,
        dataset_split="test",
        metric_type="accuracy",
        metric_value=round(result["test_accuracy"], 4),
    )
    card = ModelCardData(
        library_name=LIBRARY,
        pipeline_tag=task,
        tags=["perceiver-io", *(["synthetic-data"] if plan.prepared.synthetic else [])],
        datasets=[data] if _HUB_NAME.fullmatch(data) else None,
        metrics=["accuracy"],
        model_name=_name(plan),
        eval_results=[accuracy],
    )
    return card.to_yaml().strip()


def _name(plan: StagePlan) -> str:
    return f"{plan.storage.parent.name}-{plan.name}"


def _data_name(plan: StagePlan) -> str:
    """Return a hub name as it is; of a path or URI the last part, as the rest concerns nobody who reads the card."""
    path = plan.config.data.path
    return PurePath(path.partition("?")[0]).name if "://" in path or PurePath(path).is_absolute() else path


def _what(config: ModelConfig) -> str:
    if isinstance(config, MaskedLanguageModelConfig):
        return "This model restores tokens of a text that are masked."
    kind = "texts" if isinstance(config, TextClassifierConfig) else "images"
    return f"This model sorts {kind} into {config.num_classes} classes."


def _validation(is_test: bool, limit: int | None) -> str:
    split = "The test split selected the best epoch." if is_test else "A tenth of the training split was held out."
    return split if limit is None else f"{split} At most {limit:,} samples of each split were used."


def _class_names(config: ModelConfig) -> str:
    if isinstance(config, MaskedLanguageModelConfig):
        return ""
    names = [f"`{' '.join(name.split())}`" for name in config.class_names[:_CLASSES_SHOWN]]
    rest = config.num_classes - len(names)
    return ", ".join(names) + (f" and {rest} more" if rest else "")


def _architecture(config: ModelConfig, result: Mapping[str, Any]) -> dict[str, str]:
    encoder = config.encoder
    if isinstance(config, ImageClassifierConfig):
        inputs = {"Images": " x ".join(map(str, config.image_shape)) + " (height, width, channels)"}
    else:
        inputs = {"Vocabulary": f"{config.vocab_size:,} tokens", "Text": f"{config.max_seq_len} tokens at most"}
    shared = "; all but the first share their weights" if encoder.num_layers > 2 else ""
    return {
        "Parameters": f"{result['parameters']:,}",
        **inputs,
        "Latents": f"{encoder.num_latents} of {encoder.num_latent_channels} channels",
        "Encoder layers": f"{encoder.num_layers}{shared}",
        "Self-attention layers per encoder layer": str(
            encoder.num_self_attention_layers_per_block * encoder.num_block_repeats
        ),
        "Heads": f"{encoder.num_cross_attention_heads} cross-attention, {encoder.num_self_attention_heads} "
        f"self-attention, {config.decoder.num_cross_attention_heads} decoder",
        "Operations per training sample": f"{result['flops_per_sample'] / 1e6:,.1f} million",
    }


def _training(plan: StagePlan, result: Mapping[str, Any]) -> str:
    optimizer, trainer = plan.config.optimizer, plan.config.trainer
    start = ""
    if isinstance(plan.config, TextClassifierStageConfig) and plan.config.init_from is not None:
        frozen = " was frozen and" if plan.config.freeze_encoder else ""
        start = f" The encoder{frozen} came from another model."
    epochs = f"{result['epochs']} epoch" + ("s" if result["epochs"] > 1 else "")
    return (
        f"{epochs}, {result['steps']:,} steps of {trainer.batch_size} samples with "
        f"{ {'adam': 'Adam', 'adamw': 'AdamW'}[optimizer.name] } and a learning rate of {optimizer.learning_rate:g} "
        f"({optimizer.schedule}), seed {trainer.seed}.{start}"
    )


def _figures(result: Mapping[str, Any], baseline: Baseline) -> dict[str, list[str]]:
    return {
        "loss": [_number(result.get("val_loss")), _number(result.get("test_loss")), _number(baseline.loss)],
        "accuracy": [
            *(_number(result.get(f"{split}_accuracy"), ".2%") for split in ("val", "test")),
            _number(baseline.accuracy, ".2%"),
        ],
        "samples": [*(_number(result.get(f"{split}_samples"), ",.0f") for split in ("val", "test")), ""],
    }


def _number(value: float | None, form: str = ".4f") -> str:
    return "" if value is None else format(value, form)


def _limits(config: ModelConfig) -> list[str]:
    limits = ["Nobody examined whether its predictions are biased for or against groups of people."]
    if isinstance(config, ImageClassifierConfig):
        height, width, _ = config.image_shape
        return [f"It sees {height} x {width} pixels: images of other sizes are resized or refused.", *limits]
    return [
        "It knows the language of its training texts alone; letters are lowered and accents taken away.",
        f"Of a longer text it reads the first {config.max_seq_len} tokens.",
        *limits,
    ]


def _example(plan: StagePlan) -> str:
    config = plan.prepared.model
    if isinstance(plan.config, ImageClassifierStageConfig):
        values = "[-1, 1]" if plan.config.data.normalize else "[0, 1]"
        assert isinstance(config, ImageClassifierConfig)
        shape = ", ".join(map(str, config.image_shape))
        call = f"print(model.classify(images))  # (B, {shape}) with values in {values}"
    elif isinstance(config, MaskedLanguageModelConfig):
        call = 'print(model.fill(["what a [MASK] film"]))'
    else:
        call = 'print(model.classify(["what a film"]))'
    return f'from perceiver.inference import load\n\nmodel = load("path/to/this/folder")\n{call}'
