"""Counting of operations, the floor, utilization, and the official size, without a clock that matters."""

import pytest
import torch

from tests.benchmarks.data import random_images, random_texts
from tests.benchmarks.floor import Floor, count_flops, matrix_rate, needed_loss
from tests.benchmarks.official import build_official, build_transformers, find_peak_flops, utilization
from tests.benchmarks.others import build_other
from tests.benchmarks.ours import build_ours
from tests.benchmarks.plain import build_plain, plain_loss
from tests.benchmarks.workloads import PLAIN, find_workload


def test_floor_takes_the_smaller_count() -> None:
    assert Floor(needed=200.0, executed=300.0, rate=100.0).seconds == 2.0
    assert Floor(needed=400.0, executed=300.0, rate=100.0).multiple(6.0) == 2.0


def test_products_are_counted_also_those_that_add_to_an_array() -> None:
    a, b, total = torch.randn(3, 4), torch.randn(4, 5), torch.zeros(3, 5)
    assert count_flops(torch.mm, a, b) == 2 * 3 * 4 * 5
    assert count_flops(total.addmm_, a, b) == 2 * 3 * 4 * 5
    assert count_flops(total[None].baddbmm_, a[None], b[None]) == 2 * 3 * 4 * 5
    q, kv = torch.randn(1, 2, 3, 4), torch.randn(1, 2, 6, 4)
    attend = torch.nn.functional.scaled_dot_product_attention
    assert count_flops(attend, q, kv, kv) == 2 * (2 * 2 * 3 * 4 * 6)


def test_masked_positions_need_fewer_operations_for_the_same_loss() -> None:
    workload = find_workload("mlm", "tiny")
    model, batch = build_plain(workload.model), random_texts(workload)
    needed = needed_loss(model, batch)
    full = plain_loss(model(batch["input_ids"], batch["pad_mask"]), batch["labels"])
    torch.testing.assert_close(needed, full)
    count = count_flops(lambda: needed_loss(model, batch).backward())
    assert count < 0.8 * count_flops(build_other(PLAIN, workload, "cpu").work, batch)


def test_our_step_executes_about_what_is_needed() -> None:
    workload = find_workload("images", "tiny")
    model, batch = build_plain(workload.model), random_images(workload)
    needed = count_flops(lambda: needed_loss(model, batch).backward())
    assert 0.1 < count_flops(build_ours(workload, "cpu").work, batch) / needed < 2


def test_rate_is_positive() -> None:
    assert matrix_rate("cpu", size=32) > 0


def test_official_size_has_201_million_parameters() -> None:
    with torch.device("meta"):
        ours = build_official()
    count = sum(p.numel() for p in ours.parameters())
    assert count == pytest.approx(201.1e6, rel=1e-3)
    pytest.importorskip("transformers", reason="make bench installs it")
    with torch.device("meta"):
        theirs = build_transformers()
    assert sum(p.numel() for p in theirs.parameters()) == pytest.approx(count, rel=1e-3)


def test_utilization() -> None:
    assert utilization(flops=4.45e12, seconds=0.01, peak=989e12) == pytest.approx(0.45, rel=1e-3)
    assert find_peak_flops("NVIDIA H100 80GB HBM3") == find_peak_flops("NVIDIA H200") == 989e12
    assert find_peak_flops("NVIDIA A100-SXM4-40GB") == 312e12
    assert find_peak_flops("a GPU of next year") is None
