"""What the pictures of a stage are drawn from, read when it is asked for and once.

Whatever is not there raises a MissingSourceError: runs of earlier versions lack files, data may have moved.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from dataclasses import fields
from functools import cached_property
from typing import Any, Literal, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from perceiver.config import ImageClassifierConfig, ImageDataConfig, TextClassifierConfig, TextDataConfig
from perceiver.data.image_module import ImageSource
from perceiver.data.images import prepare_images
from perceiver.data.text import prepare_text
from perceiver.data.text_module import TextSource
from perceiver.errors import UserError
from perceiver.inference import Predictor, load
from pipelines.journal import Record
from pipelines.measures import TOKEN_ACCURACY
from pipelines.past_run import PastStage
from pipelines.predictions import PREDICTIONS, Predictions, read_predictions
from pipelines.report.parts import MissingSourceError
from pipelines.stage_folder import MODEL

T = TypeVar("T")
Kind = Literal["masked language model", "text classifier", "image classifier"]


class Sources:
    """The sources of a stage.

    Args:
        stage: The stage.
    """

    def __init__(self, stage: PastStage) -> None:
        self.stage = stage
        self.name = stage.run.name
        self.settings = stage.run.parameters

    @property
    def kind(self) -> Kind:
        """What the stage trains."""
        if "masking" in self.settings:
            return "masked language model"
        return "image classifier" if "num_frequency_bands" in self.settings else "text classifier"

    @property
    def batch_size(self) -> int:
        """Samples per step."""
        return int(self.settings["trainer"]["batch_size"])

    def records(self, kind: str, metric: str = "") -> list[Record]:
        """Return the journal's records of a kind, those that have a metric.

        Raises:
            MissingSourceError: If there are none.
        """
        found = [record for record in self.stage.records if record["kind"] == kind and (not metric or metric in record)]
        if not found:
            raise MissingSourceError(f"no {kind} record has {metric}" if metric else f"there is no {kind} record")
        return found

    @cached_property
    def predictions(self) -> Predictions:
        """Predictions for the test split."""
        try:
            return read_predictions(self.stage.run.folder)
        except FileNotFoundError:
            raise MissingSourceError(f"there is no {PREDICTIONS}") from None
        except UserError as error:
            raise MissingSourceError(str(error)) from None

    @cached_property
    def token_accuracy(self) -> pa.Table:
        """How often each token was to be restored in the test, and how often it was."""
        return self._table(TOKEN_ACCURACY)

    @cached_property
    def system(self) -> list[Mapping[str, Any]]:
        """What the machines measured about themselves, by time."""
        files = [name for name in self.stage.run.folder.names() if name.startswith("system-")]
        lines = [line for name in files for line in (self.stage.run.folder / name).read_bytes().splitlines()]
        records = [record for record in map(_decoded, lines) if record]
        if not records:
            raise MissingSourceError("there is no system-RANK.jsonl")
        return sorted(records, key=lambda record: record["time"])

    @cached_property
    def predictor(self) -> Predictor:
        """The trained model."""
        with (self.stage.run.folder / MODEL).as_local_folder() as folder:
            return _unless_refused(lambda: load(folder))

    @cached_property
    def class_names(self) -> list[str]:
        """Names of a classifier's classes."""
        try:
            config = self.predictor.config
            assert isinstance(config, TextClassifierConfig | ImageClassifierConfig)
            return list(config.class_names)
        except MissingSourceError:
            return [str(number) for number in range(self.predictions.probabilities.shape[1])]

    @cached_property
    def test_texts(self) -> TextSource:
        """The texts that a text classifier was tested on; sample ids are their places."""
        config = self._data_config(TextDataConfig)
        texts = _unless_refused(lambda: prepare_text(config, self.predictor.tokenizer))
        self._check_unchanged(texts.fingerprint)
        return TextSource([texts.test])

    @cached_property
    def test_images(self) -> ImageSource:
        """The images that a classifier was tested on; sample ids are their places."""
        config = self._data_config(ImageDataConfig)
        images = _unless_refused(lambda: prepare_images(config))
        self._check_unchanged(images.fingerprint)
        return ImageSource(images.test, config)

    def _table(self, name: str) -> pa.Table:
        try:
            return pq.read_table(io.BytesIO((self.stage.run.folder / name).read_bytes()))
        except FileNotFoundError:
            raise MissingSourceError(f"there is no {name}") from None
        except pa.ArrowInvalid:
            raise MissingSourceError(f"{name} is damaged") from None

    def _data_config(self, kind: type) -> Any:
        """Return the data's settings, without those that other versions have."""
        known = {field.name for field in fields(kind)}
        return kind(**{name: value for name, value in self.settings["data"].items() if name in known})

    def _check_unchanged(self, fingerprint: str) -> None:
        if fingerprint != self.stage.run.tags["data_fingerprint"]:
            raise MissingSourceError(f"{self.settings['data']['path']} is not what it was when the stage was tested")


def _unless_refused(make: Callable[[], T]) -> T:
    try:
        return make()
    except UserError as error:
        raise MissingSourceError(str(error)) from None


def _decoded(line: bytes) -> dict[str, Any] | None:
    """Return a line of JSON; None where a write was torn."""
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) and "time" in record else None
