"""The peers, perceiver-pytorch and transformers, in the configuration that comes closest to ours.

Each is run as its users would run it: logits of all positions, F.cross_entropy (which is also what transformers calls
where it is given labels), torch.optim.Adam. What their classes do not let one choose stands in `difference`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from perceiver.config import EncoderConfig, ImageClassifierConfig, ModelConfig, TextClassifierConfig
from tests.benchmarks.implementation import Padding

FEED_FORWARD = "its MLPs are gated and 4 times as wide"
ONE_CROSS_ATTENTION = "it attends to the inputs once, where ours does so in each of its 3 layers"


@dataclass(frozen=True)
class Peer:
    """A peer's model.

    Attributes:
        package: Distribution that it comes from.
        build: Builds it for a config: a module that turns (x, pad_mask) into logits.
        difference: How its architecture differs from ours.
        decoder: Prefixes of the parameters that are trained where the encoder is frozen.
        padding: How texts have to be padded for it.
    """

    package: str
    build: Callable[[Any], nn.Module]
    difference: str
    decoder: tuple[str, ...] = ()
    padding: Padding = "longest"


class WithMask(nn.Module):
    """Gives perceiver-pytorch what it calls a mask: True where an input is to be attended to."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, pad_mask: Tensor | None = None) -> Tensor:
        """Turn inputs into logits; pad_mask is True = padding."""
        result: Tensor = self.model(x, mask=None if pad_mask is None else ~pad_mask)
        return result


class EmbeddedText(nn.Module):
    """Token and position embeddings before a perceiver-pytorch classifier, as its users write them."""

    def __init__(self, model: nn.Module, config: TextClassifierConfig, has_queries: bool) -> None:
        super().__init__()
        channels = config.encoder.num_latent_channels
        self.model = model
        self.token_emb = nn.Embedding(config.vocab_size, channels)
        self.pos_emb = nn.Embedding(config.max_seq_len, channels)
        self.queries = nn.Parameter(torch.randn(1, channels)) if has_queries else None

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Turn tokens (B, M) into logits (B, num_classes)."""
        embedded = self.token_emb(x) + self.pos_emb(torch.arange(x.shape[1], device=x.device))
        if self.queries is None:
            result: Tensor = self.model(embedded, mask=mask)
            return result
        outputs: Tensor = self.model(embedded, mask=mask, queries=self.queries)  # (B, 1, num_classes)
        return outputs.squeeze(1)


class WithAttentionMask(nn.Module):
    """Gives transformers what it calls an attention mask, and takes the logits out of what it returns."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, pad_mask: Tensor | None = None) -> Tensor:
        """Turn tokens (B, M), or images (B, H, W, C), into logits; pad_mask is True = padding."""
        if x.ndim == 4:
            x = rearrange(x, "b h w c -> b c h w")
        attention_mask = None if pad_mask is None else (~pad_mask).long()
        result: Tensor = self.model(inputs=x, attention_mask=attention_mask).logits
        return result


def _lucidrains_sizes(encoder: EncoderConfig) -> dict[str, int]:
    """What perceiver-pytorch's classes have in common."""
    channels = encoder.num_latent_channels
    return {
        "num_latents": encoder.num_latents,
        "latent_dim": channels,
        "cross_heads": encoder.num_cross_attention_heads,
        "cross_dim_head": channels // encoder.num_cross_attention_heads,
        "latent_heads": encoder.num_self_attention_heads,
        "latent_dim_head": channels // encoder.num_self_attention_heads,
    }


def _depth(encoder: EncoderConfig) -> int:
    return encoder.num_layers * encoder.num_self_attention_layers_per_block


def perceiver_lm(config: Any) -> nn.Module:
    """Build perceiver-pytorch's masked language model."""
    return WithMask(
        import_module("perceiver_pytorch.perceiver_io").PerceiverLM(
            dim=config.encoder.num_latent_channels,
            num_tokens=config.vocab_size,
            max_seq_len=config.max_seq_len,
            depth=_depth(config.encoder),
            decoder_ff=True,
            **_lucidrains_sizes(config.encoder),
        )
    )


def perceiver_io(config: TextClassifierConfig) -> nn.Module:
    """Build perceiver-pytorch's Perceiver IO as a text classifier."""
    channels = config.encoder.num_latent_channels
    model = import_module("perceiver_pytorch").PerceiverIO(
        dim=channels,
        queries_dim=channels,
        logits_dim=config.num_classes,
        depth=_depth(config.encoder),
        decoder_ff=True,
        **_lucidrains_sizes(config.encoder),
    )
    return WithMask(EmbeddedText(model, config, has_queries=True))


def perceiver(config: ModelConfig) -> nn.Module:
    """Build perceiver-pytorch's Perceiver as a classifier of texts or images."""
    assert isinstance(config, TextClassifierConfig | ImageClassifierConfig)
    build = import_module("perceiver_pytorch").Perceiver
    sizes = {
        "depth": config.encoder.num_layers,
        "self_per_cross_attn": config.encoder.num_self_attention_layers_per_block,
        "num_classes": config.num_classes,
        "weight_tie_layers": True,
        **_lucidrains_sizes(config.encoder),
    }
    if isinstance(config, ImageClassifierConfig):
        height, _, channels = config.image_shape
        images = {"num_freq_bands": config.num_frequency_bands, "max_freq": height, "input_channels": channels}
        return WithMask(build(input_axis=2, **images, **sizes))
    texts = {"num_freq_bands": 1, "max_freq": 1, "input_channels": config.encoder.num_latent_channels}
    model = build(input_axis=1, fourier_encode_data=False, **texts, **sizes)
    return WithMask(EmbeddedText(model, config, has_queries=False))


def _transformers_config(encoder: EncoderConfig, **options: Any) -> Any:
    from transformers import PerceiverConfig

    return PerceiverConfig(
        num_latents=encoder.num_latents,
        d_latents=encoder.num_latent_channels,
        num_blocks=encoder.num_layers,
        num_self_attends_per_block=encoder.num_self_attention_layers_per_block,
        num_self_attention_heads=encoder.num_self_attention_heads,
        num_cross_attention_heads=encoder.num_cross_attention_heads,
        qk_channels=encoder.num_latent_channels,
        v_channels=encoder.num_latent_channels,
        attention_probs_dropout_prob=0.0,
        **options,
    )


def _transformers_text_config(config: Any) -> Any:
    return _transformers_config(
        config.encoder,
        d_model=config.encoder.num_latent_channels,
        vocab_size=config.vocab_size,
        max_position_embeddings=config.max_seq_len,
    )


def transformers_mlm(config: Any) -> nn.Module:
    """Build transformers' masked language model."""
    from transformers import PerceiverForMaskedLM

    return WithAttentionMask(PerceiverForMaskedLM(_transformers_text_config(config)))


def transformers_text_classifier(config: TextClassifierConfig) -> nn.Module:
    """Build transformers' text classifier."""
    from transformers import PerceiverForSequenceClassification

    options = _transformers_text_config(config)
    options.num_labels = config.num_classes
    return WithAttentionMask(PerceiverForSequenceClassification(options))


def transformers_image_classifier(config: ImageClassifierConfig) -> nn.Module:
    """Build transformers' image classifier from its parts, as its own class is made for 224 x 224 x 3 alone."""
    from transformers.models.perceiver import modeling_perceiver as parts

    options = _transformers_config(config.encoder, num_labels=config.num_classes)
    height, width, channels = config.image_shape
    positions = {"concat_pos": True, "sine_only": False, "max_resolution": (height, width)}
    preprocessor = parts.PerceiverImagePreprocessor(
        options,
        prep_type="pixels",
        spatial_downsample=1,
        in_channels=channels,
        fourier_position_encoding_kwargs={**positions, "num_bands": config.num_frequency_bands},
    )
    decoder = parts.PerceiverClassificationDecoder(
        options,
        num_channels=options.d_latents,
        trainable_position_encoding_kwargs={"num_channels": options.d_latents, "index_dims": 1},
        use_query_residual=True,
    )
    return WithAttentionMask(parts.PerceiverModel(options, decoder=decoder, input_preprocessor=preprocessor))


_LUCIDRAINS_IO = f"{ONE_CROSS_ATTENTION}; {FEED_FORWARD}; no layers share weights"
_TRANSFORMERS = f"{ONE_CROSS_ATTENTION}; all blocks share their weights"

PEERS: dict[str, dict[str, Peer]] = {
    "mlm": {
        "perceiver-pytorch PerceiverLM": Peer(
            "perceiver-pytorch",
            perceiver_lm,
            f"{_LUCIDRAINS_IO}; the embedded tokens are its output queries",
        ),
        "transformers PerceiverForMaskedLM": Peer(
            "transformers",
            transformers_mlm,
            f"{_TRANSFORMERS}; its decoder has 8 heads of 32 query channels and no query residual, and is tied to the "
            "token embedding; it takes texts of the full length alone",
            padding="full",
        ),
    },
    "joint": {
        "perceiver-pytorch PerceiverIO": Peer(
            "perceiver-pytorch",
            perceiver_io,
            f"{_LUCIDRAINS_IO}; 4 decoder heads, no query residual",
            decoder=("model.model.decoder", "model.model.to_logits", "model.queries"),
        ),
        "perceiver-pytorch Perceiver": Peer(
            "perceiver-pytorch", perceiver, f"{FEED_FORWARD}; the mean of the latents is classified: it has no decoder"
        ),
        "transformers PerceiverForSequenceClassification": Peer(
            "transformers", transformers_text_classifier, _TRANSFORMERS, decoder=("model.perceiver.decoder",)
        ),
    },
    "images": {
        "perceiver-pytorch Perceiver": Peer(
            "perceiver-pytorch", perceiver, f"{FEED_FORWARD}; the mean of the latents is classified: it has no decoder"
        ),
        "transformers PerceiverModel": Peer("transformers", transformers_image_classifier, _TRANSFORMERS),
    },
}
PEERS["frozen"] = {name: peer for name, peer in PEERS["joint"].items() if peer.decoder}
PEERS["fills"] = PEERS["mlm"]
PEERS["classify"] = PEERS["images"]
