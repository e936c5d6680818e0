import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import PIL.Image
import pytest

from perceiver.config import ImageDataConfig
from perceiver.data.images import ImageData, ImageSplit, prepare_images
from perceiver.errors import UserError
from perceiver.random import Stream, uniform

NUM_TRAIN, NUM_TEST, NUM_CLASSES = 40, 12, 4
CLASS_LABEL = datasets.ClassLabel(names=["ant", "bee", "cat", "dog"])


def draw_pixels(seed: int, *shape: int) -> np.ndarray:
    return (uniform((seed, Stream.CROP), np.arange(np.prod(shape))) * 256).astype(np.uint8).reshape(shape)


TRAIN, TEST = draw_pixels(1, NUM_TRAIN, 5, 6), draw_pixels(2, NUM_TEST, 5, 6)
TRAIN_LABELS, TEST_LABELS = np.arange(NUM_TRAIN) % NUM_CLASSES, np.arange(NUM_TEST) % NUM_CLASSES


def write_idx(path: Path, array: np.ndarray) -> None:
    content = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, dtype=">u4").tobytes() + array.tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def make_idx(folder: Path, suffix: str = "") -> None:
    for prefix, images, labels in (("train", TRAIN, TRAIN_LABELS), ("t10k", TEST, TEST_LABELS)):
        write_idx(folder / f"{prefix}-images-idx3-ubyte{suffix}", images)
        write_idx(folder / f"{prefix}-labels-idx1-ubyte{suffix}", labels.astype(np.uint8))


def make_gzipped_idx(folder: Path) -> None:
    make_idx(folder, ".gz")


def make_classes(folder: Path, images: np.ndarray = TRAIN, labels: np.ndarray = TRAIN_LABELS) -> None:
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        path = folder / CLASS_LABEL.names[label] / f"{number:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(image).save(path)


def make_split_classes(folder: Path) -> None:
    make_classes(folder / "train")
    make_classes(folder / "test", TEST, TEST_LABELS)


def make_table(folder: Path, split: str, images: np.ndarray, labels: list, kind: object = CLASS_LABEL) -> None:
    columns = {"image": [PIL.Image.fromarray(image) for image in images], "label": labels}
    table = datasets.Dataset.from_dict(columns, datasets.Features({"image": datasets.Image(), "label": kind}))
    table.to_parquet(str(folder / f"{split}-00000-of-00001.parquet"))


def make_tables(folder: Path) -> None:
    make_table(folder, "train", TRAIN, TRAIN_LABELS.tolist())
    make_table(folder, "test", TEST, TEST_LABELS.tolist())


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hub")
    folder = tmp_path / "source"
    folder.mkdir()
    return folder


def prepare(source: Path, **fields: Any) -> ImageData:
    return prepare_images(ImageDataConfig(**{"path": str(source), "cache_dir": f"{source.parent}/cache", **fields}))


def rows_of(split: ImageSplit) -> set[tuple[bytes, int]]:
    return {(image.tobytes(), int(label)) for image, label in zip(split.images, split.labels, strict=True)}


ALL_TRAIN = {(image.tobytes(), int(label)) for image, label in zip(TRAIN, TRAIN_LABELS, strict=True)}
ALL_TEST = {(image.tobytes(), int(label)) for image, label in zip(TEST, TEST_LABELS, strict=True)}


@pytest.mark.parametrize("make", [make_idx, make_gzipped_idx, make_split_classes, make_tables])
def test_every_local_form_gives_the_same_images(source: Path, make: Callable[[Path], None]) -> None:
    make(source)
    data = prepare(source)
    numbers = make in (make_idx, make_gzipped_idx)
    assert data.class_names == (("0", "1", "2", "3") if numbers else ("ant", "bee", "cat", "dog"))
    assert data.image_shape == data.input_shape == (5, 6, 1)
    assert (len(data.train), len(data.validation), len(data.test)) == (36, 4, 12)
    assert data.train.images.dtype == np.uint8
    assert data.train.labels.dtype == np.int64
    assert rows_of(data.train) | rows_of(data.validation) == ALL_TRAIN
    assert rows_of(data.test) == ALL_TEST


def test_class_folders_without_splits_lose_a_tenth_to_the_test_split(source: Path) -> None:
    make_classes(source)
    data = prepare(source)
    assert (len(data.train), len(data.validation), len(data.test)) == (33, 3, 4)
    assert rows_of(data.train) | rows_of(data.validation) | rows_of(data.test) == ALL_TRAIN


def test_validation_on_the_test_split_leaves_the_training_split_whole(source: Path) -> None:
    make_idx(source)
    data = prepare(source, validation="test")
    np.testing.assert_array_equal(data.train.images[..., 0], TRAIN)
    np.testing.assert_array_equal(data.validation.images[..., 0], TEST)
    np.testing.assert_array_equal(data.test.labels, TEST_LABELS)


def test_limit_keeps_a_fixed_subset_of_each_split(source: Path) -> None:
    make_idx(source)
    whole, limited, again = prepare(source), prepare(source, limit=3), prepare(source, limit=3)
    for name in ("train", "validation", "test"):
        split = getattr(limited, name)
        assert len(split) == 3
        assert rows_of(split) < rows_of(getattr(whole, name))
        np.testing.assert_array_equal(split.images, getattr(again, name).images)
    assert limited.class_names == whole.class_names
    assert limited.fingerprint == again.fingerprint != whole.fingerprint


def test_digits_are_built_in(tmp_path: Path) -> None:
    data = prepare(tmp_path / "none", path="digits")
    assert data.image_shape == (8, 8, 1)
    assert (len(data.train) + len(data.validation), len(data.validation), len(data.test)) == (1437, 143, 360)
    assert (data.train.images.min(), data.train.images.max()) == (0, 255)
    assert np.bincount(data.test.labels).min() >= 20


def test_fingerprint_changes_with_a_pixel_and_a_label_and_not_with_the_place(source: Path) -> None:
    make_tables(source)
    before = prepare(source).fingerprint
    moved = source.parent / "moved"
    source.rename(moved)
    assert prepare(moved).fingerprint == before
    pixels, labels = TRAIN.copy(), TRAIN_LABELS.copy()
    pixels[7, 0, 0] ^= 1
    labels[7] = 0
    make_table(moved, "train", pixels, TRAIN_LABELS.tolist())
    other_pixel = prepare(moved).fingerprint
    make_table(moved, "train", TRAIN, labels.tolist())
    assert len({before, other_pixel, prepare(moved).fingerprint}) == 3


def test_decoded_images_come_from_the_cache_until_it_is_damaged(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[Any] = []
    original = PIL.Image.open

    def note_and_open(file: Any) -> PIL.Image.Image:
        decoded.append(file)
        return original(file)

    monkeypatch.setattr(PIL.Image, "open", note_and_open)
    make_split_classes(source)
    first = prepare(source)
    size = len(decoded)
    assert size >= NUM_TRAIN + NUM_TEST
    np.testing.assert_array_equal(prepare(source).train.images, first.train.images)
    assert len(decoded) == size
    expected = np.array(first.train.images)
    (file,) = source.parent.glob("cache/*/train.images.npy")
    file.write_bytes(file.read_bytes()[:-10])
    np.testing.assert_array_equal(prepare(source).train.images, expected)
    assert len(decoded) == 2 * size


def test_colour_images_have_three_channels(source: Path) -> None:
    colours = draw_pixels(3, 8, 5, 6, 3)
    make_classes(source, colours, TRAIN_LABELS[:8])
    data = prepare(source, validation="test")
    assert data.image_shape == (5, 6, 3)
    assert rows_of(data.train) < {(image.tobytes(), n % NUM_CLASSES) for n, image in enumerate(colours)}


def test_crop_changes_the_input_shape_alone(source: Path) -> None:
    make_idx(source)
    data = prepare(source, random_crop=4)
    assert (data.image_shape, data.input_shape) == ((5, 6, 1), (4, 4, 1))


def test_labels_may_be_names(source: Path) -> None:
    names = [CLASS_LABEL.names[label] for label in TRAIN_LABELS]
    make_table(source, "train", TRAIN, names, datasets.Value("string"))
    data = prepare(source)
    assert data.class_names == ("ant", "bee", "cat", "dog")
    assert rows_of(data.train) | rows_of(data.validation) | rows_of(data.test) == ALL_TRAIN


def break_nothing(source: Path) -> None:
    make_idx(source)


def empty_folder(source: Path) -> None:
    pass


def missing_idx_file(source: Path) -> None:
    make_idx(source)
    (source / "t10k-labels-idx1-ubyte").unlink()


def truncated_idx_file(source: Path) -> None:
    make_idx(source)
    path = source / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-1])


def damaged_gzip(source: Path) -> None:
    make_gzipped_idx(source)
    path = source / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-20])


def wrong_idx_header(source: Path) -> None:
    make_idx(source)
    write_idx(source / "train-images-idx3-ubyte", TRAIN[0])


def unequal_idx_files(source: Path) -> None:
    make_idx(source)
    write_idx(source / "train-images-idx3-ubyte", TRAIN[1:])


def unseen_idx_label(source: Path) -> None:
    make_idx(source)
    write_idx(source / "t10k-labels-idx1-ubyte", TEST_LABELS.astype(np.uint8) + 1)


def empty_idx_split(source: Path) -> None:
    make_idx(source)
    write_idx(source / "t10k-images-idx3-ubyte", TEST[:0])
    write_idx(source / "t10k-labels-idx1-ubyte", TEST_LABELS[:0].astype(np.uint8))


def unreadable_image(source: Path) -> None:
    make_classes(source)
    (source / "bee" / "005.png").write_bytes(b"no image")


def truncated_image(source: Path) -> None:
    make_classes(source)
    path = source / "bee" / "005.png"
    path.write_bytes(path.read_bytes()[:60])


def deep_image(source: Path) -> None:
    make_classes(source)
    PIL.Image.fromarray(TRAIN[0].astype(np.uint16)).save(source / "bee" / "005.png")


def image_of_another_size(source: Path) -> None:
    make_classes(source)
    PIL.Image.fromarray(TRAIN[0, :4]).save(source / "bee" / "005.png")


def one_class(source: Path) -> None:
    make_classes(source, TRAIN, TRAIN_LABELS * 0)


def unseen_class(source: Path) -> None:
    make_split_classes(source)
    (source / "test" / "dog").rename(source / "test" / "emu")


def unlabelled_row(source: Path) -> None:
    make_table(source, "train", TRAIN, [-1, *TRAIN_LABELS[1:].tolist()])


def image_missing_in_row(source: Path) -> None:
    features = datasets.Features({"image": datasets.Image(), "label": CLASS_LABEL})
    columns = {"image": [PIL.Image.fromarray(TRAIN[0]), None, PIL.Image.fromarray(TRAIN[1])], "label": [0, 1, 1]}
    datasets.Dataset.from_dict(columns, features).to_parquet(str(source / "train-00000-of-00001.parquet"))


def images_without_classes(source: Path) -> None:
    for split, images in (("train", TRAIN), ("test", TEST)):
        (source / split).mkdir()
        for number, image in enumerate(images):
            PIL.Image.fromarray(image).save(source / split / f"{number}.png")


def no_training_split(source: Path) -> None:
    make_table(source, "test", TEST, TEST_LABELS.tolist())


@pytest.mark.parametrize(
    ("damage", "fields", "parts"),
    [
        (break_nothing, {"random_crop": 6}, ["random_crop is 6", "5 x 6"]),
        (empty_folder, {}, ["{source}", "cannot be read"]),
        (missing_idx_file, {}, ["{source} lacks the file t10k-labels-idx1-ubyte"]),
        (truncated_idx_file, {}, ["{source}/train-images-idx3-ubyte holds 1199 values, not 1200"]),
        (damaged_gzip, {}, ["{source}/train-images-idx3-ubyte.gz cannot be read"]),
        (wrong_idx_header, {}, ["{source}/train-images-idx3-ubyte is not an idx file of unsigned bytes with 3 axes"]),
        (unequal_idx_files, {}, ["holds 39 images", "train-labels-idx1-ubyte holds 40 labels"]),
        (unseen_idx_label, {}, ["image 3 of {source}/t10k-images-idx3-ubyte has the label 4"]),
        (empty_idx_split, {}, ["{source}, split test is empty"]),
        (unreadable_image, {}, ["{source}/bee/005.png cannot be read as an image"]),
        (truncated_image, {}, ["{source}/bee/005.png cannot be read as an image"]),
        (deep_image, {}, ["{source}/bee/005.png has more than 8 bits"]),
        (image_of_another_size, {}, ["bee/005.png has the size 4 x 6 x 1", "has 5 x 6 x 1"]),
        (one_class, {}, ["{source} has 1 class"]),
        (unseen_class, {}, ["{source}/test/emu is a class without images in {source}/train"]),
        (make_tables, {"image_column": "img"}, ["no column img: set image_column to one of image, label"]),
        (make_tables, {"label_column": "y"}, ["no column y: set label_column to one of image, label"]),
        (make_tables, {"image_column": "label"}, ["column label does not hold images", "(image)"]),
        (unlabelled_row, {}, ["{source}, split train, row 1", "'-1'"]),
        (image_missing_in_row, {}, ["{source}, split train, row 2: the image is missing"]),
        (images_without_classes, {}, ["{source}, split train, row 1: label is missing"]),
        (no_training_split, {}, ["{source} has the splits test, but needs one named train"]),
        (break_nothing, {"path": __file__}, [__file__, "is a file: give a folder"]),
        (break_nothing, {"path": "/no/such/folder"}, ["/no/such/folder does not exist"]),
    ],
)
def test_error_is_one_line_that_names_the_cause(
    source: Path, damage: Callable[[Path], None], fields: dict[str, Any], parts: list[str]
) -> None:
    damage(source)
    with pytest.raises(UserError) as error:
        prepare(source, **fields)
    message = str(error.value)
    assert "\n" not in message
    for part in parts:
        assert part.format(source=source) in message
