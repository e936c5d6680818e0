from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from perceiver.config import ImageDataConfig
from perceiver.data.image_module import ImageDataModule
from perceiver.data.images import ImageData, ImageSplit
from perceiver.data.modules import Batch
from perceiver.data.sampling import GlobalBatchSampler, Loading

HEIGHT, WIDTH, SIDE = 6, 8, 4


def make_split(size: int) -> ImageSplit:
    # Pixel values are unique within an image and tell the image: value = row * width + column + 50 * sample.
    grid = np.arange(HEIGHT * WIDTH).reshape(1, HEIGHT, WIDTH, 1)
    offsets = 50 * (np.arange(size) % 5).reshape(-1, 1, 1, 1)
    return ImageSplit((grid + offsets).clip(max=255).astype(np.uint8), np.arange(size) % 3)


DATA = ImageData(
    class_names=("a", "b", "c"),
    image_shape=(HEIGHT, WIDTH, 1),
    input_shape=(HEIGHT, WIDTH, 1),
    fingerprint="made by hand",
    train=make_split(40),
    validation=make_split(9),
    test=make_split(10),
)


def make_module(loading: Loading, **config: Any) -> ImageDataModule:
    return ImageDataModule(DATA, ImageDataConfig(**config), loading)


def set_epoch(loader: DataLoader, epoch: int) -> None:
    assert isinstance(loader.batch_sampler, GlobalBatchSampler)
    loader.batch_sampler.sampler.set_epoch(epoch)


def read_epoch(module: ImageDataModule, epoch: int) -> dict[int, tuple[torch.Tensor, int]]:
    """Return image and label of each training sample."""
    loader = module.train_dataloader()
    set_epoch(loader, epoch)
    return by_sample(list(loader))


def by_sample(batches: list[Batch]) -> dict[int, tuple[torch.Tensor, int]]:
    columns = [torch.cat([batch[name] for batch in batches]) for name in ("sample_ids", "images", "labels")]
    return {int(sample): (image, int(label)) for sample, image, label in zip(*columns, strict=True)}


def corner(image: torch.Tensor, sample: int) -> tuple[int, int]:
    """Return where in the whole image a crop begins, after checking that it is one."""
    values = (image[..., 0] * 255).round().long().numpy()
    row, column = divmod(int(values[0, 0]) - 50 * (sample % 5), WIDTH)
    whole = DATA.train.images[sample, ..., 0]
    np.testing.assert_array_equal(values, whole[row : row + SIDE, column : column + SIDE])
    return row, column


@pytest.mark.parametrize(("normalize", "low"), [(False, 0.0), (True, -1.0)])
def test_images_are_scaled_and_keep_their_labels(normalize: bool, low: float) -> None:
    samples = read_epoch(make_module(Loading(7, seed=0), normalize=normalize), 0)
    assert sorted(samples) == list(range(40))
    for sample, (image, label) in samples.items():
        assert (image.dtype, image.shape) == (torch.float32, (HEIGHT, WIDTH, 1))
        assert label == sample % 3
        expected = low + (1 - low) * DATA.train.images[sample].astype(np.float64) / 255
        np.testing.assert_allclose(image.numpy(), expected, atol=1e-6)


def test_training_crops_depend_on_seed_epoch_and_sample_alone() -> None:
    config = {"normalize": False, "random_crop": SIDE}
    first = read_epoch(make_module(Loading(7, seed=0), **config), 1)
    corners = {sample: corner(image, sample) for sample, (image, _) in first.items()}
    assert {row for row, _ in corners.values()} == set(range(HEIGHT - SIDE + 1))
    assert {column for _, column in corners.values()} == set(range(WIDTH - SIDE + 1))

    ranks = [make_module(Loading(5, seed=0, rank=rank, world_size=2), **config) for rank in range(2)]
    again = read_epoch(ranks[0], 1) | read_epoch(ranks[1], 1)
    assert {sample: corner(image, sample) for sample, (image, _) in again.items() if sample >= 0} == corners
    for seed, epoch in ((0, 2), (1, 1)):
        others = read_epoch(make_module(Loading(7, seed=seed), **config), epoch)
        same = [corner(image, sample) == corners[sample] for sample, (image, _) in others.items()]
        assert np.mean(same) < 0.3


def test_evaluation_crops_are_central() -> None:
    module = make_module(Loading(4, seed=0), normalize=False, random_crop=SIDE)
    for loader in (module.val_dataloader(), module.test_dataloader()):
        samples = by_sample(list(loader))
        assert {corner(image, sample) for sample, (image, _) in samples.items()} == {(1, 2)}


@pytest.mark.parametrize("random_crop", [None, SIDE])
def test_filler_is_a_valid_image_without_label(random_crop: int | None) -> None:
    module = make_module(Loading(4, seed=0, rank=1, world_size=2), random_crop=random_crop)
    first, *_, filler = module.val_dataloader()
    assert filler["sample_ids"].tolist() == [-1]
    assert filler["labels"].tolist() == [-100]
    assert filler["images"].shape == (1, *first["images"].shape[1:])
    assert {name: value.dtype for name, value in filler.items()} == {name: value.dtype for name, value in first.items()}


def test_loader_processes_make_the_same_batches() -> None:
    modules = [make_module(Loading(7, seed=0), random_crop=SIDE, loader_workers=number) for number in (0, 1)]
    alone, helped = (list(module.train_dataloader()) for module in modules)
    assert len(alone) == len(helped) == 6
    for batch, other in zip(alone, helped, strict=True):
        for name in ("sample_ids", "images", "labels"):
            torch.testing.assert_close(batch[name], other[name], rtol=0, atol=0)


@pytest.mark.parametrize("random_crop", [None, SIDE])
def test_images_held_on_a_device_make_the_same_batches(random_crop: int | None) -> None:
    plain, held = (make_module(Loading(7, seed=0), random_crop=random_crop) for _ in range(2))
    held.hold(torch.device("cpu"), max_bytes=1e9)
    assert [source.held is not None for source in (held.train, held.validation, held.test)] == [True, True, False]
    for loader in ("train_dataloader", "val_dataloader"):
        for one, other in zip(getattr(plain, loader)(), getattr(held, loader)(), strict=True):
            assert one.keys() == other.keys()
            assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(("max_bytes", "loader_workers"), [(1.0, 0), (1e9, 1)])
def test_too_many_images_and_those_of_loader_processes_are_not_held(max_bytes: float, loader_workers: int) -> None:
    module = make_module(Loading(7, seed=0), loader_workers=loader_workers)
    module.hold(torch.device("cpu"), max_bytes)
    assert module.train.held is None
