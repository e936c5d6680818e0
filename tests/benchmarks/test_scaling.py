"""What workers send each other, counted in real steps, and what is predicted of many."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from perceiver.build import build_model
from perceiver.config import EncoderConfig, MaskedLanguageModelConfig
from perceiver.model import PerceiverMLM
from perceiver.sharding import whole
from tests.benchmarks import scaling, scaling_tables
from tests.benchmarks.measure import Pass
from tests.benchmarks.prediction import (
    H100,
    L4,
    Machine,
    Work,
    compute_seconds,
    predict,
    samples_for,
    speed_up,
    weak_efficiency,
)
from tests.benchmarks.sizes import CountOperations, count_work, sizes
from tests.benchmarks.team import Team, TeamJob, Worker
from tests.benchmarks.traffic import (
    STRATEGIES,
    Collective,
    LayerShapes,
    Layout,
    ddp_step,
    fsdp_step,
    layout_of,
    padded_numbers,
    padding_share,
)
from tests.benchmarks.workloads import find_workload
from tests.distributed import run_distributed

KINDS = {"allreduce_": "all-reduce", "_allgather_base_": "all-gather", "_reduce_scatter_base_": "reduce-scatter"}
LAYOUT = Layout(rest=((10, 4), (4,)), layers=(LayerShapes(((8, 4), (8,)), uses=1), LayerShapes(((8, 4),), uses=3)))
WORK = Work(LAYOUT, flops_per_sample=1e12, bytes_per_sample=1e9, operations=1000)


class CountCollectives(TorchDispatchMode):
    """Notes kind and bytes of each collective."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[Collective] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            arrays = [a for arg in args for a in (arg if isinstance(arg, list) else [arg]) if isinstance(a, Tensor)]
            kind: Any = KINDS[func._schema.name.removeprefix("c10d::")]
            self.found.append(Collective(kind, max(array.nbytes for array in arrays)))
        return func(*args, **(kwargs or {}))


def train(strategy: str, workers: int, rank: int = 0) -> tuple[list[Collective], np.ndarray]:
    """Train three steps; return the collectives of the last and its gradients."""
    worker = Worker(TeamJob(strategy, workers, threads=1, steps=1, size="tiny"), rank)
    for _ in range(2):  # DDP arranges its buckets anew before the second
        worker.step()
    with CountCollectives() as counter:
        worker.step()
    gradients = whole([parameter.grad for parameter in worker.model.parameters()])
    return counter.found, torch.cat([g.flatten() for g in gradients]).numpy().copy()


def train_both_ways() -> list[tuple[list[Collective], np.ndarray]]:
    torch.distributed.init_process_group("gloo")
    rank, workers = torch.distributed.get_rank(), torch.distributed.get_world_size()
    return [train(strategy, workers, rank) for strategy in STRATEGIES]


@pytest.fixture(scope="module")
def tiny_layout() -> Layout:
    model = build_model(find_workload("mlm", "tiny").model)
    assert isinstance(model, PerceiverMLM)
    return layout_of(model)


@pytest.mark.parametrize("workers", [2, 3])
def test_real_steps_send_what_is_calculated(tiny_layout: Layout, workers: int) -> None:
    """Three workers divide nothing evenly, so that the padding counts; layers 2 and 3 share their weights."""
    assert {layer.uses for layer in tiny_layout.layers} == {1, 2}
    _, alone = train("ddp", 1)
    for of_rank in run_distributed(train_both_ways, workers):
        for strategy, (found, gradients) in zip(STRATEGIES, of_rank, strict=True):
            assert Counter(found) == Counter(STRATEGIES[strategy](tiny_layout, workers).all)
            tolerance = 1e-4 * np.abs(alone).max()
            np.testing.assert_allclose(gradients, alone, rtol=1e-3, atol=tolerance)


def test_rings() -> None:
    assert Collective("all-reduce", 100).sent(4) == 150
    assert Collective("all-gather", 100).sent(4) == Collective("reduce-scatter", 100).sent(4) == 75


def test_ddp_sends_the_gradients_once_around_a_ring_and_back() -> None:
    num_bytes = 4 * LAYOUT.num_parameters
    assert LAYOUT.num_parameters == 44 + 40 + 32
    assert LAYOUT.layer_parameters == 72
    assert ddp_step(LAYOUT, 8).sent(8) == pytest.approx(2 * 7 / 8 * (num_bytes + 3 * 4))


def test_fsdp_gathers_a_layer_for_each_use_and_sends_its_gradient_once() -> None:
    step = fsdp_step(LAYOUT, 2)
    gathered = 44 + 2 * (40 + 3 * 32)  # in the forward pass and again in the backward pass
    assert sum(c.size for c in step.all if c.kind == "all-gather") == 4 * gathered
    assert sum(c.size for c in step.all if c.kind == "reduce-scatter") == 4 * (44 + 40 + 32)
    assert step.sent(2) == pytest.approx(0.5 * 4 * (gathered + 116) + 3 * 4)


def test_one_worker_sends_nothing() -> None:
    assert all(make(LAYOUT, 1).sent(1) == 0 for make in STRATEGIES.values())


def test_padding_fills_up_rows() -> None:
    assert padded_numbers([(10, 4)], 2) == 40
    assert padded_numbers([(10, 4)], 3) == 3 * 4 * 4
    assert padded_numbers([(64,), (64, 64)], 1024) == 1024 * (1 + 64)
    assert padding_share(LAYOUT, 2) == 0
    assert 0.8 < padding_share(LAYOUT, 128) < 1


def test_large_models_have_buckets_of_25_mebibytes() -> None:
    layout = Layout(rest=((2**20, 1),) * 60, layers=())  # 4 MiB each
    sizes = [c.size for c in [*ddp_step(layout, 2).backward, *ddp_step(layout, 2).last]]
    assert [size / 2**20 for size in sizes] == [4, *[28] * 8, 12]
    assert sum(sizes) == 4 * layout.num_parameters


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("machine", [H100, L4], ids=["H100", "L4"])
def test_limits_of_the_prediction(machine: Machine, strategy: str) -> None:
    instant = replace(machine, inside=math.inf, between=math.inf, start=0.0, hop_inside=0.0, hop_between=0.0)
    assert weak_efficiency(WORK, instant, strategy, 1024, 1) == 1
    assert weak_efficiency(WORK, machine, strategy, 1, 64) == 1
    assert speed_up(WORK, machine, strategy, 1, 64) == 1
    efficiencies = [weak_efficiency(WORK, machine, strategy, 2**power, 64) for power in range(11)]
    assert efficiencies == sorted(efficiencies, reverse=True)
    assert 0 < efficiencies[-1] < 1


def test_a_slower_network_or_less_work_makes_the_gpus_wait() -> None:
    slow = replace(L4, between=L4.between / 10)
    assert weak_efficiency(WORK, slow, "ddp", 64, 64) < weak_efficiency(WORK, L4, "ddp", 64, 64)
    assert weak_efficiency(WORK, L4, "ddp", 64, 1) < weak_efficiency(WORK, L4, "ddp", 64, 64)
    samples = samples_for(WORK, L4, "fsdp", 64, 0.9)
    assert weak_efficiency(WORK, L4, "fsdp", 64, samples) >= 0.9 > weak_efficiency(WORK, L4, "fsdp", 64, samples // 2)


def test_a_step_is_never_shorter_than_its_launches() -> None:
    assert compute_seconds(WORK, H100, 1) == 1000 * H100.launch
    assert compute_seconds(WORK, H100, 6400) == pytest.approx(6400e12 / (989e12 * 0.4))
    assert compute_seconds(replace(WORK, flops_per_sample=0.0), H100, 6400) == pytest.approx(6400e9 / H100.memory)
    assert predict(WORK, H100, "ddp", 1, 1) == compute_seconds(WORK, H100, 1)


def test_no_more_gpus_work_than_the_batch_has_samples() -> None:
    assert speed_up(WORK, H100, "ddp", 1024, 64) == speed_up(WORK, H100, "ddp", 64, 64)


def test_operations_are_counted_without_views() -> None:
    a = torch.ones(4, 4)
    with CountOperations() as counter:
        (a.T @ a).view(16).add_(1)
    assert counter.count == 2
    assert counter.bytes == 64 * (2 + 1) + 64  # a, though its transpose and itself are read, has 64 bytes each


def test_work_is_in_proportion_to_the_batch() -> None:
    workload = find_workload("mlm", "tiny")
    assert isinstance(workload.model, MaskedLanguageModelConfig)

    def build() -> PerceiverMLM:
        model = build_model(workload.model)
        assert isinstance(model, PerceiverMLM)
        return model

    small, large = (count_work(build, replace(workload, batch_size=size)) for size in (32, 64))
    assert small.operations == large.operations > 100
    assert small.flops_per_sample == pytest.approx(large.flops_per_sample, rel=0.1)


def test_sizes_have_the_parameters_in_their_names() -> None:
    known = sizes()
    for name, size in known.items():
        with torch.device("meta"):
            count = sum(parameter.numel() for parameter in size.build().parameters())
        assert f"{count / 1e6:.2g} M" == name or f"{count / 1e6:.0f} M" == name
    assert isinstance(known["31 M"].workload.model, MaskedLanguageModelConfig)
    assert isinstance(known["31 M"].workload.model.encoder, EncoderConfig)


def test_a_team_runs_rounds() -> None:
    team = Team(TeamJob("fsdp", workers=2, threads=1, steps=2, size="tiny"))
    try:
        for number in range(2):
            done = team.ask(number)
    finally:
        team.close()
    assert isinstance(done, Pass)
    assert (done.steps, done.samples) == (2, 2 * find_workload("mlm", "tiny").batch_size)


def test_tables_have_a_row_for_each_model_and_strategy() -> None:
    works = {"a": WORK, "b": WORK}
    assert scaling_tables.traffic_table(works).count("\n") == 1 + 2 * len(scaling_tables.GPUS)
    for table in (scaling_tables.weak_table, scaling_tables.strong_table, scaling_tables.goal_table):
        assert table(works).count("\n") == 1 + 2 * 2
    assert "g6.2xlarge" in scaling_tables.assumption_table()
    with pytest.raises(SystemExit):
        scaling.parse(["--rounds", "0"])
