"""Every implementation runs one tiny step."""

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers

from tests.benchmarks.data import random_images, random_texts
from tests.benchmarks.implementation import Batch, Implementation, pad_fully
from tests.benchmarks.others import build_other, is_installed
from tests.benchmarks.ours import build_ours
from tests.benchmarks.peers import PEERS
from tests.benchmarks.workloads import OURS, PLAIN, PLAIN_FUSED, WORKLOADS, Workload, find_workload, max_seq_len

CASES = [(workload, name) for workload in WORKLOADS for name in (OURS, PLAIN, PLAIN_FUSED, *PEERS[workload])]


def make_batch(workload: Workload) -> Batch:
    if workload.name == "fills":
        return {"texts": ["some [MASK] words", "and [MASK]"]}
    if workload.name in ("images", "classify"):
        batch = random_images(workload)
        return batch if workload.trains else {"images": batch["images"].numpy()}
    batch = random_texts(find_workload("mlm", "tiny"), padding=14)
    if workload.name != "mlm":
        batch["labels"] = torch.arange(len(batch["labels"])) % 2
    return batch


def make_tokenizer() -> Tokenizer:
    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[MASK]", "some", "words", "and"])}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer


def build(name: str, workload: Workload) -> Implementation:
    if name == OURS:
        return build_ours(workload, "cpu", make_tokenizer())
    if name in PEERS[workload.name] and not is_installed(PEERS[workload.name][name]):
        pytest.skip(f"{PEERS[workload.name][name].package} is not installed (make bench installs it)")
    return build_other(name, workload, "cpu", make_tokenizer())


@pytest.mark.parametrize(("workload_name", "name"), CASES)
def test_a_step_trains_what_it_should(workload_name: str, name: str) -> None:
    workload = find_workload(workload_name, "tiny")
    implementation = build(name, workload)
    batch = make_batch(workload)
    if implementation.padding == "full" and "pad_mask" in batch:
        batch = pad_fully(batch, max_seq_len(workload.model))
    before = {key: parameter.detach().clone() for key, parameter in implementation.model.named_parameters()}
    result = implementation.work(batch)
    after = dict(implementation.model.named_parameters())
    changed = {key for key, value in before.items() if not torch.equal(value, after[key])}
    assert bool(changed) == workload.trains
    if workload.trains:
        assert torch.isfinite(result)
    if workload_name == "frozen":
        assert changed <= {key for key in before if "decoder" in key or "to_logits" in key or "queries" in key}


@pytest.mark.parametrize("name", [PLAIN, *PEERS["fills"]])
def test_fills_are_given_for_each_mask(name: str) -> None:
    workload = find_workload("fills", "tiny")
    fills = build(name, workload).work(make_batch(workload))
    assert len(fills) == 2
    assert all(len(best) == 5 for best in fills)


def test_padding_adds_nothing_but_padding() -> None:
    batch = make_batch(find_workload("mlm", "tiny"))
    padded = pad_fully(batch, 40)
    assert padded["input_ids"].shape == padded["labels"].shape == (8, 40)
    assert padded["pad_mask"][:, 24:].all()
    assert (padded["labels"][:, 24:] == -100).all()
    assert torch.equal(padded["input_ids"][:, :24], batch["input_ids"])
