"""What MLflow gets of a model: it predicts what the model does, needs no checkout, and nothing in it is a pickle."""

from __future__ import annotations

import io
import os
import pickletools
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import PIL.Image
import pytest
import yaml

from perceiver.inference import load
from perceiver.pictures import model_inputs, read_picture
from pipelines.models.flavor import write_pyfunc
from tests.pipelines.models.kinds import CONFIGS, IMAGE, IMAGE_SHAPE, MLM, TEXT, save


@pytest.fixture(scope="module", params=[TEXT, IMAGE, MLM])
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, Path]:
    """A kind of model, its folder, and what is written for MLflow."""
    root = tmp_path_factory.mktemp(request.param)
    write_pyfunc(save(request.param, root / "model"), root / "pyfunc")
    return request.param, root / "model", root / "pyfunc"


@pytest.fixture(autouse=True)
def _no_pickles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    monkeypatch.setenv("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")


def png(value: int) -> bytes:
    content = io.BytesIO()
    PIL.Image.new("L", IMAGE_SHAPE[:2], value).save(content, "PNG")
    return content.getvalue()


def test_it_predicts_what_the_model_predicts(written: tuple[str, Path, Path]) -> None:
    kind, model, pyfunc = written
    ours, theirs = load(model), mlflow.pyfunc.load_model(str(pyfunc))
    expected: list[dict[str, Any]]
    if kind == IMAGE:
        pictures = [png(0), png(200)]
        pixels = [read_picture(content, IMAGE_SHAPE) for content in pictures]
        expected = [dict(found) for found in ours.classify(model_inputs(pixels, CONFIGS[IMAGE]))]  # type: ignore[arg-type]
        rows = theirs.predict(pd.DataFrame({"image": pictures}))
    elif kind == TEXT:
        texts = ["what a mess", "a good film"]
        expected = [dict(found) for found in ours.classify(texts)]
        rows = theirs.predict(pd.DataFrame({"text": texts}))
    else:
        text = "i have [MASK] this [MASK]"
        found = ours.fill([text], 2)[0]["fills"]
        expected = [{"fills": [[{"token": token, "probability": p} for token, p in mask] for mask in found]}]
        rows = theirs.predict(pd.DataFrame({"text": [text]}), params={"top_k": 2})
    assert rows.to_dict("records") == expected


def test_nothing_in_it_is_a_pickle_or_an_archive(written: tuple[str, Path, Path]) -> None:
    files = [path for path in written[2].rglob("*") if path.is_file() and path.suffix != ".pyc"]
    assert len(files) > 20
    for path in files:
        assert not _is_pickle(path.read_bytes()), path
        assert not zipfile.is_zipfile(path), path


def _is_pickle(content: bytes) -> bool:
    """Return whether a file is a pickle from its first byte to its last."""
    try:
        *_, (last, _, position) = pickletools.genops(content)
    except Exception:
        return False
    return last.name == "STOP" and position == len(content) - 1


def test_signature_example_and_requirements_say_how_to_use_it(written: tuple[str, Path, Path]) -> None:
    kind, _, pyfunc = written
    described = mlflow.models.Model.load(str(pyfunc))
    assert described.signature.inputs.input_names() == ["image" if kind == IMAGE else "text"]
    assert described.signature.outputs.input_names() == (
        ["fills"] if kind == MLM else ["label", "probability", "probabilities"]
    )
    example = described.load_input_example(str(pyfunc))
    assert len(mlflow.pyfunc.load_model(str(pyfunc)).predict(example)) == 1
    requirements = (pyfunc / "requirements.txt").read_text().split()
    assert all("==" in line and "+" not in line for line in requirements)
    assert {"torch", "tokenizers", "safetensors"} <= {line.partition("=")[0] for line in requirements}
    assert "python_model" not in yaml.safe_load((pyfunc / "MLmodel").read_text())["flavors"]["python_function"]


@pytest.mark.slow
def test_it_loads_without_the_checkout(written: tuple[str, Path, Path], tmp_path: Path) -> None:
    code = (
        "import mlflow, sys; m = mlflow.pyfunc.load_model(sys.argv[1]); import perceiver.inference as i;"
        "assert i.__file__.startswith(sys.argv[1]), i.__file__; print(len(m.predict(m.input_example)))"
    )
    environment = {**os.environ, "PYTHONPATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", code, str(written[2])], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "1"
