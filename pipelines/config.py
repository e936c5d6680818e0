"""What can be set about a pipeline: its stages, its workers, its tracking and where its results lie."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from perceiver.config import (
    DecoderConfig,
    EncoderConfig,
    ImageClassifierConfig,
    ImageDataConfig,
    MaskedLanguageModelConfig,
    MaskingConfig,
    OptimizerConfig,
    TextClassifierConfig,
    TextDataConfig,
    TrainerConfig,
)

SAMPLES = ("i have watched this [MASK] and it was awesome", "i have [MASK] this movie and [MASK] was terrible")


def _single_head() -> DecoderConfig:
    return DecoderConfig(num_cross_attention_heads=1)


Strategy = Literal["ddp", "fsdp"]


@dataclass(frozen=True)
class ScalingConfig:
    """The workers of a stage."""

    num_workers: int | tuple[int, int] = 1
    """Training workers; they divide each batch among them. One alone trains in the process of the command itself,
    which starts at once, unless RAY_ADDRESS names a Ray cluster or is "local", which starts one of this machine's own
    (0: in the process of the command, whatever RAY_ADDRESS is). "[1, 4]": as many as the cluster has room for, which
    may change while they train."""
    strategy: Strategy = "ddp"
    """What several workers share: ddp, the gradients alone, each has the whole model; fsdp, also the weights and the
    optimizer's state, for a model that one GPU can't hold."""
    use_gpu: bool | None = None
    """Whether each worker has a GPU (null: if the cluster has any)."""
    cpus_per_worker: int | None = None
    """CPU cores per worker (null: those of the cluster divided by the workers)."""
    max_failures: int = 2
    """Times that Ray starts the workers again after one of them died. Training in the process of the command dies with
    it; the same command then goes on from the newest checkpoint."""
    timeout_seconds: int = 60
    """Seconds after which a worker that doesn't answer, or that others wait for, counts as dead."""

    def __post_init__(self) -> None:
        if self.strategy not in ("ddp", "fsdp"):
            raise ValueError(f"strategy is {self.strategy!r}, but must be ddp or fsdp")
        if self.min_workers < 0:
            raise ValueError(f"num_workers is {self._shown()}, but must be 0 or more")
        if self.is_elastic and not 1 <= self.min_workers <= self.max_workers:
            raise ValueError(f"num_workers is {self._shown()}, but the first must be 1 or more, the second no less")
        if self.cpus_per_worker is not None and self.cpus_per_worker < 1:
            raise ValueError(f"cpus_per_worker is {self.cpus_per_worker}, but must be 1 or more")
        if self.max_failures < 0:
            raise ValueError(f"max_failures is {self.max_failures}, but must be 0 or more")
        if self.timeout_seconds < 1:
            raise ValueError(f"timeout_seconds is {self.timeout_seconds}, but must be 1 or more")

    def _shown(self) -> str:
        return str(list(self.num_workers)) if isinstance(self.num_workers, tuple) else str(self.num_workers)

    def workers_in_words(self) -> str:
        """Return how many workers there are: "4", or "1 to 4"."""
        return f"{self.min_workers} to {self.max_workers}" if self.is_elastic else str(self.num_workers)

    @property
    def is_elastic(self) -> bool:
        """Whether the number of workers may change."""
        return isinstance(self.num_workers, tuple)

    @property
    def min_workers(self) -> int:
        """Workers without which nothing trains."""
        return self.num_workers[0] if isinstance(self.num_workers, tuple) else self.num_workers

    @property
    def max_workers(self) -> int:
        """Workers at most."""
        return self.num_workers[1] if isinstance(self.num_workers, tuple) else self.num_workers


def check_no_password(uri: str | None) -> None:
    """Raise a ValueError if a URI of MLflow holds a password, which would be seen wherever a setting is shown."""
    if uri is not None and re.search(r"//[^/]*:[^/]*@", uri):
        raise ValueError(
            "tracking.uri holds a password, which config.yaml and MLflow would show: set MLFLOW_TRACKING_URI to it, "
            "or MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
        )


def check_registry_name(option: str, name: str) -> None:
    """Raise a ValueError unless MLflow's model registry takes a name."""
    if not re.fullmatch(r"\w[\w.-]{0,199}", name):
        raise ValueError(f"{option} is {name!r}, but must be 1 to 200 letters, digits, dots, underscores and hyphens")


@dataclass(frozen=True)
class TrackingConfig:
    """Where metrics go beside the result's own metrics.jsonl."""

    mlflow: bool = True
    """Whether runs are recorded in MLflow."""
    experiment: str = "perceiver"
    """MLflow experiment."""
    uri: str | None = None
    """MLflow tracking URI, unless MLFLOW_TRACKING_URI is set (null: mlflow.db in storage_path)."""
    tensorboard: bool = True
    """Whether TensorBoard files are written beside the metrics."""
    report: bool = True
    """Whether report.html, the page of the run, and its pictures are drawn at the end."""
    register: str | None = None
    """Name in MLflow's model registry under which the last stage's model becomes the candidate (null: none)."""

    def __post_init__(self) -> None:
        check_no_password(self.uri)
        if self.register is not None:
            check_registry_name("register", self.register)
            if not self.mlflow:
                raise ValueError(f"register is {self.register}, but mlflow is false, so that there is no registry")


@dataclass(frozen=True)
class RunConfig:
    """Where a pipeline runs and what it leaves behind."""

    run_name: str = "run"
    """Name of the result's folder in storage_path, and of the run in MLflow."""
    storage_path: str = "runs"
    """Folder or URI (s3://, gs://, file:// or another that pyarrow or fsspec knows) of all results."""
    scaling: ScalingConfig = field(default_factory=ScalingConfig)
    """Workers."""
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    """MLflow and TensorBoard."""


@dataclass(frozen=True)
class PretrainingConfig:
    """Masked-language pretraining, but for its data and its encoder."""

    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    """Shape of the decoder."""
    masking: MaskingConfig = field(default_factory=MaskingConfig)
    """Which tokens are to be restored."""
    dropout: float = 0.0
    """Dropout probability of attention weights and of both residual branches."""
    tie_output_embedding: bool = False
    """Whether the output layer shares its weights with the token embedding."""
    samples: tuple[str, ...] = SAMPLES
    """Texts with [MASK] that are filled after every epoch."""
    num_predictions: int = 5
    """Fills shown per mask."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """Optimizer."""
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    """Length and manner of the training."""

    def __post_init__(self) -> None:
        if self.num_predictions < 1:
            raise ValueError(f"num_predictions is {self.num_predictions}, but must be 1 or more")
        for text in self.samples:
            if "[MASK]" not in text:
                raise ValueError(f"samples has {text!r}, but each must hold [MASK]")


@dataclass(frozen=True)
class MLMStageConfig(PretrainingConfig):
    """A stage of masked-language pretraining."""

    data: TextDataConfig = field(default_factory=TextDataConfig)
    """Texts."""
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    """Shape of the encoder."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.model(self.data.vocab_size)

    def model(self, vocab_size: int) -> MaskedLanguageModelConfig:
        """Describe the model for a tokenizer of `vocab_size` tokens."""
        return MaskedLanguageModelConfig(
            encoder=self.encoder,
            decoder=self.decoder,
            masking=self.masking,
            vocab_size=vocab_size,
            max_seq_len=self.data.max_seq_len,
            dropout=self.dropout,
            tie_output_embedding=self.tie_output_embedding,
        )


@dataclass(frozen=True)
class ClassifierTrainingConfig:
    """Training of a text classifier, but for its data and its encoder."""

    decoder: DecoderConfig = field(default_factory=_single_head)
    """Shape of the classifier's decoder."""
    dropout: float = 0.0
    """Dropout probability of attention weights and of both residual branches."""
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(weight_decay=1e-3))
    """Optimizer."""
    trainer: TrainerConfig = field(default_factory=lambda: TrainerConfig(batch_size=128))
    """Length and manner of the training."""


@dataclass(frozen=True)
class TextClassifierStageConfig(ClassifierTrainingConfig):
    """A stage of text classification."""

    data: TextDataConfig = field(default_factory=TextDataConfig)
    """Texts and labels."""
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    """Shape of the encoder."""
    init_from: str | None = None
    """Folder or URI of a model to start from: of a masked language model (its encoder is taken) or of a text
    classifier (all of it) (null: start from scratch)."""
    freeze_encoder: bool = False
    """Whether only the decoder is trained."""

    def __post_init__(self) -> None:
        if self.freeze_encoder and self.init_from is None:
            raise ValueError("freeze_encoder is true, but without init_from there is no trained encoder to freeze")
        self.model(self.data.vocab_size, ("0", "1"))

    def model(self, vocab_size: int, class_names: tuple[str, ...]) -> TextClassifierConfig:
        """Describe the model for a tokenizer of `vocab_size` tokens and these classes."""
        return TextClassifierConfig(
            encoder=self.encoder,
            decoder=self.decoder,
            vocab_size=vocab_size,
            max_seq_len=self.data.max_seq_len,
            class_names=class_names,
            dropout=self.dropout,
        )


@dataclass(frozen=True)
class ImageClassifierStageConfig:
    """Image classification."""

    data: ImageDataConfig = field(default_factory=ImageDataConfig)
    """Images and labels."""
    encoder: EncoderConfig = field(
        default_factory=lambda: EncoderConfig(
            num_latents=32, num_latent_channels=128, num_self_attention_layers_per_block=3
        )
    )
    """Shape of the encoder."""
    decoder: DecoderConfig = field(default_factory=_single_head)
    """Shape of the decoder."""
    num_frequency_bands: int = 32
    """Frequencies of the Fourier position encoding, per axis."""
    dropout: float = 0.0
    """Dropout probability of attention weights and of both residual branches."""
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(weight_decay=1e-4))
    """Optimizer."""
    trainer: TrainerConfig = field(default_factory=lambda: TrainerConfig(batch_size=128))
    """Length and manner of the training."""

    def __post_init__(self) -> None:
        self.model((1, 1, 1), ("0", "1"))

    def model(
        self, image_shape: tuple[int, int, int], class_names: tuple[str, ...], margin: tuple[int, int] = (0, 0)
    ) -> ImageClassifierConfig:
        """Describe the model for images (height, width, channels) with a margin around them, and these classes."""
        return ImageClassifierConfig(
            encoder=self.encoder,
            decoder=self.decoder,
            image_shape=image_shape,
            num_frequency_bands=self.num_frequency_bands,
            class_names=class_names,
            dropout=self.dropout,
            normalize=self.data.normalize,
            margin=margin,
        )


StageConfig = MLMStageConfig | TextClassifierStageConfig | ImageClassifierStageConfig


@dataclass(frozen=True)
class FinetuneConfig:
    """The chain's third stage: encoder and decoder of the classifier are trained together."""

    dropout: float = 0.1
    """Dropout probability of attention weights and of both residual branches."""
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(learning_rate=1e-4, weight_decay=1e-3))
    """Optimizer."""
    trainer: TrainerConfig = field(default_factory=lambda: TrainerConfig(batch_size=128))
    """Length and manner of the training."""


@dataclass(frozen=True)
class SentimentConfig:
    """The chain: pretrain an encoder, classify with it frozen, then fine-tune everything."""

    data: TextDataConfig = field(default_factory=TextDataConfig)
    """Texts and labels of all stages."""
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    """Shape of the encoder of all stages."""
    mlm: PretrainingConfig = field(default_factory=PretrainingConfig)
    """Masked-language pretraining."""
    frozen: ClassifierTrainingConfig = field(default_factory=ClassifierTrainingConfig)
    """Classifier on the frozen encoder."""
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)
    """Joint fine-tuning."""
    baselines: bool = True
    """Whether the majority class and TF-IDF with logistic regression are shown beside the results."""

    def __post_init__(self) -> None:
        self.stages()

    def stages(self, location: str = "") -> dict[str, StageConfig]:
        """Return the configuration of each stage by its name, in order.

        Args:
            location: Folder or URI of the run, below which a stage finds its predecessor's model.
        """

        def parts(config: PretrainingConfig | ClassifierTrainingConfig | FinetuneConfig) -> dict[str, Any]:
            own = {f.name: getattr(config, f.name) for f in fields(config)}
            return {"data": self.data, "encoder": self.encoder, **own}

        return {
            "mlm": MLMStageConfig(**parts(self.mlm)),
            "frozen": TextClassifierStageConfig(
                **parts(self.frozen), init_from=f"{location}/mlm/model", freeze_encoder=True
            ),
            "finetune": TextClassifierStageConfig(
                **parts(self.finetune), decoder=self.frozen.decoder, init_from=f"{location}/frozen/model"
            ),
        }


def stages_of(verb: str, config: StageConfig | SentimentConfig, location: str) -> dict[str, StageConfig]:
    """Return the configuration of each stage of a pipeline by its name, in order.

    Args:
        verb: Name of the pipeline, and of its stage if it has one alone.
        config: Its configuration.
        location: Folder or URI of the run.
    """
    return config.stages(location) if isinstance(config, SentimentConfig) else {verb: config}
