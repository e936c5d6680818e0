"""Every way to use a trained model gives the probabilities that the model itself gives, for real reviews and digits."""

from __future__ import annotations

import base64
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import datasets
import mlflow
import numpy as np
import numpy.typing as npt
import onnxruntime
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from perceiver.config import (
    EncoderConfig,
    ImageClassifierConfig,
    ImageDataConfig,
    OptimizerConfig,
    TextClassifierConfig,
    TrainerConfig,
)
from perceiver.inference import Predictor, encode, load
from perceiver.pictures import model_inputs, read_picture
from pipelines.models.export import SUFFIXES, export
from pipelines.models.export_options import ExportOptions
from pipelines.models.registry import CANDIDATE, Origin, add_candidate
from tests.model_servers import mlflow_model_server, own_server
from tests.pipelines import tiny
from tests.pipelines.models.kinds import IMAGE, TEXT
from tests.pipelines.models.test_serve import ask

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

SIZE, REQUEST = 1000, 64
TOLERANCE, ONNX_TOLERANCE = 1e-5, 1e-4
TRAINING: dict[str, Any] = {
    "dropout": 0.0,
    "encoder": EncoderConfig(8, 32, 1, 1, 4, 4),
    "optimizer": OptimizerConfig(learning_rate=0.002, schedule="cosine"),
    "trainer": TrainerConfig(max_epochs=1, batch_size=8),
}

Probabilities = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Case:
    """A trained classifier, real inputs, and what it says of them.

    Attributes:
        kind: What it reads.
        folder: Folder of its stage, with room for what the ways leave.
        inputs: Texts, or PNG files as bytes.
        predictor: The model.
        expected: The model's own probabilities (SIZE, classes).
    """

    kind: str
    folder: Path
    inputs: Sequence[Any]
    predictor: Predictor
    expected: Probabilities

    @property
    def config(self) -> TextClassifierConfig | ImageClassifierConfig:
        return classifier_config(self.predictor)

    @property
    def model(self) -> Path:
        return self.folder / "model"

    @property
    def tracking_uri(self) -> str:
        return f"sqlite:///{self.folder / 'mlflow.db'}"

    @property
    def registered(self) -> str:
        return f"models:/{self.kind}@{CANDIDATE}"

    def requests(self) -> Iterator[Sequence[Any]]:
        return (self.inputs[start : start + REQUEST] for start in range(0, SIZE, REQUEST))


def classifier_config(predictor: Predictor) -> TextClassifierConfig | ImageClassifierConfig:
    assert isinstance(predictor.config, TextClassifierConfig | ImageClassifierConfig)
    return predictor.config


def probabilities_of(predictions: Sequence[Any], predictor: Predictor) -> Probabilities:
    names = classifier_config(predictor).class_names
    return np.array([[prediction["probabilities"][name] for name in names] for prediction in predictions])


def real_inputs(kind: str, real_data: Path) -> list[Any]:
    """Return test inputs of all classes."""
    rows = datasets.load_dataset(str(real_data / {TEXT: "imdb", IMAGE: "mnist"}[kind]), split="test")
    rows = rows.select(range(0, len(rows), len(rows) // SIZE)).select(range(SIZE))
    if kind == TEXT:
        return list(rows["text"])
    return [image["bytes"] for image in rows.cast_column("image", datasets.Image(decode=False))["image"]]


@pytest.fixture(scope="module", params=[TEXT, IMAGE])
def case(request: pytest.FixtureRequest, real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Case:
    """A classifier of a kind after an epoch of real data, which is registered with MLflow."""
    kind, folder = request.param, tmp_path_factory.mktemp(request.param)
    if kind == TEXT:
        data = tiny.text_data(folder, path=str(real_data / "imdb"), limit=2000, max_seq_len=128, vocab_size=2000)
        tiny.train(tiny.text_classifier_config(folder, data=data, **TRAINING), folder)
    else:
        digits = ImageDataConfig(path=str(real_data / "mnist"), limit=4000, random_crop=24, cache_dir=str(folder))
        tiny.train(tiny.image_config(folder, data=digits, num_frequency_bands=8, **TRAINING), folder)
    inputs, predictor = real_inputs(kind, real_data), load(folder)
    expected = probabilities_of(predictor.classify(inputs), predictor)
    made = Case(kind, folder, inputs, predictor, expected)
    pq.write_table(pa.table({kind: inputs}), folder / "inputs.parquet")
    add_candidate(made.tracking_uri, kind, made.model, Origin())
    return made


def run(verb: str, case: Case, *options: str) -> None:
    command = [sys.executable, "-m", "pipelines", verb, f"--model={case.model}", *options]
    done = subprocess.run(command, env={**os.environ, "RAY_ADDRESS": "local"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def from_predict(case: Case) -> Probabilities:
    output = case.folder / "predicted.jsonl"
    run("predict", case, f"--input={case.folder / 'inputs.parquet'}", f"--output={output}")
    return probabilities_of([json.loads(line) for line in output.open(encoding="utf-8")], case.predictor)


def from_batch_predict(case: Case) -> Probabilities:
    output = case.folder / "batches"
    options = ("--num_actors=2", f"--rows_per_shard={SIZE // 5}")
    run("batch-predict", case, f"--input={case.folder / 'inputs.parquet'}", f"--output={output}", *options)
    table = pa.concat_tables([pq.read_table(part) for part in sorted(output.glob("part-*.parquet"))])
    assert table["row"].to_pylist() == list(range(SIZE))
    names = case.config.class_names
    return np.stack([table[f"probability_{name}"].to_numpy() for name in names], axis=1)


def from_pyfunc(case: Case) -> Probabilities:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
        patch.setenv("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
        patch.setenv("MLFLOW_TRACKING_URI", case.tracking_uri)
        model = mlflow.pyfunc.load_model(case.registered)
        rows = model.predict(pd.DataFrame({case.kind: case.inputs}))
    return probabilities_of(rows.to_dict("records"), case.predictor)


def as_json(inputs: Sequence[Any]) -> list[str]:
    return [base64.b64encode(x).decode() if isinstance(x, bytes) else x for x in inputs]


def from_serve(case: Case) -> Probabilities:
    predictions = []
    with own_server(str(case.model), case.folder / "serve.txt") as server:
        for inputs in case.requests():
            status, answer = ask(server, json.dumps({f"{case.kind}s": as_json(inputs)}).encode())
            assert status == 200, answer
            predictions += answer["predictions"]
    return probabilities_of(predictions, case.predictor)


def from_mlflow_serve(case: Case) -> Probabilities:
    predictions = []
    with mlflow_model_server(case.registered, case.folder / "mlflow.txt", case.tracking_uri) as server:
        for inputs in case.requests():
            question = {"dataframe_split": {"columns": [case.kind], "data": [[x] for x in as_json(inputs)]}}
            status, answer = ask(server, json.dumps(question).encode(), "/invocations")
            assert status == 200, answer
            predictions += answer["predictions"]
    return probabilities_of(predictions, case.predictor)


def tensors(case: Case) -> Iterator[tuple[torch.Tensor, ...]]:
    """Yield what an exported model is called with."""
    config, tokenizer = case.config, case.predictor.tokenizer
    for inputs in case.requests():
        if isinstance(config, ImageClassifierConfig):
            pixels = [read_picture(content, config.image_shape, config.margin) for content in inputs]
            yield (torch.from_numpy(model_inputs(pixels, config)),)
        else:
            assert tokenizer is not None
            yield encode(tokenizer, inputs, config.max_seq_len)


def exported(case: Case, format_: Literal["onnx", "torch-export"]) -> Path:
    file = case.folder / f"model{SUFFIXES[format_]}"
    with redirect_stdout(io.StringIO()):
        assert export(ExportOptions(str(case.model), str(file), format_)) == 0
    return file


def from_onnx(case: Case) -> Probabilities:
    session = onnxruntime.InferenceSession(exported(case, "onnx"))
    names = [node.name for node in session.get_inputs()]
    answers = [session.run(None, dict(zip(names, map(np.asarray, x), strict=True)))[0] for x in tensors(case)]
    return np.concatenate(answers)


def from_torch_export(case: Case) -> Probabilities:
    module = torch.export.load(exported(case, "torch-export")).module()
    with torch.no_grad():
        return torch.cat([module(*x) for x in tensors(case)]).double().numpy()


WAYS = {
    "predict": from_predict,
    "batch-predict": from_batch_predict,
    "pyfunc": from_pyfunc,
    "serve": from_serve,
    "mlflow models serve": from_mlflow_serve,
    "onnx": from_onnx,
    "torch-export": from_torch_export,
}


def test_inputs_are_told_apart(case: Case) -> None:
    assert np.ptp(case.expected, axis=0).min() > 0.05
    assert len(np.unique(case.expected.round(4), axis=0)) > SIZE / 2


@pytest.mark.parametrize("way", WAYS)
def test_a_way_gives_the_models_own_probabilities(case: Case, way: str) -> None:
    found = WAYS[way](case)
    assert found.shape == case.expected.shape
    difference = np.abs(found - case.expected).max()
    print(f"\n{case.kind:6}{way:20} greatest difference {difference:.1e}", end=" ")
    assert difference <= (ONNX_TOLERANCE if way == "onnx" else TOLERANCE)
