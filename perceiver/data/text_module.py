"""Batches of texts, for a classifier or a masked language model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import datasets
import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from perceiver.config import MaskingConfig, TextDataConfig
from perceiver.data.modules import Batch, BatchSource, DataModule
from perceiver.data.sampling import IntArray, Loading
from perceiver.data.text import TextData
from perceiver.data.tokenizer import vocab_size_of
from perceiver.masking import IGNORED_LABEL, TextMasking, pack_selection
from perceiver.random import Stream, uniform

PAD_TOKEN_ID, UNK_TOKEN_ID = 0, 1


@dataclass(frozen=True)
class Masker:
    """Masks texts with random numbers that sample, position and epoch determine, whatever batch a text lies in."""

    masking: TextMasking
    seed: int
    stream: Stream

    def mask(self, input_ids: Tensor, pad_mask: Tensor, samples: IntArray, epoch: int) -> tuple[Tensor, Tensor]:
        """Mask a batch.

        Args:
            input_ids: Tokens (B, M).
            pad_mask: Bool (B, M), True where a token is padding.
            samples: Sample ids (B,).
            epoch: Epoch that the masks are for.

        Returns:
            Masked tokens (B, M) and labels (B, M).
        """
        which = rearrange(np.arange(3), "n -> n 1 1")
        rows, positions = rearrange(samples, "b -> b 1"), np.arange(input_ids.shape[1])
        noise = uniform((self.seed, self.stream, epoch), which, rows, positions)
        masked: tuple[Tensor, Tensor] = self.masking(input_ids, pad_mask, torch.from_numpy(noise))
        return masked


class TextSource(BatchSource):
    """Tokenized texts: input_ids (B, M) and pad_mask (B, M), with M the length of the longest text in the batch.

    For a classifier, labels are (B,). For a masked language model, input_ids are masked, labels are (B, M), and
    label_indices (B, K) and label_places (T,) are the Selection of the T tokens that have a label.
    """

    lengths: IntArray

    def __init__(self, tables: Sequence[datasets.Dataset], masker: Masker | None = None) -> None:
        """Find each text's tokens in the files that hold them, which stay mapped.

        Args:
            tables: Tokenized texts with the columns input_ids, length and label; the ids of a table's samples follow
                those of the table before.
            masker: Masks texts for a masked language model (none: classification).
        """
        columns = [table.with_format("arrow")[:] for table in tables]
        chunks = [chunk for column in columns for chunk in column["input_ids"].chunks]
        self.tokens = [chunk.flatten().to_numpy() for chunk in chunks]  # views of what the tables hold
        self.lengths = np.concatenate([column["length"].to_numpy() for column in columns]).astype(np.int64)
        self.labels = np.concatenate([column["label"].to_numpy() for column in columns])
        sizes = [len(chunk) for chunk in chunks]
        self.chunk_of = np.repeat(np.arange(len(chunks)), sizes)
        ends = np.cumsum(self.lengths)
        first = np.concatenate([[0], np.cumsum([len(tokens) for tokens in self.tokens])])
        self.starts = ends - self.lengths - first[self.chunk_of]
        self.masker = masker

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, samples: IntArray, epoch: int) -> Batch:
        """Assemble a batch; see `BatchSource.read`."""
        input_ids, pad_mask = self._pad(samples)
        if self.masker is None:
            return {"input_ids": input_ids, "pad_mask": pad_mask, "labels": torch.from_numpy(self.labels[samples])}
        input_ids, labels = self.masker.mask(input_ids, pad_mask, samples, epoch)
        return {"input_ids": input_ids, "pad_mask": pad_mask, "labels": labels, **_selection(labels)}

    def filler(self) -> Batch:
        """Assemble a batch of one text, which is one unknown token."""
        text = {"input_ids": torch.tensor([[UNK_TOKEN_ID]]), "pad_mask": torch.tensor([[False]])}
        if self.masker is None:
            return {**text, "labels": torch.tensor([IGNORED_LABEL])}
        labels = torch.tensor([[IGNORED_LABEL]])
        return {**text, "labels": labels, **_selection(labels)}

    def _pad(self, samples: IntArray) -> tuple[Tensor, Tensor]:
        lengths = self.lengths[samples]
        input_ids = np.full((len(samples), lengths.max()), PAD_TOKEN_ID, np.int64)
        places = zip(self.chunk_of[samples].tolist(), self.starts[samples].tolist(), lengths.tolist(), strict=True)
        for row, (chunk, start, length) in zip(input_ids, places, strict=True):
            row[:length] = self.tokens[chunk][start : start + length]
        pad_mask = np.arange(input_ids.shape[1]) >= rearrange(lengths, "b -> b 1")
        return torch.from_numpy(input_ids), torch.from_numpy(pad_mask)


def _selection(labels: Tensor) -> Batch:
    indices, places = pack_selection(labels != IGNORED_LABEL)
    return {"label_indices": indices, "label_places": places}


class TextDataModule(DataModule):
    """Batches of texts for a classifier or, given how to mask, for a masked language model."""

    def __init__(
        self, data: TextData, config: TextDataConfig, loading: Loading, masking: MaskingConfig | None = None
    ) -> None:
        """Set up the loaders.

        Args:
            data: Tokenized splits.
            config: Loader processes, length pool, and whether unlabelled texts join the training of a masked language
                model.
            loading: Batch size, seed, rank and start.
            masking: Share of tokens to mask (none: classification). Masks in training depend on seed, epoch and sample
                id; those in evaluation on the sample id alone, so that runs compare.
        """
        train, train_masker, evaluation_masker = [data.train], None, None
        if masking is not None:
            mask = TextMasking(vocab_size_of(data.tokenizer), mask_p=masking.mask_p)
            train_masker = Masker(mask, loading.seed, Stream.MASK)
            evaluation_masker = Masker(mask, 0, Stream.EVALUATION_MASK)
            if config.use_unlabelled and data.unlabelled is not None:
                train.append(data.unlabelled)
        super().__init__(
            TextSource(train, train_masker),
            TextSource([data.validation], evaluation_masker),
            TextSource([data.test], evaluation_masker),
            loading,
            config.loader_workers,
            config.length_pool,
        )
