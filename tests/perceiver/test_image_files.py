"""Image files become what the classifier was trained on."""

from __future__ import annotations

import io
import json
import logging
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from perceiver.build import build_model
from perceiver.config import EncoderConfig, ImageClassifierConfig, ImageDataConfig
from perceiver.data.image_module import ImageDataModule
from perceiver.data.images import prepare_images
from perceiver.data.sampling import Loading
from perceiver.errors import UserError
from perceiver.image_files import read_images
from perceiver.inference import Predictor, load
from perceiver.saving import config_from_json, config_to_json, save_model

ENCODER = EncoderConfig(2, 8, 1, 1, 1, 1)
GREY = ImageClassifierConfig(encoder=ENCODER, image_shape=(6, 4, 1), num_frequency_bands=2, class_names=("a", "b"))
COLOUR = ImageClassifierConfig(encoder=ENCODER, image_shape=(6, 4, 3), num_frequency_bands=2, class_names=("a", "b"))


def picture(shape: tuple[int, ...], mode: str | None = None) -> bytes:
    image = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))
    stream = io.BytesIO()
    (image if mode is None else image.convert(mode)).save(stream, "PNG")
    return stream.getvalue()


@pytest.mark.parametrize(("normalize", "crop"), [(True, None), (False, None), (True, 6)])
def test_files_become_what_evaluation_saw(tmp_path: Path, normalize: bool, crop: int | None) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (12, 8, 9), dtype=np.uint8)
    for split in ("train", "test"):
        for i, image in enumerate(pixels):
            file = tmp_path / "data" / split / "ab"[i % 2] / f"{i:02}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            PIL.Image.fromarray(image).save(file)
    data_config = ImageDataConfig(
        path=str(tmp_path / "data"), cache_dir=str(tmp_path / "cache"), normalize=normalize, random_crop=crop
    )
    data = prepare_images(data_config)
    batch = next(iter(ImageDataModule(data, data_config, Loading(12, seed=0)).test_dataloader()))
    config = ImageClassifierConfig(image_shape=data.input_shape, normalize=normalize, margin=data.margin)
    files = sorted((tmp_path / "data" / "test").rglob("*.png"))
    np.testing.assert_allclose(read_images(files, config), batch["images"].numpy(), atol=1e-6)


@pytest.mark.parametrize(("config", "channels"), [(GREY, 1), (COLOUR, 3)])
@pytest.mark.parametrize(("shape", "mode"), [((6, 4), None), ((6, 4, 3), None), ((6, 4, 4), None), ((6, 4, 3), "P")])
def test_grey_and_colour_are_converted(
    config: ImageClassifierConfig, channels: int, shape: tuple[int, ...], mode: str | None
) -> None:
    images = read_images([picture(shape, mode)], config)
    assert images.shape == (1, 6, 4, channels)
    assert images.dtype == np.float32
    assert -1.0 <= images.min() < 0.0 < images.max() <= 1.0


def test_another_size_is_resized_and_said_or_refused(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="perceiver"):
        assert read_images([picture((9, 9))], GREY).shape == (1, 6, 4, 1)
    assert "images of another size are resized to 6 x 4 pixels" in caplog.text
    with pytest.raises(UserError, match="image 1 is 9 x 9 pixels, but the model was trained on 6 x 4: resize it"):
        read_images([picture((9, 9))], GREY, resize=False)


def test_the_centre_of_whole_images_is_taken() -> None:
    pixels = np.zeros((10, 8), np.uint8)
    pixels[2:8, 2:6] = 255
    stream = io.BytesIO()
    PIL.Image.fromarray(pixels).save(stream, "PNG")
    config = ImageClassifierConfig(image_shape=(6, 4, 1), margin=(4, 4))
    assert (read_images([stream.getvalue()], config) == 1.0).all()


@pytest.mark.parametrize("content", [b"", b"no image", picture((6, 4))[:60]])
def test_a_broken_image_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.png").write_bytes(content)
    with pytest.raises(UserError, match=r"x\.png cannot be read as an image"):
        read_images([tmp_path / "x.png"], GREY)


def test_classify_takes_files_as_it_takes_their_values(tmp_path: Path) -> None:
    predictor = Predictor(build_model(GREY), GREY, batch_size=2)
    files = [tmp_path / f"{i}.png" for i in range(3)]
    for i, file in enumerate(files):
        file.write_bytes(picture((6 + i, 4)))
    assert predictor.classify(files) == predictor.classify(read_images(files, GREY))
    assert predictor.classify([str(file) for file in files]) == predictor.classify(files)
    with pytest.raises(UserError, match="give a list"):
        predictor.classify(str(files[0]))
    with pytest.raises(UserError, match=r"1\.png is 7 x 4 pixels"):
        predictor.classify(files, resize=False)


def test_a_configuration_without_the_new_fields_has_their_defaults() -> None:
    values = json.loads(config_to_json(GREY))
    del values["normalize"], values["margin"]
    assert config_from_json(json.dumps(values)) == GREY


def test_a_model_is_found_in_its_stage_and_run(tmp_path: Path) -> None:
    for names, stage in ((("a", "b"), "frozen"), (("c", "d"), "finetune")):
        config = ImageClassifierConfig(encoder=ENCODER, num_frequency_bands=2, class_names=names)
        save_model(tmp_path / stage / "model", build_model(config), config)
    assert load(tmp_path / "frozen").config == load(tmp_path / "frozen" / "model").config
    with pytest.raises(UserError, match="holds the models of finetune, frozen: name the folder of one"):
        load(tmp_path)
    (tmp_path / "config.yaml").write_text("data: {}\nmlm: {}\nfrozen: {}\nfinetune: {}\n")
    assert load(tmp_path).config == load(tmp_path / "finetune").config
