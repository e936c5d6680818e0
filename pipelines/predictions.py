"""predictions.parquet: what a classifier said of each sample of the test split."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from perceiver.errors import UserError
from pipelines.storage import Storage

PREDICTIONS = "predictions.parquet"


@dataclass(frozen=True)
class Predictions:
    """The predictions of a stage, in ascending order of the samples.

    Attributes:
        sample_ids: Numbers of the samples within the test split (n,).
        labels: Their classes (n,).
        predicted: The likeliest classes (n,).
        probabilities: Probability of every class (n, classes).
    """

    sample_ids: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]
    predicted: npt.NDArray[np.int64]
    probabilities: npt.NDArray[np.float32]

    @property
    def right(self) -> npt.NDArray[np.bool_]:
        """Whether each sample was predicted as it is (n,)."""
        return self.predicted == self.labels

    @property
    def confidence(self) -> npt.NDArray[np.float32]:
        """Probability of the likeliest class (n,)."""
        return self._probability_of(self.predicted)

    @property
    def probability_of_label(self) -> npt.NDArray[np.float32]:
        """Probability of each sample's own class (n,)."""
        return self._probability_of(self.labels)

    def _probability_of(self, classes: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        chosen: npt.NDArray[np.float32] = self.probabilities[np.arange(len(classes)), classes]
        return chosen

    def worst_errors(self, most: int) -> npt.NDArray[np.int64]:
        """Return the rows of the wrong predictions, those of the highest probability first."""
        wrong = np.flatnonzero(~self.right)
        return wrong[np.argsort(-self.confidence[wrong], kind="stable")][:most]


def read_predictions(folder: Storage) -> Predictions:
    """Read the predictions that a stage left in its folder.

    Raises:
        FileNotFoundError: If it left none.
        UserError: If the file is damaged, or has no rows.
    """
    file = folder / PREDICTIONS
    content = file.read_bytes()
    try:
        table = pq.read_table(io.BytesIO(content)).sort_by("sample_id")
        if not len(table):
            raise ValueError("it is empty")
        sample_ids, labels, predicted = (table[name].to_numpy() for name in ("sample_id", "label", "predicted"))
        return Predictions(sample_ids, labels, predicted, np.stack(table["probabilities"].to_numpy()))
    except (pa.ArrowException, KeyError, ValueError) as error:
        raise UserError(f"{file} is damaged ({str(error).splitlines()[0]}): run the stage again") from None
