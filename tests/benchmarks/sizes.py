"""Three sizes of the masked language model, and what their training steps consist of, counted without computing any."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from perceiver.build import build_model
from perceiver.config import DecoderConfig, EncoderConfig, MaskedLanguageModelConfig, OptimizerConfig
from perceiver.loss import CHUNK_ELEMENTS
from perceiver.masking import Selection
from perceiver.model import PerceiverMLM
from perceiver.optim import build_optimizer
from tests.benchmarks.data import random_texts
from tests.benchmarks.floor import IN_PLACE
from tests.benchmarks.implementation import Batch
from tests.benchmarks.official import NUM_BYTES, VOCAB_SIZE, build_official
from tests.benchmarks.prediction import Work
from tests.benchmarks.traffic import layout_of
from tests.benchmarks.workloads import Workload, find_workload

_NOT_COMPUTED = ("aten::_unsafe_view", "aten::detach")


@dataclass(frozen=True)
class Size:
    """A masked language model of one size.

    Attributes:
        shape: What it looks like.
        workload: Its batch and vocabulary; for the official size, not its shape.
        build: Makes it.
        cpu_batch_size: Texts of a step that is timed on a CPU.
        cpu_steps: Steps of a round there.
    """

    shape: str
    workload: Workload
    build: Callable[[], PerceiverMLM]
    cpu_batch_size: int
    cpu_steps: int


def _build(config: MaskedLanguageModelConfig) -> Callable[[], PerceiverMLM]:
    def build() -> PerceiverMLM:
        model = build_model(config)
        assert isinstance(model, PerceiverMLM)
        return model

    return build


def sizes() -> dict[str, Size]:
    """Return the sizes by name, the smallest first."""
    default = find_workload("mlm")
    assert isinstance(default.model, MaskedLanguageModelConfig)
    encoder = EncoderConfig(
        num_latents=128,
        num_latent_channels=512,
        num_self_attention_layers_per_block=5,
        num_cross_attention_heads=8,
        num_self_attention_heads=8,
    )
    middle = replace(default.model, encoder=encoder, decoder=DecoderConfig(num_cross_attention_heads=8))
    official = MaskedLanguageModelConfig(vocab_size=VOCAB_SIZE, max_seq_len=NUM_BYTES)
    return {
        "1.7 M": Size("the default: 64 latents of 64 channels, 3 layers of 6", default, _build(default.model), 64, 5),
        "31 M": Size(
            "128 latents of 512 channels, 3 layers of 5, 8 heads; else the default",
            replace(default, model=middle), _build(middle), 8, 2,
        ),
        "201 M": Size(
            "deepmind/language-perceiver: 256 latents of 1,280 channels, 1 layer of 26, on bytes",
            Workload("mlm", official, OptimizerConfig(), default.batch_size), build_official, 2, 1,
        ),
    }  # fmt: skip


class CountOperations(TorchDispatchMode):
    """Counts operations that compute something, which views and empty arrays don't, and the bytes that they touch."""

    def __init__(self) -> None:
        super().__init__()
        self.count = self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name
        is_view = any(value.alias_info and not value.alias_info.is_write for value in func._schema.returns)
        result = func(*args, **(kwargs or {}))
        if name.startswith("aten::") and not is_view and name not in _NOT_COMPUTED and "empty" not in name:
            self.count += 1
            arrays = [value for value in tree_leaves((args, kwargs, result)) if isinstance(value, Tensor)]
            self.bytes += sum({id(array): array.nbytes for array in arrays}.values())
        return result


def count_work(build: Callable[[], PerceiverMLM], workload: Workload) -> Work:
    """Count what a step consists of as a GPU computes it: in bf16-mixed, attention in one kernel, the loss in one part.

    Arrays have shapes and no content, so that it takes seconds and no memory at any size.
    """
    torch.manual_seed(0)
    batch = random_texts(workload)
    with (
        FakeTensorMode() as fake,
        mock.patch.dict(CHUNK_ELEMENTS, cpu=CHUNK_ELEMENTS["cuda"]),
        mock.patch.object(F, "scaled_dot_product_attention", _one_kernel),
    ):
        model = build()
        step = _step(model, workload, {name: fake.from_tensor(value) for name, value in batch.items()})
        step()
        with CountOperations() as operations:
            step()
        with FlopCounterMode(display=False, custom_mapping=IN_PLACE) as flops:
            step()
    batch_size = workload.batch_size
    total_flops = flops.get_total_flops()
    return Work(layout_of(model), total_flops / batch_size, operations.bytes / batch_size, operations.count)


def _step(model: PerceiverMLM, workload: Workload, batch: Batch) -> Callable[[], None]:
    optimizer = build_optimizer(model, workload.optimizer)
    selection = Selection(batch["label_indices"], batch["label_places"])

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            decoded, labels = model.decode_masked(batch["input_ids"], batch["labels"], batch["pad_mask"], selection)
            loss = model.decoder.output_adapter.cross_entropy(decoded, labels) / len(labels)
        loss.backward()
        optimizer.step()

    return step


def _one_kernel(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None, dropout_p: float) -> Tensor:
    """Attend by the kernel that a GPU has for all shapes."""
    bias = None if attn_mask is None else torch.zeros_like(attn_mask, dtype=q.dtype).expand(*q.shape[:3], k.shape[2])
    attended: Tensor = torch.ops.aten._scaled_dot_product_efficient_attention(q, k, v, bias, True, dropout_p)[0]
    return attended
