"""What is measured: the model and the batch of each workload.

A workload is one batch's work: a training step, or one call of a trained model. The default sizes are those that
`python -m pipelines` trains with unless told otherwise; the tiny ones let a test run everything in seconds.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from perceiver.config import (
    EncoderConfig,
    ImageClassifierConfig,
    MaskedLanguageModelConfig,
    ModelConfig,
    OptimizerConfig,
    TextClassifierConfig,
)
from pipelines.config import ImageClassifierStageConfig, MLMStageConfig, TextClassifierStageConfig

OURS, PLAIN = "ours", "plain"
PLAIN_FUSED = "plain, need_weights=False"
OURS_KEPT = "ours, encoder's output kept"
"""Names of implementations; the others have their packages' and classes' names."""
Size = Literal["default", "tiny"]

WORKLOADS = {
    "mlm": "Masked language model: one training step",
    "frozen": "Text classifier on a frozen encoder: one training step",
    "joint": "Text classifier, all of it trained: one training step",
    "images": "Image classifier: one training step",
    "fills": "Filling the [MASK] of each of 64 reviews",
    "classify": "Classifying 512 images",
}
"""What each workload is, by its name."""


@dataclass(frozen=True)
class Workload:
    """One batch's work.

    Attributes:
        name: A name of WORKLOADS.
        model: What the model consists of.
        optimizer: Optimizer of the training step.
        batch_size: Samples in the batch.
    """

    name: str
    model: ModelConfig
    optimizer: OptimizerConfig
    batch_size: int

    @property
    def trains(self) -> bool:
        """Whether this is a training step, not a call of a trained model."""
        return self.name not in ("fills", "classify")

    @property
    def reads_text(self) -> bool:
        """Whether the samples are texts, not images."""
        return self.name not in ("images", "classify")


def find_workload(name: str, size: Size = "default") -> Workload:
    """Return a workload.

    Args:
        name: A name of WORKLOADS.
        size: Whether it has the size that users see, or one for tests.
    """
    mlm, classifier, images = MLMStageConfig(), TextClassifierStageConfig(), ImageClassifierStageConfig()
    digits = tuple("0123456789")
    mlm_model = mlm.model(mlm.data.vocab_size)
    classifier_model = classifier.model(classifier.data.vocab_size, ("negative", "positive"))
    image_model = images.model((28, 28, 1), digits)
    workload = {
        "mlm": Workload("mlm", mlm_model, mlm.optimizer, mlm.trainer.batch_size),
        "frozen": Workload("frozen", classifier_model, classifier.optimizer, classifier.trainer.batch_size),
        "joint": Workload("joint", classifier_model, classifier.optimizer, classifier.trainer.batch_size),
        "images": Workload("images", image_model, images.optimizer, images.trainer.batch_size),
        "fills": Workload("fills", mlm_model, mlm.optimizer, 64),
        "classify": Workload("classify", image_model, images.optimizer, 512),
    }[name]
    return workload if size == "default" else _tiny(workload)


def _tiny(workload: Workload) -> Workload:
    encoder = EncoderConfig(
        num_latents=4,
        num_latent_channels=16,
        num_layers=3,
        num_self_attention_layers_per_block=2,
        num_cross_attention_heads=4,
        num_self_attention_heads=4,
    )
    sizes: dict[str, Any] = {"encoder": encoder}
    if isinstance(workload.model, ImageClassifierConfig):
        sizes["num_frequency_bands"] = 4
    else:
        sizes.update(vocab_size=400, max_seq_len=24)
    return replace(workload, model=replace(workload.model, **sizes), batch_size=8)


def masked_language_model(num_tokens: int, size: Size = "default") -> Workload:
    """Return the masked language model's step for texts of another length, four to a batch."""
    workload = find_workload("mlm", size)
    assert isinstance(workload.model, MaskedLanguageModelConfig)
    return replace(workload, model=replace(workload.model, max_seq_len=num_tokens), batch_size=4)


def image_classifier(side: int, size: Size = "default") -> Workload:
    """Return the image classifier's step for images (side, side, 1), four to a batch."""
    workload = find_workload("images", size)
    assert isinstance(workload.model, ImageClassifierConfig)
    return replace(workload, model=replace(workload.model, image_shape=(side, side, 1)), batch_size=4)


def max_seq_len(model: ModelConfig) -> int:
    """Return the number of tokens that a model of texts takes at most."""
    assert not isinstance(model, ImageClassifierConfig)
    return model.max_seq_len


def num_classes(model: ModelConfig) -> int:
    """Return the number of classes of a classifier."""
    assert isinstance(model, TextClassifierConfig | ImageClassifierConfig)
    return model.num_classes
