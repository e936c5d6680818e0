"""Wraps a model folder as MLflow's pyfunc model: a script, the package perceiver, and the folder as its artifact."""

from __future__ import annotations

import io
import logging
import shutil
import tempfile
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import perceiver
from perceiver.config import ImageClassifierConfig, MaskedLanguageModelConfig, ModelConfig
from perceiver.data.tokenizer import MASK_TOKEN
from perceiver.saving import read_config

if TYPE_CHECKING:
    from mlflow.models import ModelSignature

_REQUIREMENTS = ("mlflow", "torch", "einops", "numpy", "pandas", "safetensors", "tokenizers")
_SCRIPT = Path(__file__).with_name("pyfunc.py")


def write_pyfunc(model: Path, folder: Path) -> None:
    """Write a model folder as a pyfunc model that loads without this project and without unpickling anything.

    Args:
        model: The model folder.
        folder: Folder to create.
    """
    import mlflow.pyfunc

    config = read_config(model)
    logger = logging.getLogger("mlflow")
    level = logger.level
    with tempfile.TemporaryDirectory(prefix="perceiver-code-") as temporary, warnings.catch_warnings():
        code = Path(temporary) / "perceiver"
        shutil.copytree(Path(perceiver.__file__).parent, code, ignore=shutil.ignore_patterns("__pycache__"))
        warnings.simplefilter("ignore")
        logger.setLevel(logging.ERROR)
        try:
            mlflow.pyfunc.save_model(
                folder,
                python_model=str(_SCRIPT),
                artifacts={"model": str(model)},
                code_paths=[str(code)],
                signature=_signature(config),
                input_example=_example(config),
                pip_requirements=_requirements(config),
            )
        finally:
            logger.setLevel(level)


def _requirements(config: ModelConfig) -> list[str]:
    """Pin what the model runs with; a build such as +cpu is this machine's affair."""
    names = [*_REQUIREMENTS, *(["pillow"] if isinstance(config, ImageClassifierConfig) else [])]
    return [f"{name}=={version(name).partition('+')[0]}" for name in names]


def _signature(config: ModelConfig) -> ModelSignature:
    from mlflow.models import ModelSignature
    from mlflow.types.schema import Array, ColSpec, DataType, Map, Object, ParamSchema, ParamSpec, Property, Schema

    kind, name = (DataType.binary, "image") if isinstance(config, ImageClassifierConfig) else (DataType.string, "text")
    inputs = Schema([ColSpec(kind, name)])
    if isinstance(config, MaskedLanguageModelConfig):
        fill = Object([Property("token", DataType.string), Property("probability", DataType.double)])
        params = ParamSchema([ParamSpec("top_k", DataType.long, 5)])
        return ModelSignature(inputs, Schema([ColSpec(Array(Array(fill)), "fills")]), params)
    outputs = Schema(
        [
            ColSpec(DataType.string, "label"),
            ColSpec(DataType.double, "probability"),
            ColSpec(Map(DataType.double), "probabilities"),
        ]
    )
    return ModelSignature(inputs, outputs)


def _example(config: ModelConfig) -> Any:
    import pandas as pd

    if isinstance(config, ImageClassifierConfig):
        return pd.DataFrame({"image": [_grey_picture(config.image_shape)]})
    text = f"i have watched this {MASK_TOKEN}" if isinstance(config, MaskedLanguageModelConfig) else "what a film"
    return pd.DataFrame({"text": [text]})


def _grey_picture(image_shape: tuple[int, int, int]) -> bytes:
    import PIL.Image

    height, width, channels = image_shape
    mode = {1: "L", 4: "RGBA"}.get(channels, "RGB")
    content = io.BytesIO()
    PIL.Image.new(mode, (width, height)).save(content, "PNG")
    return content.getvalue()
