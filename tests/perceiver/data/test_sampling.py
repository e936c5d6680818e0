import itertools
from dataclasses import replace

import numpy as np
import pytest

from perceiver.data.sampling import (
    GlobalBatchSampler,
    Index,
    Loading,
    PartSampler,
    epoch_batches,
    evaluation_batches,
)
from perceiver.random import Stream, generator

NUM_SAMPLES = 103
LENGTHS = generator(0, Stream.ORDER).integers(10, 512, size=5000)


def passes(sampler: GlobalBatchSampler, *epochs: int) -> list[list[list[Index]]]:
    """Run passes over the given epochs as Lightning does: the first iterator is made before set_epoch is called."""
    result = []
    iterator = iter(sampler)
    for number, epoch in enumerate(epochs):
        sampler.sampler.set_epoch(epoch)
        if number > 0:
            iterator = iter(sampler)
        result.append(list(iterator))
    return result


def merge(*ranks: list[list[Index]]) -> list[list[Index]]:
    """Put the rows of all ranks back into global batches."""
    batches = []
    for parts in zip(*ranks, strict=True):
        rows = itertools.chain(*itertools.zip_longest(*parts))
        batches.append([row for row in rows if row is not None])
    return batches


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize(("num_samples", "batch_size"), [(103, 8), (96, 8), (5, 8), (7, 2), (1, 3)])
def test_each_pass_visits_each_sample_once(num_samples: int, batch_size: int, world_size: int, shuffle: bool) -> None:
    seen: list[int] = []
    for rank in range(world_size):
        loading = Loading(batch_size, seed=1, rank=rank, world_size=world_size)
        sampler = GlobalBatchSampler(num_samples, loading, shuffle, LENGTHS[:num_samples], pool=3)
        batches = list(sampler)
        assert len(batches) == len(sampler) == -(-num_samples // batch_size)
        seen += [index.sample for batch in batches for index in batch]
    assert sorted(seen) == list(range(num_samples))


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("world_size", [2, 3])
def test_global_batches_do_not_depend_on_the_number_of_workers(world_size: int, shuffle: bool) -> None:
    loading = Loading(batch_size=8, seed=1)
    lengths = LENGTHS[:NUM_SAMPLES]
    alone = list(GlobalBatchSampler(NUM_SAMPLES, loading, shuffle, lengths, 4))
    ranks = [replace(loading, rank=rank, world_size=world_size) for rank in range(world_size)]
    parts = [list(GlobalBatchSampler(NUM_SAMPLES, rank, shuffle, lengths, 4)) for rank in ranks]
    assert merge(*parts) == alone


def test_rows_of_a_batch_are_shared_evenly_and_a_rank_may_get_none() -> None:
    ranks = [Loading(batch_size=4, seed=0, rank=rank, world_size=3) for rank in range(3)]
    sizes = [[len(batch) for batch in GlobalBatchSampler(9, loading)] for loading in ranks]
    assert sizes == [[2, 2, 1], [1, 1, 0], [1, 1, 0]]


def test_parts_are_even_and_as_many_on_all_ranks() -> None:
    ranks = [Loading(8, seed=1, rank=rank, world_size=3, micro_batch_size=2) for rank in range(3)]
    whole = [GlobalBatchSampler(17, replace(loading, micro_batch_size=None)) for loading in ranks]
    parts = [PartSampler(GlobalBatchSampler(17, loading)) for loading in ranks]
    sizes = [[[len(part) for part in batch] for batch in sampler] for sampler in parts]
    assert sizes == [[[1, 2], [1, 2], [1]], [[1, 2], [1, 2], [0]], [[1, 1], [1, 1], [0]]]
    for ours, theirs in zip(parts, whole, strict=True):
        assert len(ours) == len(theirs)
        assert [list(itertools.chain(*batch)) for batch in ours] == list(theirs)


def test_parts_of_a_pass_begin_where_a_resumed_run_begins() -> None:
    sampler = PartSampler(GlobalBatchSampler(16, Loading(8, seed=1, micro_batch_size=3, start_epoch=2, start_step=1)))
    sampler.sampler.set_epoch(2)
    whole = GlobalBatchSampler(16, Loading(8, seed=1))
    whole.set_epoch(2)
    assert [list(itertools.chain(*batch)) for batch in sampler] == list(whole)[1:]


@pytest.mark.parametrize(("epoch", "step"), [(0, 0), (0, 5), (2, 0), (2, 5), (2, 12)])
def test_resumed_run_yields_exactly_the_rest(epoch: int, step: int) -> None:
    lengths = LENGTHS[:NUM_SAMPLES]
    whole = passes(GlobalBatchSampler(NUM_SAMPLES, Loading(8, seed=1), True, lengths, 4), *range(5))
    loading = Loading(8, seed=1, start_epoch=epoch, start_step=step)
    sampler = GlobalBatchSampler(NUM_SAMPLES, loading, True, lengths, 4)
    rest = passes(sampler, *range(epoch, 5))
    assert len(sampler) == 13
    assert rest == [whole[epoch][step:], *whole[epoch + 1 :]]


def test_run_saved_after_the_last_step_of_an_epoch_goes_on_with_the_next() -> None:
    whole = passes(GlobalBatchSampler(16, Loading(8, seed=1)), 0, 1, 2)
    sampler = GlobalBatchSampler(16, Loading(8, seed=1, start_epoch=0, start_step=2))
    assert passes(sampler, 1, 2) == whole[1:]


def test_iterator_made_before_set_epoch_may_be_read_before_or_after_it() -> None:
    # Loader processes read ahead at once; without them nothing is read before the first step.
    early = GlobalBatchSampler(16, Loading(8, seed=1, start_epoch=3, start_step=1))
    iterator = iter(early)
    first = next(iterator)
    early.set_epoch(3)
    late = GlobalBatchSampler(16, Loading(8, seed=1, start_epoch=3, start_step=1))
    assert [first, *iterator] == passes(late, 3)[0]


def test_indices_carry_the_epoch_and_orders_differ_between_epochs_and_seeds() -> None:
    first, second = passes(GlobalBatchSampler(NUM_SAMPLES, Loading(8, seed=1)), 0, 1)
    (other,) = passes(GlobalBatchSampler(NUM_SAMPLES, Loading(8, seed=2)), 0)
    assert {index.epoch for batch in first for index in batch} == {0}
    assert {index.epoch for batch in second for index in batch} == {1}
    orders = [[index.sample for batch in batches for index in batch] for batches in (first, second, other)]
    for one, two in itertools.combinations(orders, 2):
        assert np.mean(np.array(one) == np.array(two)) < 0.1


def test_evaluation_passes_are_all_alike_and_start_at_the_beginning() -> None:
    loading = Loading(8, seed=1, start_epoch=2, start_step=3, eval_batch_size=10)
    sampler = GlobalBatchSampler(NUM_SAMPLES, loading, shuffle=False, lengths=LENGTHS[:NUM_SAMPLES])
    first, second = passes(sampler, 0, 5)
    assert first == second
    assert [len(batch) for batch in first] == [10] * 10 + [3]
    assert {index.epoch for batch in first for index in batch} == {0}


def padding(batches: list[np.ndarray]) -> int:
    return sum(int((LENGTHS[batch].max() - LENGTHS[batch]).sum()) for batch in batches)


def test_pools_of_batches_need_far_less_padding() -> None:
    plain = epoch_batches(5000, 32, 0, 0)
    pooled = epoch_batches(5000, 32, 0, 0, LENGTHS, pool=20)
    assert padding(plain) > 10 * padding(pooled)
    assert padding(evaluation_batches(5000, 32, LENGTHS)) < padding(pooled)
    assert [len(batch) for batch in sorted(pooled, key=len)] == [8] + [32] * 156
    np.testing.assert_array_equal(np.sort(np.concatenate(pooled)), np.arange(5000))


def test_lengths_of_neighbouring_batches_are_unrelated() -> None:
    means = np.array([LENGTHS[batch].mean() for batch in epoch_batches(5000, 10, 0, 0, LENGTHS, pool=50)])
    assert abs(np.corrcoef(means[:-1], means[1:])[0, 1]) < 0.2


def test_a_pool_of_one_batch_is_not_sorted() -> None:
    pooled = epoch_batches(100, 8, 0, 0, LENGTHS[:100], pool=1)
    plain = epoch_batches(100, 8, 0, 0)
    np.testing.assert_array_equal(np.concatenate(pooled), np.concatenate(plain))


def test_order_is_pinned() -> None:
    # A change here changes the results of every run.
    assert [batch.tolist() for batch in epoch_batches(8, 3, 0, 1, LENGTHS[:8], pool=2)] == [
        [2, 3, 5],
        [0, 4],
        [7, 1, 6],
    ]
