import numpy as np
import pytest
import torch

from perceiver.random import Stream, generator, permutation, step_seed, uniform

KEY = (7, Stream.MASK, 3)


def test_draws_do_not_depend_on_order_or_shape() -> None:
    table = uniform(KEY, np.arange(50)[:, None], np.arange(20))
    rows = np.array([31, 4, 4, 0])
    columns = np.arange(20)[::-1]
    assert table.shape == (50, 20)
    assert table.dtype == np.float32
    np.testing.assert_array_equal(uniform(KEY, rows[:, None], columns), table[rows][:, columns])
    np.testing.assert_array_equal(uniform(KEY, 31, 5), table[31, 5])


def test_pinned_values() -> None:
    # A change here changes the results of every run.
    assert [int(stream) for stream in Stream] == list(range(1, len(Stream) + 1))
    np.testing.assert_array_equal(
        uniform((0, Stream.MASK, 0), np.arange(3)), [0.944058358669281, 0.8185664415359497, 0.8700072765350342]
    )
    np.testing.assert_array_equal(uniform((2**63, 2**64 - 1), 2**40, [5]), [0.8614506125450134])
    assert permutation((0, Stream.ORDER, 0), 8).tolist() == [7, 0, 2, 3, 1, 5, 4, 6]
    assert step_seed(0, 0, 0) == 603734118470344626
    assert generator(0, Stream.CROP).integers(1000, size=3).tolist() == [830, 363, 969]


def draws_along(position: int) -> np.ndarray:
    """Draw with one of (seed, stream, epoch, sample, position) counting up and the others held."""
    key = [3, 3, 3]
    if position < len(key):
        keys = [[*key[:position], number, *key[position + 1 :]] for number in range(5_000)]
        return np.array([uniform(key, 3, 3) for key in keys])
    count = np.arange(5_000)
    return uniform(key, count, 3) if position == len(key) else uniform(key, 3, count)


@pytest.mark.parametrize("position", range(5))
def test_draws_are_uniform_and_uncorrelated_along_each_part_of_key_and_counters(position: int) -> None:
    draws = draws_along(position)
    size = len(draws)
    assert draws.min() >= 0
    assert draws.max() < 1
    assert abs(draws.mean() - 0.5) < 5 * np.sqrt(1 / 12 / size)
    assert abs(draws.var() - 1 / 12) < 5 * np.sqrt(1 / 180 / size)
    counts = np.histogram(draws, bins=50, range=(0, 1))[0]
    chi_square = ((counts - size / 50) ** 2 / (size / 50)).sum()
    assert chi_square < 49 + 5 * np.sqrt(2 * 49)
    for lag in (1, 2, 64, 512):
        assert abs(np.corrcoef(draws[:-lag], draws[lag:])[0, 1]) < 5 / np.sqrt(size)


def correlations_between_rows(table: np.ndarray) -> np.ndarray:
    return np.asarray(np.corrcoef(table))[~np.eye(len(table), dtype=bool)]


def test_a_grid_of_draws_has_no_correlated_rows_or_columns() -> None:
    grid = uniform(KEY, np.arange(400)[:, None], np.arange(400))
    for table in (grid, grid.T):
        correlations = correlations_between_rows(table)
        assert abs(correlations).max() < 7 / np.sqrt(400)
        assert abs(correlations.std() - 1 / np.sqrt(400)) < 0.001


def test_keys_that_look_alike_draw_different_numbers() -> None:
    counters = np.arange(100)
    streams = [uniform((0, stream, 0), counters) for stream in Stream]
    variants = [
        uniform((1, Stream.MASK, 0), counters),
        uniform((0, Stream.MASK, 1), counters),
        uniform((0, Stream.MASK), 0, counters),
        uniform((0, Stream.MASK), counters),
        uniform((0, Stream.MASK), counters, 0),
    ]
    draws = np.stack(streams + variants)
    assert len(np.unique(draws[:, 1])) == len(draws)
    assert abs(correlations_between_rows(draws)).max() < 0.5


def test_permutation_holds_each_number_once_and_puts_each_anywhere() -> None:
    orders = np.array([permutation((seed, Stream.ORDER, 0), 10) for seed in range(2000)])
    assert (np.sort(orders, axis=1) == np.arange(10)).all()
    counts = np.array([np.bincount(orders[:, place], minlength=10) for place in range(10)])
    assert abs(counts - 200).max() < 5 * np.sqrt(200)
    assert permutation(KEY, 0).tolist() == []


def test_generator_depends_on_its_key_alone() -> None:
    first, again, other = generator(1, 2), generator(1, 2), generator(2, 1)
    draws = first.normal(size=1000)
    np.testing.assert_array_equal(again.normal(size=1000), draws)
    assert abs(np.corrcoef(draws, other.normal(size=1000))[0, 1]) < 0.2


def test_step_seeds_differ_and_fit_torch() -> None:
    seeds = {step_seed(seed, step, rank) for seed in range(5) for step in range(200) for rank in range(4)}
    assert len(seeds) == 5 * 200 * 4
    assert min(seeds) >= 0
    assert max(seeds) < 2**63
    torch.Generator().manual_seed(max(seeds))
