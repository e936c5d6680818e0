"""The implementations that ours is compared with, run as their users run them."""

from __future__ import annotations

from importlib.util import find_spec

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from perceiver.config import MaskedLanguageModelConfig
from perceiver.data.tokenizer import MASK_TOKEN
from perceiver.inference import encode
from tests.benchmarks.implementation import Batch, Implementation, Padding, pad_fully, training_step, usual_adam
from tests.benchmarks.peers import PEERS, Peer
from tests.benchmarks.plain import build_plain, plain_loss
from tests.benchmarks.workloads import OURS, OURS_KEPT, PLAIN, PLAIN_FUSED, Workload

_IMAGES_PER_CALL = 64  # as many as perceiver.inference.Predictor takes at a time
_FILLS = 5


def implementations(workload: str) -> list[str]:
    """Return the names of the implementations of a workload, those whose package is there."""
    peers = [name for name, peer in PEERS[workload].items() if is_installed(peer)]
    ours = [OURS_KEPT, OURS] if workload == "frozen" else [OURS]
    return [*ours, PLAIN, PLAIN_FUSED, *peers]


def is_installed(peer: Peer) -> bool:
    """Tell whether a peer's package is there."""
    return find_spec(peer.package.replace("-", "_")) is not None


def build_other(name: str, workload: Workload, device: str, tokenizer: Tokenizer | None = None) -> Implementation:
    """Build another implementation of a workload with new weights.

    Args:
        name: One of those that `implementations` returns, other than ours.
        workload: What is to be done.
        device: cpu or cuda.
        tokenizer: Tokenizer of the texts, where there are texts rather than tokens.
    """
    if name in (PLAIN, PLAIN_FUSED):
        model: nn.Module = build_plain(workload.model, need_weights=name == PLAIN)
        padding: Padding = "longest"
        trained: tuple[str, ...] = ("decoder",)
    else:
        peer = PEERS[workload.name][name]
        model, padding, trained = peer.build(workload.model), peer.padding, peer.decoder
    model.to(device)
    if not workload.trains:
        return _inference(model.eval(), workload, padding, tokenizer)
    if workload.name == "frozen":
        freeze_all_but(model, trained)
    return train_other(model.train(), workload, device, padding)


def freeze_all_but(model: nn.Module, prefixes: tuple[str, ...]) -> None:
    """Let no parameter be trained but those whose name begins with one of the prefixes."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(prefixes))


def train_other(model: nn.Module, workload: Workload, device: str, padding: Padding = "longest") -> Implementation:
    """Make the training step that one usually writes: all logits, one cross-entropy, Adam."""

    def loss(batch: Batch) -> Tensor:
        x = batch["images"] if "images" in batch else batch["input_ids"]
        return plain_loss(model(x, batch.get("pad_mask")), batch["labels"])

    optimizer = usual_adam(model, workload.optimizer)
    return Implementation(model, training_step(loss, optimizer, device), padding=padding)


def _inference(model: nn.Module, workload: Workload, padding: Padding, tokenizer: Tokenizer | None) -> Implementation:
    parameter = next(model.parameters())

    def work(batch: Batch) -> object:
        with torch.no_grad(), torch.autocast("cuda", torch.bfloat16, enabled=parameter.is_cuda):
            if "texts" in batch:
                assert tokenizer is not None
                return _fill(model, workload, padding, tokenizer, batch["texts"])
            images = torch.as_tensor(batch["images"]).to(parameter.device)
            return [model(chunk).float().softmax(dim=-1).tolist() for chunk in images.split(_IMAGES_PER_CALL)]

    return Implementation(model, work, padding=padding)


def _fill(
    model: nn.Module, workload: Workload, padding: Padding, tokenizer: Tokenizer, texts: list[str]
) -> list[list[str | None]]:
    """Return the best fills of each mask: the logits of all positions, and of these the masked ones."""
    assert isinstance(workload.model, MaskedLanguageModelConfig)
    input_ids, pad_mask = encode(tokenizer, texts, workload.model.max_seq_len)
    batch: Batch = {"input_ids": input_ids, "pad_mask": pad_mask, "labels": input_ids}
    if padding == "full":
        batch = pad_fully(batch, workload.model.max_seq_len)
    device = next(model.parameters()).device
    logits = model(batch["input_ids"].to(device), batch["pad_mask"].to(device))
    is_mask = batch["input_ids"].to(device) == tokenizer.token_to_id(MASK_TOKEN)
    best = logits[is_mask].float().softmax(dim=-1).topk(_FILLS)
    return [[tokenizer.id_to_token(token) for token in row] for row in best.indices.tolist()]
