"""Batches of images, for a classifier."""

from __future__ import annotations

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from perceiver.config import ImageDataConfig
from perceiver.data.images import ImageData, ImageSplit
from perceiver.data.modules import Batch, BatchSource, DataModule
from perceiver.data.sampling import IntArray, Loading
from perceiver.masking import IGNORED_LABEL
from perceiver.random import Stream, uniform


class ImageSource(BatchSource):
    """Images: images (B, H, W, C) float32, and labels (B,)."""

    def __init__(self, split: ImageSplit, config: ImageDataConfig, crop_seed: int | None = None) -> None:
        """Set up the changes that images undergo.

        Args:
            split: Images and labels.
            config: Crop size and range of values.
            crop_seed: Seed of random crops (none: crops are central).
        """
        self.split, self.config, self.crop_seed = split, config, crop_seed
        self.labels = split.labels
        self.held: Tensor | None = None

    def hold(self, device: torch.device) -> None:
        """Keep all images on a device, where batches are then assembled."""
        self.held = torch.from_numpy(np.array(self.split.images)).to(device)

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, samples: IntArray, epoch: int) -> Batch:
        """Assemble a batch; see `BatchSource.read`."""
        pixels = self._take(self._places(samples, epoch)).float() / 255
        x = pixels * 2 - 1 if self.config.normalize else pixels
        return {"images": x, "labels": torch.from_numpy(self.labels[samples])}

    def filler(self) -> Batch:
        """Assemble a batch of one grey image."""
        _, height, width, channels = self.split.images.shape
        side = self.config.random_crop
        shape = (1, side or height, side or width, channels)
        return {"images": torch.zeros(shape), "labels": torch.tensor([IGNORED_LABEL])}

    def _take(self, places: tuple[IntArray, ...]) -> Tensor:
        """Return the pixels (B, H, W, C) at some places."""
        if self.held is None:
            return torch.from_numpy(np.asarray(self.split.images[places]))
        return self.held[tuple(torch.from_numpy(np.array(place)).to(self.held.device) for place in places)]

    def _places(self, samples: IntArray, epoch: int) -> tuple[IntArray, ...]:
        """Return what selects the samples, or a crop of each, from all images."""
        images, side = self.split.images, self.config.random_crop
        if side is None:
            return (samples,)
        room = rearrange(np.array(images.shape[1:3]) - side, "xy -> xy 1")
        if self.crop_seed is None:
            corners = np.broadcast_to(room // 2, (2, len(samples)))
        else:
            axes = rearrange(np.arange(2), "xy -> xy 1")
            draws = uniform((self.crop_seed, Stream.CROP, epoch), axes, samples)
            corners = (draws * (room + 1)).astype(np.int64)
        rows, columns = rearrange(corners, "xy b -> xy b 1") + np.arange(side)
        return rearrange(samples, "b -> b 1 1"), rearrange(rows, "b h -> b h 1"), rearrange(columns, "b w -> b 1 w")


class ImageDataModule(DataModule):
    """Batches of images for a classifier."""

    def __init__(self, data: ImageData, config: ImageDataConfig, loading: Loading) -> None:
        """Set up the loaders.

        Args:
            data: Decoded splits.
            config: Crop size, range of values and loader processes.
            loading: Batch size, seed, rank and start.
        """
        super().__init__(
            ImageSource(data.train, config, loading.seed),
            ImageSource(data.validation, config),
            ImageSource(data.test, config),
            loading,
            config.loader_workers,
        )

    def hold(self, device: torch.device, max_bytes: float) -> None:
        """Keep the training and validation images on a device, if they take no more than max_bytes.

        Processes that assemble batches can't reach them there, so that with some the images stay where they are.
        """
        sources = [source for source in (self.train, self.validation) if isinstance(source, ImageSource)]
        if self.loader_workers == 0 and sum(source.split.images.nbytes for source in sources) <= max_bytes:
            for source in sources:
                source.hold(device)
