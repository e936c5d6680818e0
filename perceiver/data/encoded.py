"""What a frozen encoder makes of texts, kept on disk, so that it reads each text once and not once per epoch.

A frozen encoder has no dropout and its inputs never change, so neither do its latents. They are encoded before
training, in batches that depend on nothing but the texts' lengths: whoever trains, resumes or repeats a stage, with
any number of workers, reads the same numbers.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from perceiver.data.cache import cached_folder, new_array
from perceiver.data.fingerprint import fingerprint_of
from perceiver.data.modules import Batch, BatchSource
from perceiver.data.sampling import IntArray, evaluation_batches
from perceiver.data.text_module import TextSource
from perceiver.errors import UserError
from perceiver.masking import IGNORED_LABEL
from perceiver.model import PerceiverEncoder

_FORMAT = "encoded 1"  # of the files; a new number leaves old ones unused
_PREFIX = "encoded-"
_BATCH_SIZE = 64
_PART_SIZE = 32 * _BATCH_SIZE  # texts per file: workers that start at different files share the work
_LATENTS_FILE = "latents.npy"


@dataclass(frozen=True)
class EncodedTexts:
    """Where to keep the latents of texts.

    Attributes:
        cache_dir: Folder of the cache; each frozen encoder has a folder in it.
        max_bytes: Disk space for the latents of all encoders; those used least recently make room.
        worker: Number of this worker, which decides the file that it starts with.
        num_workers: Number of workers.
    """

    cache_dir: str
    max_bytes: float
    worker: int = 0
    num_workers: int = 1

    def keep(
        self,
        encoder: PerceiverEncoder,
        sources: Sequence[TextSource],
        device: torch.device,
        before_encoding: Callable[[], None] = lambda: None,
        without_room: Callable[[float], None] = lambda size: None,
    ) -> list[BatchSource]:
        """Encode all texts that are not encoded yet.

        Args:
            encoder: Frozen encoder, in evaluation mode.
            sources: Splits of a classifier's texts.
            device: Where to encode.
            before_encoding: Called before texts are encoded, not where all of them are already.
            without_room: Called with the bytes that the latents would take, if that is too much.

        Returns:
            For each split a source that gives latents in place of tokens; `sources` themselves, if their latents would
            take too much space.
        """
        assert not encoder.training, "a frozen encoder is in evaluation mode"
        size = sum(encoder.latents.nbytes * len(source) for source in sources)
        if size > self.max_bytes:
            without_room(size)
            return list(sources)
        folder = Path(self.cache_dir).expanduser().resolve() / f"{_PREFIX}{_encoder_fingerprint(encoder)[:32]}"
        _make_room(folder, self.max_bytes - size)
        encoder.to(device)
        return [self._keep_split(encoder, source, folder, before_encoding) for source in sources]

    def _keep_split(
        self, encoder: PerceiverEncoder, source: TextSource, folder: Path, before_encoding: Callable[[], None]
    ) -> BatchSource:
        batches = evaluation_batches(len(source), _BATCH_SIZE, source.lengths)
        per_part = _PART_SIZE // _BATCH_SIZE
        parts = [batches[start : start + per_part] for start in range(0, len(batches), per_part)]
        name = _texts_fingerprint(source)[:32]
        latents: dict[int, npt.NDArray[np.float32]] = {}
        first = self.worker * len(parts) // self.num_workers
        for number in [*range(first, len(parts)), *range(first)]:
            write = partial(_encode, encoder, source, parts[number], before_encoding)
            part = cached_folder(str(folder), f"{name}-{number:05d}", write)
            latents[number] = np.load(part / _LATENTS_FILE, mmap_mode="r")
        return EncodedSource(source, np.concatenate(batches), [latents[number] for number in range(len(parts))])


class EncodedSource(BatchSource):
    """Encoded texts: latents (B, N, D) and labels (B,), in the batches that the texts themselves would make."""

    def __init__(self, texts: TextSource, order: IntArray, latents: list[npt.NDArray[np.float32]]) -> None:
        """Set up the lookup of latents.

        Args:
            texts: What was encoded.
            order: Sample ids in the order of their latents.
            latents: Latents (n, N, D), file by file.
        """
        self.lengths, self.labels, self.latents = texts.lengths, texts.labels, latents
        self.place = np.empty(len(order), np.int64)
        self.place[order] = np.arange(len(order))

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, samples: IntArray, epoch: int) -> Batch:
        """Assemble a batch; see `BatchSource.read`."""
        batch = np.empty((len(samples), *self.latents[0].shape[1:]), np.float32)
        for row, place in zip(batch, self.place[samples].tolist(), strict=True):
            row[:] = self.latents[place // _PART_SIZE][place % _PART_SIZE]
        return {"latents": torch.from_numpy(batch), "labels": torch.from_numpy(self.labels[samples])}

    def filler(self) -> Batch:
        """Assemble a batch of one text whose label is ignored."""
        latents = torch.zeros(1, *self.latents[0].shape[1:])
        return {"latents": latents, "labels": torch.tensor([IGNORED_LABEL])}


def _encoder_fingerprint(encoder: PerceiverEncoder) -> str:
    digest = hashlib.sha256()
    for name, value in encoder.state_dict().items():
        digest.update(f"{name} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().numpy())
    return fingerprint_of(_FORMAT, str(encoder), digest.hexdigest())  # its text tells the heads from each other


def _texts_fingerprint(source: TextSource) -> str:
    digest = hashlib.sha256(source.lengths.tobytes())
    for tokens in source.tokens:
        digest.update(np.ascontiguousarray(tokens).tobytes())
    return digest.hexdigest()


def _encode(
    encoder: PerceiverEncoder,
    source: TextSource,
    batches: list[IntArray],
    before_encoding: Callable[[], None],
    folder: Path,
) -> None:
    """Write the latents of some batches into a file in a folder."""
    before_encoding()
    shape = (sum(map(len, batches)), *encoder.latents.shape)
    file = new_array(folder / _LATENTS_FILE, np.float32, shape)
    device = encoder.latents.device
    ends = np.cumsum([len(batch) for batch in batches])
    with torch.no_grad():
        for samples, end in zip(batches, ends, strict=True):
            batch = source.read(samples, epoch=0)
            latents = encoder(batch["input_ids"].to(device), batch["pad_mask"].to(device))
            file[end - len(samples) : end] = latents.float().cpu().numpy()
    file.flush()


def _make_room(folder: Path, max_bytes: float) -> None:
    """Delete the latents of other encoders, least recently used first, until the rest take no more than max_bytes."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        folder.touch()
    except OSError as error:
        raise UserError(f"cache_dir {folder.parent} cannot be written ({error.strerror}): choose another") from None
    others = [other for other in folder.parent.glob(f"{_PREFIX}*") if other.name != folder.name]
    sizes = {other: sum(file.stat().st_size for file in other.rglob("*") if file.is_file()) for other in others}
    for other in sorted(others, key=lambda other: other.stat().st_mtime):
        if sum(sizes.values()) <= max_bytes:
            return
        shutil.rmtree(other, ignore_errors=True)
        del sizes[other]
