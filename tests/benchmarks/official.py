"""The official size: Perceiver IO's language model on bytes (arXiv:2107.14795, sec. 4.1), 201 million parameters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import nn

from perceiver.adapter import TextInputAdapter, TextOutputAdapter
from perceiver.config import MaskedLanguageModelConfig, OptimizerConfig
from perceiver.model import PerceiverDecoder, PerceiverEncoder, PerceiverMLM, TextMasking
from tests.benchmarks.data import random_texts
from tests.benchmarks.floor import count_flops, matrix_rate
from tests.benchmarks.implementation import Implementation
from tests.benchmarks.job import count_tokens, time_batches, to_device
from tests.benchmarks.measure import Pass, measure
from tests.benchmarks.memory import peak_bytes, reset_peak, used_bytes
from tests.benchmarks.others import train_other
from tests.benchmarks.ours import train_ours
from tests.benchmarks.peers import FEED_FORWARD, WithAttentionMask, WithMask
from tests.benchmarks.processes import ask_once
from tests.benchmarks.settings import Settings, say
from tests.benchmarks.workloads import OURS, Workload

VOCAB_SIZE, NUM_BYTES, BATCH_SIZE = 262, 2048, 64
_LATENTS, _INPUT_CHANNELS = (256, 1280), 768
_LAYERS, _HEADS, _QK_CHANNELS = 26, 8, 256
_PEAK_FLOPS = (  # dense bf16, from the makers' data sheets; the first name that the device's contains counts
    ("H200", 989e12),
    ("H100 PCIe", 756e12),
    ("H100", 989e12),
    ("A100", 312e12),
)


def build_official() -> PerceiverMLM:
    """Build our model of the official size; its inputs have fewer channels than its latents."""
    adapter = TextInputAdapter(VOCAB_SIZE, NUM_BYTES, _INPUT_CHANNELS)
    _, latent_channels = _LATENTS
    encoder = PerceiverEncoder(
        adapter,
        _LATENTS,
        num_layers=1,
        num_cross_attention_heads=_HEADS,
        num_self_attention_heads=_HEADS,
        num_self_attention_layers_per_block=_LAYERS,
        num_cross_attention_qk_channels=_QK_CHANNELS,
        num_cross_attention_v_channels=latent_channels,
        num_self_attention_qk_channels=_QK_CHANNELS,
        num_self_attention_v_channels=latent_channels,
    )
    decoder = PerceiverDecoder(
        TextOutputAdapter(VOCAB_SIZE, NUM_BYTES, _INPUT_CHANNELS, embedding=adapter.embedding),
        _LATENTS,
        num_cross_attention_heads=_HEADS,
        num_cross_attention_qk_channels=_QK_CHANNELS,
        num_cross_attention_v_channels=_INPUT_CHANNELS,
        query_residual=False,
    )
    return PerceiverMLM(encoder, decoder, TextMasking(VOCAB_SIZE))


def build_transformers() -> nn.Module:
    """Build transformers' model, whose defaults are the official size but for the channels of queries and keys."""
    transformers = import_module("transformers")
    options = transformers.PerceiverConfig(
        qk_channels=_QK_CHANNELS, v_channels=_LATENTS[1], attention_probs_dropout_prob=0.0
    )
    return WithAttentionMask(transformers.PerceiverForMaskedLM(options))


def build_perceiver_pytorch() -> nn.Module:
    """Build perceiver-pytorch's model."""
    num_latents, latent_channels = _LATENTS
    model = import_module("perceiver_pytorch.perceiver_io").PerceiverLM(
        dim=_INPUT_CHANNELS,
        num_tokens=VOCAB_SIZE,
        max_seq_len=NUM_BYTES,
        depth=_LAYERS,
        num_latents=num_latents,
        latent_dim=latent_channels,
        cross_heads=_HEADS,
        cross_dim_head=_QK_CHANNELS // _HEADS,
        latent_heads=_HEADS,
        latent_dim_head=_QK_CHANNELS // _HEADS,
        decoder_ff=True,
    )
    return WithMask(model)


PEERS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "perceiver-pytorch PerceiverLM": (
        build_perceiver_pytorch,
        f"{FEED_FORWARD}, so it has far more parameters; values have as few channels as keys; output layer not tied",
    ),
    "transformers PerceiverForMaskedLM": (build_transformers, "the same architecture"),
}


def find_peak_flops(device_name: str) -> float | None:
    """Return the FLOP/s that a GPU can reach in bf16; None if it is not known."""
    return next((peak for name, peak in _PEAK_FLOPS if name in device_name), None)


def utilization(flops: float, seconds: float, peak: float) -> float:
    """Return the share of the device's FLOP/s that a step made use of.

    Args:
        flops: Operations of the step that the loss depends on.
        seconds: Time of the step.
        peak: FLOP/s that the device can reach.
    """
    return flops / seconds / peak


@dataclass(frozen=True)
class OfficialJob:
    """What one process measures.

    Attributes:
        implementation: Ours, or a name of PEERS.
        device: cpu or cuda.
        steps: Steps in a round.
    """

    implementation: str
    device: str
    steps: int


class OfficialServer:
    """Runs the rounds of a job; see tests.benchmarks.job.Server."""

    def __init__(self, job: OfficialJob) -> None:
        self.job = job
        torch.manual_seed(0)
        workload = Workload(
            "mlm",
            MaskedLanguageModelConfig(vocab_size=VOCAB_SIZE, max_seq_len=NUM_BYTES),
            OptimizerConfig(),
            BATCH_SIZE,
        )
        self.batches = [to_device(random_texts(workload), job.device)] * job.steps
        self.implementation = self._build(workload)
        self.resting_bytes = used_bytes(job.device)

    def _build(self, workload: Workload) -> Implementation:
        if self.job.implementation == OURS:
            return train_ours(build_official(), workload, self.job.device)
        build, _ = PEERS[self.job.implementation]
        return train_other(build().to(self.job.device), workload, self.job.device)

    def __call__(self, number: int) -> Pass:
        """Run a round."""
        device = self.job.device
        reset_peak(device)
        seconds = time_batches(self.implementation.work, self.batches, device)
        return Pass(
            seconds,
            len(self.batches),
            samples=BATCH_SIZE * len(self.batches),
            tokens=sum(map(count_tokens, self.batches)),
            peak_bytes=peak_bytes(device),
            resting_bytes=self.resting_bytes,
            parameters=self.implementation.num_parameters,
        )


class ArithmeticServer:
    """Counts the operations of our step, and finds out what the device can do, in a process of its own."""

    def __init__(self, device: str) -> None:
        self.device = device

    def __call__(self, request: None) -> dict[str, Any]:
        """Return flops of a step, peak (FLOP/s) and how that is known."""
        server = OfficialServer(OfficialJob(OURS, self.device, steps=1))
        flops = count_flops(server.implementation.work, server.batches[0])
        peak = find_peak_flops(torch.cuda.get_device_name()) if self.device == "cuda" else None
        source = "data sheet" if peak else "measured with large matrices"
        return {"flops": flops, "peak": peak or matrix_rate(self.device), "source": source}


def measure_official(settings: Settings) -> dict[str, Any]:
    """Time all implementations at the official size, and count our step's operations."""
    say("  official size")
    names = [OURS, *PEERS]
    jobs = {name: OfficialJob(name, settings.device, settings.batches) for name in names}
    rows = measure(OfficialServer, jobs, settings.rounds)
    return {"rows": rows, "batch_size": BATCH_SIZE, **ask_once(ArithmeticServer, settings.device)}
