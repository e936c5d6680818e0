"""What the workers send each other in a training step, from the shapes of a model's parameters.

`ddp_step` is what torch's DistributedDataParallel does, `fsdp_step` what a model does that perceiver.sharding.shard
divided. Both are lists of collectives, which tests count in real steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from torch import nn

from perceiver.attention import SelfAttentionLayer
from perceiver.model import PerceiverIO, PerceiverMLM

Shape = tuple[int, ...]
Kind = Literal["all-reduce", "all-gather", "reduce-scatter"]
BYTES_PER_NUMBER = 4  # weights and gradients are float32, also where bf16-mixed computes with less
STEP_NUMBERS = 3  # loss, terms and signal, which the task adds up before the backward pass
_FIRST_BUCKET, _BUCKET = 2**20, 25 * 2**20  # bytes, torch's defaults


class Collective(NamedTuple):
    """One exchange among all workers.

    Attributes:
        kind: What is done.
        size: Bytes of the whole array, of which an all-gather's input and a reduce-scatter's output are parts.
    """

    kind: Kind
    size: int

    def sent(self, workers: int) -> float:
        """Return the bytes that each worker sends, and receives, along a ring."""
        rounds = 2 if self.kind == "all-reduce" else 1
        return rounds * (workers - 1) / workers * self.size


class LayerShapes(NamedTuple):
    """Shapes of a self-attention layer's parameters, and how often a forward pass uses the layer."""

    shapes: tuple[Shape, ...]
    uses: int


@dataclass(frozen=True)
class Layout:
    """Shapes of a model's parameters.

    Attributes:
        rest: Those outside of self-attention layers.
        layers: The self-attention layers.
    """

    rest: tuple[Shape, ...]
    layers: tuple[LayerShapes, ...]

    @property
    def shapes(self) -> tuple[Shape, ...]:
        """All shapes."""
        return (*self.rest, *(shape for layer in self.layers for shape in layer.shapes))

    @property
    def num_parameters(self) -> int:
        """Number of parameters."""
        return sum(map(math.prod, self.shapes))

    @property
    def layer_parameters(self) -> int:
        """Number of parameters in self-attention layers."""
        return self.num_parameters - sum(map(math.prod, self.rest))


class Step(NamedTuple):
    """The collectives of a step, by when they can begin.

    Attributes:
        first: Before the forward pass.
        forward: Beside the forward pass.
        between: Between the forward and the backward pass, which waits for them.
        backward: Beside the backward pass.
        last: After the backward pass.
    """

    first: list[Collective]
    forward: list[Collective]
    between: list[Collective]
    backward: list[Collective]
    last: list[Collective]

    @property
    def all(self) -> list[Collective]:
        """All of them."""
        return [collective for group in self for collective in group]

    def sent(self, workers: int) -> float:
        """Return the bytes that each worker sends in a step, and receives."""
        return sum(collective.sent(workers) for collective in self.all)


def layout_of(model: PerceiverIO | PerceiverMLM) -> Layout:
    """Return the shapes of a model that has not been divided."""
    encoder = model.encoder
    layers = []
    for block, uses in ((encoder.self_attention_1, 1), (encoder.self_attention_n, encoder.num_shared_layers)):
        if block is not None:
            layers += [LayerShapes(_shapes(layer), uses * block.num_repeats) for layer in block.layers]
    inside = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, SelfAttentionLayer)
        for parameter in module.parameters()
    }
    rest = tuple(tuple(p.shape) for p in model.parameters() if id(p) not in inside)
    return Layout(rest, tuple(layers))


def _shapes(module: nn.Module) -> tuple[Shape, ...]:
    return tuple(tuple(parameter.shape) for parameter in module.parameters())


def padded_numbers(shapes: Sequence[Shape], workers: int) -> int:
    """Return how many numbers are sent for parameters of which each worker has as many rows as any other.

    FSDP divides each parameter by its rows and fills up what has too few of them: a layer norm's 64 weights, divided
    among 1,024 workers, are sent as 1,024 numbers.
    """
    return sum(workers * math.ceil(shape[0] / workers) * math.prod(shape[1:]) for shape in shapes)


def ddp_step(layout: Layout, workers: int) -> Step:
    """Return what is exchanged where each worker has the whole model: the gradients, in buckets."""
    if workers == 1:
        return _nothing()
    buckets = [Collective("all-reduce", size) for size in _buckets(layout)]
    return Step([], [], [_step_numbers()], buckets[:-1], buckets[-1:])


def _buckets(layout: Layout) -> list[int]:
    """Return the bytes of DDP's buckets, which it fills from the last parameter to the first."""
    buckets, size = [], 0
    for shape in reversed(layout.shapes):
        size += BYTES_PER_NUMBER * math.prod(shape)
        if size >= (_BUCKET if buckets else _FIRST_BUCKET):
            buckets.append(size)
            size = 0
    return [*buckets, size] if size else buckets


def fsdp_step(layout: Layout, workers: int) -> Step:
    """Return what is exchanged where the workers share the model, its gradients and its optimizer.

    A layer is gathered each time that it is used, in the forward and again in the backward pass. Its gradient is sent
    once, also where it is used several times: autograd adds up the uses first.
    """
    return _nothing() if workers == 1 else _divided(layout, workers)


def _divided(layout: Layout, workers: int) -> Step:
    def whole(kind: Kind, shapes: Sequence[Shape]) -> Collective:
        return Collective(kind, BYTES_PER_NUMBER * padded_numbers(shapes, workers))

    gathers = [whole("all-gather", layer.shapes) for layer in layout.layers for _ in range(layer.uses)]
    gradients = [whole("reduce-scatter", layer.shapes) for layer in layout.layers]
    rest = layout.rest
    return Step(
        [whole("all-gather", rest)],
        gathers,
        [_step_numbers()],
        [*gathers, *gradients],
        [whole("reduce-scatter", rest)],
    )


def padding_share(layout: Layout, workers: int) -> float:
    """Return the share of padding in what FSDP sends."""
    needed, sent = (sum(c.size for c in _divided(layout, rows).all) for rows in (1, workers))
    return 1 - needed / sent


def _nothing() -> Step:
    return Step([], [], [], [], [])


def _step_numbers() -> Collective:
    return Collective("all-reduce", BYTES_PER_NUMBER * STEP_NUMBERS)


STRATEGIES: dict[str, Callable[[Layout, int], Step]] = {"ddp": ddp_step, "fsdp": fsdp_step}
"""By the names of `--scaling.strategy`."""
