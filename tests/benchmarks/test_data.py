"""Rounds: the same samples for everybody, from the shortest to the longest."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.benchmarks.data import pick_batches, round_samples, write_rounds
from tests.benchmarks.job import Job, Server, read_rounds
from tests.benchmarks.others import implementations
from tests.benchmarks.settings import Settings
from tests.benchmarks.workloads import OURS, OURS_KEPT, PLAIN, PLAIN_FUSED, WORKLOADS, find_workload, max_seq_len


def test_batches_are_picked_from_short_to_long_in_their_order() -> None:
    lengths = np.array([5, 1, 4, 2, 3, 6])
    batches = [np.array([i]) for i in range(6)]
    assert [batch.item() for batch in pick_batches(batches, lengths, 3)] == [0, 1, 4]  # lengths 5, 1 and 3


def test_everybody_gets_the_same_reviews_in_a_round() -> None:
    workload = replace(find_workload("mlm", "tiny"), batch_size=4)
    lengths = np.random.default_rng(0).integers(1, 100, 200)
    rounds = list(round_samples(lengths, 200, workload, Settings(rounds=2, batches=3)))
    assert len(rounds) == 3
    for like_length, shuffled in rounds:
        assert sorted(np.concatenate(like_length)) == sorted(np.concatenate(shuffled))
        assert [len(batch) for batch in shuffled] == [4, 4, 4]
        spread = [np.ptp(lengths[batch]) for batch in like_length], [np.ptp(lengths[batch]) for batch in shuffled]
        assert max(spread[0]) < min(spread[1])
    assert sorted(rounds[0][0][0]) != sorted(rounds[1][0][0])


@pytest.mark.parametrize("name", list(WORKLOADS))
def test_rounds_are_written_and_run(name: str, tmp_path: Path) -> None:
    settings = Settings(size="tiny", rounds=1, batches=2, results=tmp_path)
    file = write_rounds(find_workload(name, "tiny"), settings, tmp_path)
    rounds, tokenizer = read_rounds(file)
    assert {len(batches) for order in rounds.values() for batches in order} == {2}
    assert (tokenizer is None) == (name in ("images", "classify"))
    if name == "fills":
        assert all(text.count("[MASK]") == 1 for text in rounds["shuffled"][0][0]["texts"])
    names = [who for who in implementations(name) if who in (OURS, OURS_KEPT, PLAIN, PLAIN_FUSED)]
    done = [Server(Job(name, "tiny", who, "cpu", file))(1) for who in names]
    assert {p.steps for p in done} == {2}
    assert {p.samples for p in done} == {16}
    assert len({p.tokens for p in done}) == len({p.parameters for p in done}) == 1


def test_without_a_trick_batches_are_shuffled_or_padded(tmp_path: Path) -> None:
    settings = Settings(size="tiny", rounds=0, batches=2, results=tmp_path)
    workload = find_workload("mlm", "tiny")
    file = write_rounds(workload, settings, tmp_path)
    ours = Server(Job("mlm", "tiny", "ours", "cpu", file))
    shuffled = Server(Job("mlm", "tiny", "ours", "cpu", file, without="like length"))
    padded = Server(Job("mlm", "tiny", "ours", "cpu", file, without="trimmed padding"))
    assert (ours.implementation.order, shuffled.implementation.order) == ("like length", "shuffled")
    batches = padded.prepare(padded.rounds["like length"][0])
    assert all(batch["input_ids"].shape == (8, max_seq_len(workload.model)) for batch in batches)
    assert not torch.equal(ours.rounds["shuffled"][0][0]["input_ids"], ours.rounds["like length"][0][0]["input_ids"])
