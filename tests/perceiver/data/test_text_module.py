from collections.abc import Iterable
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader

from perceiver.config import MaskingConfig, TextDataConfig
from perceiver.data.modules import Batch
from perceiver.data.sampling import GlobalBatchSampler, Loading
from perceiver.data.text import TextData
from perceiver.data.text_module import TextDataModule
from perceiver.data.tokenizer import train_tokenizer
from perceiver.random import Stream, generator

VOCAB_SIZE = 40
TOKENIZER = train_tokenizer(["".join(map(chr, range(ord("a"), ord("z") + 1)))], VOCAB_SIZE)


def make_table(size: int, seed: int, labelled: bool = True) -> datasets.Dataset:
    random = generator(seed, Stream.ORDER)
    texts = [random.integers(3, 25, size=length).tolist() for length in random.integers(1, 30, size=size)]
    features = datasets.Features(
        input_ids=datasets.List(datasets.Value("int32")), length=datasets.Value("int32"), label=datasets.Value("int64")
    )
    labels = [n % 2 for n in range(size)] if labelled else [-1] * size
    return datasets.Dataset.from_dict(
        {"input_ids": texts, "length": [len(text) for text in texts], "label": labels}, features
    )


UNLABELLED = make_table(20, 3, labelled=False)
DATA = TextData(
    class_names=("bad", "good"),
    tokenizer=TOKENIZER,
    fingerprint="made by hand",
    synthetic=True,
    # Selected rows, as they come from a split: the table behind them has another order and more rows.
    train=make_table(60, 0).select(range(49, 8, -1)),
    validation=make_table(9, 1),
    test=make_table(11, 2),
    unlabelled=UNLABELLED,
)
TRAIN_TEXTS = DATA.train["input_ids"][:]
ALL_TEXTS = TRAIN_TEXTS + UNLABELLED["input_ids"][:]


def make_module(loading: Loading, mask_p: float | None = None, **config: Any) -> TextDataModule:
    masking = None if mask_p is None else MaskingConfig(mask_p)
    return TextDataModule(DATA, TextDataConfig(**{"length_pool": 3, **config}), loading, masking)


def set_epoch(loader: DataLoader, epoch: int) -> None:
    assert isinstance(loader.batch_sampler, GlobalBatchSampler)
    loader.batch_sampler.sampler.set_epoch(epoch)


def read_epoch(module: TextDataModule, epoch: int) -> list[Batch]:
    loader = module.train_dataloader()
    set_epoch(loader, epoch)
    return list(loader)


def assert_equal(batches: list[Batch], others: list[Batch]) -> None:
    assert len(batches) == len(others)
    for batch, other in zip(batches, others, strict=True):
        assert batch.keys() == other.keys()
        for name in batch:
            torch.testing.assert_close(batch[name], other[name], rtol=0, atol=0)


def by_sample(batches: Iterable[Batch]) -> dict[int, tuple[list[int], list[int]]]:
    """Return masked tokens and labels of each sample, without padding and fillers."""
    samples = {}
    for batch in batches:
        columns = (batch["sample_ids"], batch["input_ids"], batch["labels"], ~batch["pad_mask"])
        for sample, input_ids, labels, is_real in zip(*columns, strict=True):
            samples[int(sample)] = (input_ids[is_real].tolist(), labels[is_real].tolist())
    samples.pop(-1, None)
    return samples


def test_classifier_batches_hold_each_text_once_padded_to_the_longest() -> None:
    batches = read_epoch(make_module(Loading(8, seed=0)), 0)
    assert sorted(torch.cat([batch["sample_ids"] for batch in batches]).tolist()) == list(range(41))
    for batch in batches:
        texts = [torch.tensor(TRAIN_TEXTS[sample]) for sample in batch["sample_ids"]]
        torch.testing.assert_close(batch["input_ids"], pad_sequence(texts, batch_first=True))
        torch.testing.assert_close(batch["pad_mask"], batch["input_ids"] == 0)
        assert batch["labels"].tolist() == [DATA.train[int(sample)]["label"] for sample in batch["sample_ids"]]
        assert {str(value.dtype) for value in batch.values()} == {"torch.int64", "torch.bool"}


def test_masked_texts_differ_from_the_texts_only_where_labels_say_so() -> None:
    samples = by_sample(read_epoch(make_module(Loading(8, seed=0), mask_p=0.5), 0))
    assert sorted(samples) == list(range(41))
    for sample, (input_ids, labels) in samples.items():
        restored = np.where(np.array(labels) == -100, input_ids, labels)
        np.testing.assert_array_equal(restored, TRAIN_TEXTS[sample])
    selected = [label != -100 for _, labels in samples.values() for label in labels]
    assert 0.4 < np.mean(selected) < 0.6


@pytest.mark.parametrize(("batch_size", "length_pool", "world_size"), [(41, 1, 1), (5, 2, 1), (7, 4, 3)])
def test_masks_depend_on_the_sample_and_not_on_its_batch(batch_size: int, length_pool: int, world_size: int) -> None:
    expected = by_sample(read_epoch(make_module(Loading(8, seed=0), mask_p=0.3), 2))
    samples: dict[int, tuple[list[int], list[int]]] = {}
    for rank in range(world_size):
        loading = Loading(batch_size, seed=0, rank=rank, world_size=world_size)
        samples |= by_sample(read_epoch(make_module(loading, mask_p=0.3, length_pool=length_pool), 2))
    assert samples == expected


def test_training_masks_change_with_epoch_and_seed() -> None:
    module = make_module(Loading(8, seed=0), mask_p=0.3)
    first = by_sample(read_epoch(module, 0))
    assert first == by_sample(read_epoch(module, 0))
    for other in (read_epoch(module, 1), read_epoch(make_module(Loading(8, seed=1), mask_p=0.3), 0)):
        samples = by_sample(other)
        assert np.mean([samples[sample] == first[sample] for sample in first]) < 0.3


def test_evaluation_masks_are_the_same_in_every_epoch_and_run() -> None:
    module = make_module(Loading(8, seed=0), mask_p=0.3)
    other = make_module(Loading(8, seed=1, start_epoch=3), mask_p=0.3)
    for name in ("val_dataloader", "test_dataloader"):
        loader = getattr(module, name)()
        first = list(loader)
        set_epoch(loader, 1)
        assert_equal(first, list(loader))
        assert_equal(first, list(getattr(other, name)()))
    trained = by_sample(make_module(Loading(41, seed=0), mask_p=0.3).train_dataloader())
    validated = by_sample(module.val_dataloader())
    positions = [[np.array(samples[n][1]) != -100 for n in range(9)] for samples in (trained, validated)]
    shared = [(one[: len(two)], two[: len(one)]) for one, two in zip(*positions, strict=True)]
    assert any((one != two).any() for one, two in shared)


def test_loader_processes_make_the_same_batches() -> None:
    alone, helped = (make_module(Loading(8, seed=0), mask_p=0.3, loader_workers=number) for number in (0, 1))
    assert_equal(read_epoch(alone, 1), read_epoch(helped, 1))


def test_unlabelled_texts_join_masked_language_modeling_when_asked_to() -> None:
    loading = Loading(8, seed=0)
    assert make_module(loading, mask_p=0.3).num_train == 41
    assert make_module(loading, use_unlabelled=True).num_train == 41
    joined = make_module(loading, mask_p=0.3, use_unlabelled=True)
    assert (joined.num_train, joined.steps_per_epoch) == (61, 8)
    samples = by_sample(joined.train_dataloader())
    for sample, text in enumerate(ALL_TEXTS):
        assert len(samples[sample][0]) == len(text)


@pytest.mark.parametrize(
    ("mask_p", "labels"),
    [(None, {"labels": [-100]}), (0.3, {"labels": [[-100]], "label_indices": [[0]], "label_places": []})],
)
def test_filler_is_a_valid_text_without_labels(mask_p: float | None, labels: dict[str, list]) -> None:
    module = make_module(Loading(8, seed=0, rank=1, world_size=2), mask_p)
    *_, filler = module.val_dataloader()
    assert {name: value.tolist() for name, value in filler.items()} == {
        "sample_ids": [-1],
        "input_ids": [[1]],
        "pad_mask": [[False]],
        **labels,
    }
    batch = next(iter(module.val_dataloader()))
    assert {name: value.dtype for name, value in filler.items()} == {name: value.dtype for name, value in batch.items()}
