"""Everything that can be set about data, models and training, as frozen dataclasses that check themselves.

A wrong value raises a ValueError that names the field and the value. Nothing here imports torch, so that a command
line can be parsed and checked at once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal


def _require(condition: bool, name: str, value: Any, need: str) -> None:
    if not condition:
        raise ValueError(f"{name} is {value!r}, but must be {need}")


def _require_positive(config: Any, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        _require(value is None or value >= 1, name, value, "1 or more")


def _require_fraction(name: str, value: float) -> None:
    _require(0.0 <= value < 1.0, name, value, "at least 0 and below 1")


def check_heads(name: str, num_heads: int, channels_name: str, num_channels: int) -> None:
    """Raise a ValueError unless the heads of an attention layer divide its channels evenly.

    Args:
        name: Field that holds the number of heads.
        num_heads: Number of attention heads H.
        channels_name: Field that holds the number of channels.
        num_channels: Number of channels that the heads share.
    """
    _require(num_heads >= 1, name, num_heads, "1 or more")
    if num_channels % num_heads:
        raise ValueError(f"{name} is {num_heads}, but must divide {channels_name} ({num_channels}) evenly")


@dataclass(frozen=True)
class EncoderConfig:
    """Shape of the encoder: Perceiver IO (arXiv:2107.14795), sec. 3.1, with the repeats of arXiv:2103.03206."""

    num_latents: int = 64
    """Number of latent vectors N."""
    num_latent_channels: int = 64
    """Channels D of each latent vector."""
    num_layers: int = 3
    """Encoder layers, each a cross-attention layer and a self-attention block; layers 2 and on share their weights."""
    num_self_attention_layers_per_block: int = 6
    """Self-attention layers in a block."""
    num_cross_attention_heads: int = 4
    """Heads of the cross-attention to the inputs; must divide its query/key and its value channels."""
    num_self_attention_heads: int = 4
    """Heads of the self-attention among latents; must divide its query/key and its value channels."""
    num_block_repeats: int = 1
    """Times that each layer's self-attention block is applied, with the same weights."""
    cross_attention_first_only: bool = False
    """Whether only the first layer attends to the inputs."""
    num_cross_attention_qk_channels: int | None = None
    """Query and key channels of the cross-attention (null: num_latent_channels)."""
    num_cross_attention_v_channels: int | None = None
    """Value channels of the cross-attention (null: its query and key channels)."""
    num_self_attention_qk_channels: int | None = None
    """Query and key channels of the self-attention (null: num_latent_channels)."""
    num_self_attention_v_channels: int | None = None
    """Value channels of the self-attention (null: its query and key channels)."""
    cross_attention_widening_factor: int = 1
    """Hidden channels of the MLP after cross-attention, as a multiple of num_latent_channels."""
    self_attention_widening_factor: int = 1
    """Hidden channels of the MLP after self-attention, as a multiple of num_latent_channels."""

    def __post_init__(self) -> None:
        _require_positive(
            self, "num_latents", "num_latent_channels", "num_layers", "num_self_attention_layers_per_block"
        )
        _require_positive(
            self, "num_block_repeats", "cross_attention_widening_factor", "self_attention_widening_factor"
        )
        for kind in ("cross", "self"):
            _check_attention(self, f"num_{kind}_attention", self.num_latent_channels, "num_latent_channels")


@dataclass(frozen=True)
class DecoderConfig:
    """Shape of the decoder: learned output queries that attend to the latents once."""

    num_cross_attention_heads: int = 4
    """Heads of the cross-attention to the latents; must divide its query/key and its value channels."""
    num_output_channels: int | None = None
    """Channels E of each output query (null: the encoder's num_latent_channels)."""
    num_cross_attention_qk_channels: int | None = None
    """Query and key channels of the cross-attention (null: num_output_channels)."""
    num_cross_attention_v_channels: int | None = None
    """Value channels of the cross-attention (null: its query and key channels)."""
    widening_factor: int = 1
    """Hidden channels of the MLP, as a multiple of num_output_channels."""
    query_residual: bool = True
    """Whether the output query is added to what its attention returns."""

    def __post_init__(self) -> None:
        _require_positive(self, "num_cross_attention_heads", "num_output_channels", "widening_factor")

    def check_channels(self, num_latent_channels: int) -> None:
        """Raise a ValueError unless the heads divide the channels, given the encoder's latent channels."""
        default = self.num_output_channels or num_latent_channels
        name = "num_output_channels" if self.num_output_channels else "num_latent_channels"
        _check_attention(self, "num_cross_attention", default, name)


def _check_attention(config: Any, prefix: str, default_channels: int, default_name: str) -> None:
    """Check that `{prefix}_heads` divides the layer's query/key and value channels."""
    heads = getattr(config, f"{prefix}_heads")
    channels, name = default_channels, default_name
    for part in ("qk", "v"):
        field_name = f"{prefix}_{part}_channels"
        _require_positive(config, field_name)
        if getattr(config, field_name) is not None:
            channels, name = getattr(config, field_name), field_name
        check_heads(f"{prefix}_heads", heads, name, channels)


@dataclass(frozen=True)
class MaskingConfig:
    """Which tokens a masked language model has to restore (BERT, arXiv:1810.04805, sec. 3.1)."""

    mask_p: float = 0.15
    """Share of the ordinary tokens that are selected; of them 80 % become [MASK], 10 % another token, 10 % stay."""

    def __post_init__(self) -> None:
        _require(0.0 < self.mask_p <= 1.0, "mask_p", self.mask_p, "above 0 and at most 1")


@dataclass(frozen=True)
class MaskedLanguageModelConfig:
    """A Perceiver IO masked language model: what it takes to build one."""

    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    """Shape of the encoder."""
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    """Shape of the decoder."""
    masking: MaskingConfig = field(default_factory=MaskingConfig)
    """Which tokens are to be restored."""
    vocab_size: int = 10003
    """Number of different tokens."""
    max_seq_len: int = 512
    """Tokens per text at most."""
    dropout: float = 0.0
    """Dropout probability of attention weights and of both residual branches."""
    tie_output_embedding: bool = False
    """Whether the output layer shares its weights with the token embedding."""

    def __post_init__(self) -> None:
        _require_positive(self, "vocab_size", "max_seq_len")
        _require_fraction("dropout", self.dropout)
        self.decoder.check_channels(self.encoder.num_latent_channels)
        channels = self.decoder.num_output_channels
        if self.tie_output_embedding and channels not in (None, self.encoder.num_latent_channels):
            raise ValueError(
                f"tie_output_embedding needs num_output_channels ({channels}) to equal "
                f"num_latent_channels ({self.encoder.num_latent_channels})"
            )


@dataclass(frozen=True)
class TextClassifierConfig:
    """A Perceiver IO text classifier: what it takes to build one."""

    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    """Shape of the encoder."""
    decoder: DecoderConfig = field(default_factory=lambda: DecoderConfig(num_cross_attention_heads=1))
    """Shape of the decoder."""
    vocab_size: int = 10003
    """Number of different tokens."""
    max_seq_len: int = 512
    """Tokens per text at most."""
    class_names: tuple[str, ...] = ("0", "1")
    """Name of each class, in the order of the labels 0, 1, ..."""
    dropout: float = 0.0
    """Dropout probability of attention weights and of both residual branches."""

    def __post_init__(self) -> None:
        _require_positive(self, "vocab_size", "max_seq_len")
        _check_classifier(self)

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)


@dataclass(frozen=True)
class ImageClassifierConfig:
    """A Perceiver IO image classifier: what it takes to build one."""

    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    """Shape of the encoder."""
    decoder: DecoderConfig = field(default_factory=lambda: DecoderConfig(num_cross_attention_heads=1))
    """Shape of the decoder."""
    image_shape: tuple[int, int, int] = (28, 28, 1)
    """Height, width and channels of an image."""
    num_frequency_bands: int = 32
    """Frequencies of the Fourier position encoding, per axis."""
    class_names: tuple[str, ...] = tuple("0123456789")
    """Name of each class, in the order of the labels 0, 1, ..."""
    dropout: float = 0.0
    """Dropout probability of attention weights and of both residual branches."""
    normalize: bool = True
    """Whether it takes pixel values in [-1, 1]; otherwise in [0, 1]."""
    margin: tuple[int, int] = (0, 0)
    """Height and width that whole images have beyond image_shape: the model sees their centre."""

    def __post_init__(self) -> None:
        _require(min(self.margin) >= 0, "margin", self.margin, "0 or more in each axis")
        _require(min(self.image_shape) >= 1, "image_shape", self.image_shape, "positive in each axis")
        _require_positive(self, "num_frequency_bands")
        _check_classifier(self)

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)


def _check_classifier(config: TextClassifierConfig | ImageClassifierConfig) -> None:
    _require(len(config.class_names) >= 2, "class_names", config.class_names, "2 names or more")
    _require_fraction("dropout", config.dropout)
    config.decoder.check_channels(config.encoder.num_latent_channels)


ModelConfig = MaskedLanguageModelConfig | TextClassifierConfig | ImageClassifierConfig

Validation = Literal["tenth", "test"]


@dataclass(frozen=True)
class TextDataConfig:
    """Texts, their labels, and how they become tokens."""

    path: str = "stanfordnlp/imdb"
    """Hub name; a folder in the hub's layout; the original aclImdb folder; a .csv, .jsonl or .parquet file;
    or toy_reviews (built in and synthetic)."""
    test_path: str | None = None
    """File with the test split, where path is a single file (null: a fixed tenth of path)."""
    unlabelled_path: str | None = None
    """File with unlabelled texts, where path is a single file."""
    text_column: str = "text"
    """Column that holds the text."""
    label_column: str = "label"
    """Column that holds the label: an integer from 0, or a name."""
    validation: Validation = "tenth"
    """What selects the best epoch: a fixed tenth of the training split that is not trained on, or the test split
    (the protocol of the reference implementation)."""
    use_unlabelled: bool = False
    """Whether the unlabelled split joins masked-language pretraining and tokenizer training."""
    limit: int | None = None
    """Use only this many samples of each split, drawn once and for all (null: all of them)."""
    vocab_size: int = 10003
    """Tokens in the vocabulary at most, with [PAD], [UNK] and [MASK]."""
    max_seq_len: int = 512
    """Tokens per text at most; what is longer is cut."""
    tokenizer: str | None = None
    """Tokenizer file to use (null: train a WordPiece tokenizer on the training split)."""
    length_pool: int = 50
    """Batches that are shuffled together and sorted by length, so that a batch holds texts of like length
    (1: no sorting)."""
    loader_workers: int = 0
    """Processes that assemble batches, per training worker (0: the training process itself)."""
    cache_dir: str = "~/.cache/perceiver"
    """Folder for trained tokenizers, tokenized texts and the latents that frozen encoders make of them."""
    kept_latents_gb: float = 10.0
    """Disk space in cache_dir for the latents of frozen encoders, in GB. They are kept, so that a frozen encoder reads
    each text once; where they would take more space, it reads them in every epoch (0: always)."""

    def __post_init__(self) -> None:
        _require_positive(self, "limit", "max_seq_len", "length_pool")
        _require(self.kept_latents_gb >= 0, "kept_latents_gb", self.kept_latents_gb, "0 or more")
        _require(self.vocab_size >= 4, "vocab_size", self.vocab_size, "4 or more")
        _require(self.loader_workers >= 0, "loader_workers", self.loader_workers, "0 or more")
        _check_validation(self.validation)


@dataclass(frozen=True)
class ImageDataConfig:
    """Images and their labels."""

    path: str = "ylecun/mnist"
    """Hub name; a folder in the hub's layout; a folder of class folders (train/CLASS/*.png, test/CLASS/*.png, or
    CLASS/*.png alone); a folder of idx files (MNIST, Fashion-MNIST); or digits (scikit-learn's, built in)."""
    image_column: str = "image"
    """Column that holds the image."""
    label_column: str = "label"
    """Column that holds the label."""
    validation: Validation = "tenth"
    """What selects the best epoch: a fixed tenth of the training split that is not trained on, or the test split
    (the protocol of the reference implementation)."""
    limit: int | None = None
    """Use only this many samples of each split, drawn once and for all (null: all of them)."""
    random_crop: int | None = None
    """Side in pixels of a square cut at random from each training image and from the centre of the others
    (null: whole images)."""
    normalize: bool = True
    """Whether pixel values are moved from [0, 1] to [-1, 1]."""
    loader_workers: int = 0
    """Processes that assemble batches, per training worker (0: the training process itself)."""
    cache_dir: str = "~/.cache/perceiver"
    """Folder for decoded images."""

    def __post_init__(self) -> None:
        _require_positive(self, "limit", "random_crop")
        _require(self.loader_workers >= 0, "loader_workers", self.loader_workers, "0 or more")
        _check_validation(self.validation)


def _check_validation(value: str) -> None:
    _require(value in ("tenth", "test"), "validation", value, "tenth or test")


@dataclass(frozen=True)
class OptimizerConfig:
    """Optimizer and learning rate schedule."""

    name: Literal["adam", "adamw"] = "adam"
    """Adam with L2 weight decay, or AdamW with decoupled weight decay."""
    learning_rate: float = 1e-3
    """Learning rate after the warm-up."""
    weight_decay: float = 0.0
    """Weight decay; biases, norms, embeddings and learned arrays have none under adamw."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Course of the learning rate after the warm-up: constant, or down to zero at the last step."""
    warmup_steps: int = 0
    """Steps over which the learning rate rises from zero."""

    def __post_init__(self) -> None:
        _require(self.name in ("adam", "adamw"), "name", self.name, "adam or adamw")
        _require(
            math.isfinite(self.learning_rate) and self.learning_rate > 0, "learning_rate", self.learning_rate, "above 0"
        )
        _require(self.weight_decay >= 0, "weight_decay", self.weight_decay, "0 or more")
        _require(
            self.schedule in ("constant", "linear", "cosine"), "schedule", self.schedule, "constant, linear or cosine"
        )
        _require(self.warmup_steps >= 0, "warmup_steps", self.warmup_steps, "0 or more")


Precision = Literal["auto", "32-true", "bf16-mixed", "16-mixed"]


@dataclass(frozen=True)
class TrainerConfig:
    """How long and how a stage trains."""

    max_epochs: int = 3
    """Passes over the training split."""
    batch_size: int = 64
    """Samples per optimizer step over all workers together; the workers divide it."""
    micro_batch_size: int | None = None
    """Samples that a worker computes at once at most; where its share of a batch is larger, it adds up the gradients of
    several parts (null: the whole share at once). It saves memory and leaves the gradient as it is."""
    activation_checkpointing: bool = False
    """Whether the layers' activations are computed again in the backward pass instead of being kept, which saves memory
    and takes the time of a second forward pass."""
    seed: int = 0
    """Seed of initial weights, sample order, masks and dropout."""
    precision: Precision = "auto"
    """Number format: auto is bf16-mixed on GPUs that have it and 32-true elsewhere."""
    compile: bool = False
    """Whether torch.compile compiles the self-attention blocks, which takes up to a minute at the start and a C++
    compiler. It pays in long runs, most of all on GPUs."""
    gradient_clip_norm: float | None = None
    """Largest L2 norm of the gradient; a larger one is scaled down (null: no limit)."""
    log_gradient_norm: bool = False
    """Whether the L2 norm of the gradient is recorded where gradient_clip_norm, with which it always is, is not set."""
    checkpoint_every_n_steps: int = 200
    """Steps between two checkpoints within an epoch; the end of an epoch always leaves one."""
    checkpoint_every_n_minutes: float | None = 10.0
    """Minutes after which a checkpoint is due however few steps were made (null: never)."""
    select_by: Literal["val_loss", "val_accuracy"] = "val_loss"
    """Validation metric that selects the epoch whose weights become the model."""

    def __post_init__(self) -> None:
        _require_positive(self, "max_epochs", "batch_size", "micro_batch_size", "checkpoint_every_n_steps")
        _require(0 <= self.seed < 2**63, "seed", self.seed, "at least 0 and below 2**63")
        choices = ("auto", "32-true", "bf16-mixed", "16-mixed")
        _require(self.precision in choices, "precision", self.precision, " or ".join(choices))
        minutes = self.checkpoint_every_n_minutes
        _require(minutes is None or minutes > 0, "checkpoint_every_n_minutes", minutes, "above 0")
        clip = self.gradient_clip_norm
        _require(clip is None or clip > 0, "gradient_clip_norm", clip, "above 0")
        _require(
            self.select_by in ("val_loss", "val_accuracy"), "select_by", self.select_by, "val_loss or val_accuracy"
        )
