"""A trained model as MLflow serves it: a script that MLflow keeps beside the weights and runs when it loads the model.

Nothing is pickled. MLflow copies this file and the package perceiver, which alone it may import.
"""

from __future__ import annotations

from typing import Any

import mlflow
import pandas as pd
from mlflow.pyfunc import PythonModel

from perceiver.config import ImageClassifierConfig, MaskedLanguageModelConfig
from perceiver.errors import UserError
from perceiver.inference import Predictor, load, named_fills
from perceiver.pictures import model_inputs, read_picture


class PerceiverModel(PythonModel):
    """Classifies the column "text", or "image" (PNG or JPEG files as bytes; base64 in JSON), or fills masks in "text".

    A classifier returns the columns label, probability and probabilities (by class name). A masked language model
    returns the column fills: for each mask of a text the `top_k` most probable tokens and their probabilities.
    """

    def load_context(self, context: Any) -> None:
        """Load the model folder among the artifacts."""
        self._predictor: Predictor = load(context.artifacts["model"])

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Predict for each row.

        Raises:
            MlflowException: If the inputs are not of the model's kind.
        """
        try:
            return self._predict(model_input, params or {})
        except UserError as error:
            raise mlflow.MlflowException.invalid_parameter_value(str(error)) from None

    def _predict(self, rows: pd.DataFrame, params: dict[str, Any]) -> pd.DataFrame:
        config = self._predictor.config
        if isinstance(config, MaskedLanguageModelConfig):
            found = self._predictor.fill(rows["text"].tolist(), int(params.get("top_k", 5)))
            return pd.DataFrame({"fills": [named_fills(text) for text in found]})
        if isinstance(config, ImageClassifierConfig):
            pixels = [read_picture(content, config.image_shape, config.margin) for content in rows["image"]]
            return pd.DataFrame(self._predictor.classify(model_inputs(pixels, config)))
        return pd.DataFrame(self._predictor.classify(rows["text"].tolist()))


mlflow.models.set_model(PerceiverModel())
