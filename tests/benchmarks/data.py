"""The reviews and images that everybody is measured on, assembled beforehand and kept in one file.

A round is a pass over some reviews, the same ones for everybody: ours takes them in batches of like length, as the
pipelines' sampler makes them, the others in shuffled batches. The batches of like length are picked evenly from the
shortest to the longest of an epoch, so that the few of a round stand for all.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from perceiver.config import ImageClassifierConfig, ImageDataConfig, MaskedLanguageModelConfig, TextDataConfig
from perceiver.data.image_module import ImageSource
from perceiver.data.images import prepare_images
from perceiver.data.modules import BatchSource
from perceiver.data.sampling import IntArray, epoch_batches
from perceiver.data.text import TextData, prepare_text, split_text
from perceiver.data.text_module import Masker, TextSource
from perceiver.data.tokenizer import MASK_TOKEN, SPECIAL_TOKENS
from perceiver.masking import IGNORED_LABEL, TextMasking, pack_selection
from perceiver.random import Stream, permutation
from tests.benchmarks.implementation import Batch, Rounds
from tests.benchmarks.settings import Settings, say
from tests.benchmarks.workloads import Workload

_SEED = 0
_TINY_LIMIT = 64
_WORDS_BEFORE_MASK = 100  # the mask lies within these, so that it is never cut off


def write_rounds(workload: Workload, settings: Settings, folder: Path) -> Path:
    """Assemble the batches of a workload and write them into a file of a folder."""
    if workload.reads_text:
        rounds, tokenizer = _text_rounds(workload, settings)
    else:
        rounds, tokenizer = _image_rounds(workload, settings), None
    file = folder / f"{workload.name}.pt"
    torch.save({"rounds": rounds, "tokenizer": tokenizer}, file)
    return file


def pick_batches(batches: list[IntArray], lengths: IntArray, count: int) -> list[IntArray]:
    """Pick batches evenly from the shortest texts to the longest; keep their order."""
    by_length = np.argsort([lengths[batch].max() for batch in batches], kind="stable")
    picked = by_length[((np.arange(count) + 0.5) * len(batches) / count - 0.5).round().astype(int)]
    return [batches[i] for i in sorted(set(picked.tolist()))]


def round_samples(lengths: IntArray | None, num_samples: int, workload: Workload, settings: Settings) -> Any:
    """Yield the sample ids of the batches of each round: those of like length and the same samples shuffled."""
    size = min(workload.batch_size, num_samples)
    pool = TextDataConfig().length_pool
    for epoch in range(settings.rounds + 1):  # and one to warm up
        batches = [b for b in epoch_batches(num_samples, size, _SEED, epoch, lengths, pool) if len(b) == size]
        count = min(settings.batches, len(batches))
        if lengths is None:
            yield batches[:count], batches[:count]
            continue
        picked = pick_batches(batches, lengths, count)
        samples = np.concatenate(picked)
        samples = samples[permutation((_SEED, Stream.ORDER, epoch), len(samples))]
        yield picked, np.split(samples, len(picked))


def _assemble(source: BatchSource, workload: Workload, settings: Settings) -> Rounds:
    pairs = list(round_samples(source.lengths, len(source), workload, settings))
    return {
        order: [[source.read(samples, epoch) for samples in pair[i]] for epoch, pair in enumerate(pairs)]
        for i, order in enumerate(("like length", "shuffled"))
    }


def text_config(workload: Workload, settings: Settings) -> TextDataConfig:
    """Say which reviews are read, and how: the real ones where there are any."""
    assert not isinstance(workload.model, ImageClassifierConfig)
    path = settings.find_data("imdb")
    if path is None:
        say("no folder with imdb/ is named (--data, PERCEIVER_TEST_DATA): using the built-in toy reviews")
    return TextDataConfig(
        path=path or "toy_reviews",
        limit=_TINY_LIMIT if settings.size == "tiny" else None,
        vocab_size=workload.model.vocab_size,
        max_seq_len=workload.model.max_seq_len,
        cache_dir=str(settings.cache),
    )


def _text_rounds(workload: Workload, settings: Settings) -> tuple[Rounds, str]:
    config = text_config(workload, settings)
    data = prepare_text(config)
    if workload.name == "fills":
        return _fill_rounds(config, workload, settings), data.tokenizer.to_str()
    return _assemble(text_source(data, workload), workload, settings), data.tokenizer.to_str()


def text_source(data: TextData, workload: Workload) -> TextSource:
    """Return the tokenized training texts, masked where the workload is a masked language model."""
    masker = None
    if isinstance(workload.model, MaskedLanguageModelConfig):
        masking = TextMasking(workload.model.vocab_size, mask_p=workload.model.masking.mask_p)
        masker = Masker(masking, _SEED, Stream.MASK)
    return TextSource([data.train], masker)


def _fill_rounds(config: TextDataConfig, workload: Workload, settings: Settings) -> Rounds:
    texts = split_text(config, labelled=False).train["text"]
    rounds = [
        [{"texts": [_with_mask(texts[i]) for i in samples.tolist()]} for samples in batches]
        for batches, _ in round_samples(None, len(texts), workload, settings)
    ]
    return {"like length": rounds, "shuffled": rounds}


def _with_mask(text: str) -> str:
    """Put [MASK] in place of a word of a review."""
    words = text.split() or [SPECIAL_TOKENS[1]]
    place = len(words[:_WORDS_BEFORE_MASK]) // 2
    return " ".join([*words[:place], MASK_TOKEN, *words[place + 1 :]])


def _image_rounds(workload: Workload, settings: Settings) -> Rounds:
    path = settings.find_data("mnist")
    assert isinstance(workload.model, ImageClassifierConfig)
    if path is None:
        say("no folder with mnist/ is named (--data, PERCEIVER_TEST_DATA): using random images")
        rounds = [[random_images(workload) for _ in range(settings.batches)] for _ in range(settings.rounds + 1)]
        return {"like length": rounds, "shuffled": rounds}
    limit = _TINY_LIMIT if settings.size == "tiny" else None
    config = ImageDataConfig(path=path, limit=limit, cache_dir=str(settings.cache))
    return _assemble(ImageSource(prepare_images(config).train, config), workload, settings)


def random_images(workload: Workload) -> Batch:
    """Make a batch of images that show nothing."""
    assert isinstance(workload.model, ImageClassifierConfig)
    return {
        "images": 2 * torch.rand(workload.batch_size, *workload.model.image_shape) - 1,
        "labels": torch.randint(workload.model.num_classes, (workload.batch_size,)),
    }


def random_texts(workload: Workload, padding: int = 0) -> Batch:
    """Make a batch of masked texts of the full length that say nothing.

    Args:
        workload: Masked language model.
        padding: Tokens at the end of the first text that are padding.
    """
    assert isinstance(workload.model, MaskedLanguageModelConfig)
    vocab_size, num_tokens = workload.model.vocab_size, workload.model.max_seq_len
    tokens = torch.randint(len(SPECIAL_TOKENS), vocab_size, (workload.batch_size, num_tokens))
    pad_mask = torch.zeros_like(tokens, dtype=torch.bool)
    pad_mask[0, num_tokens - padding :] = True
    input_ids, labels = TextMasking(vocab_size, mask_p=workload.model.masking.mask_p)(tokens, pad_mask)
    indices, places = pack_selection(labels != IGNORED_LABEL)
    selection = {"label_indices": indices, "label_places": places}
    return {"input_ids": input_ids, "labels": labels, "pad_mask": pad_mask, **selection}
