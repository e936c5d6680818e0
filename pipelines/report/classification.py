"""How good a classifier's predictions are: which classes it mixes up, and whether its probabilities are true."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from matplotlib.ticker import PercentFormatter
from sklearn.calibration import calibration_curve
from sklearn.metrics import confusion_matrix, roc_auc_score, roc_curve

from pipelines.predictions import Predictions
from pipelines.report.parts import BLUE, GREY, MissingSourceError, Picture, new_axes, picture, shortened
from pipelines.report.sources import Sources

_BINS = 10
_FEW = 4
_MOST_NUMBERS = 12  # classes whose numbers fit into the cells
_MOST_NAMES = 40


def confusion(sources: Sources) -> list[Picture]:
    """Draw the confusion matrix."""
    predictions, names = sources.predictions, [shortened(name, 14) for name in sources.class_names]
    counts = confusion_matrix(predictions.labels, predictions.predicted, labels=np.arange(len(names)))
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes = new_axes("prediction", "label", (4.8, 3.1 if len(names) <= _FEW else 4.4))
    axes.grid(visible=False)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    if len(names) <= _MOST_NAMES:
        turned = 90 if max(map(len, names)) > 3 and len(names) > _FEW else 0
        axes.set_xticks(range(len(names)), names, rotation=turned)
        axes.set_yticks(range(len(names)), names)
    if len(names) <= _MOST_NUMBERS:
        size = 9 if len(names) <= _FEW else 6.5
        for (row, column), share in np.ndenumerate(shares):
            color = "white" if share > 0.6 else "#2d3748"
            text = f"{share:.0%}\n{counts[row, column]:,}" if counts[row, column] else ""
            axes.text(column, row, text, ha="center", va="center", color=color, fontsize=size)
    caption = f"Each row is a class of the {len(predictions.labels):,} test samples: what became of it, and how many."
    return [picture("confusion", "Confusion matrix", axes, caption)]


@dataclass(frozen=True)
class Calibration:
    """Predictions in bins of like confidence; bins without any are left out.

    Attributes:
        confidence: Mean probability of the predicted class in each bin (k,).
        accuracy: Share of right predictions in each bin (k,).
        counts: Predictions in each bin (k,).
    """

    confidence: npt.NDArray[np.float64]
    accuracy: npt.NDArray[np.float64]
    counts: npt.NDArray[np.int64]

    @property
    def error(self) -> float:
        """Expected calibration error: the mean distance of confidence and accuracy (arXiv:1706.04599, eq. 3)."""
        return float(np.average(np.abs(self.accuracy - self.confidence), weights=self.counts))


def calibrate(predictions: Predictions) -> Calibration:
    """Put predictions into bins of equal width by the probability of the predicted class."""
    confidence = np.clip(predictions.confidence.astype(np.float64), 0, 1)
    right = predictions.right.astype(int)
    accuracy, mean = calibration_curve(right, confidence, n_bins=_BINS, pos_label=1)
    inner_edges = np.linspace(0, 1, _BINS + 1)[1:-1]
    counts = np.bincount(np.searchsorted(inner_edges, confidence))
    return Calibration(mean, accuracy, counts[counts > 0])


def reliability(sources: Sources) -> list[Picture]:
    """Draw the accuracy of predictions against their probability."""
    found = calibrate(sources.predictions)
    axes = new_axes("probability of the prediction", "accuracy")
    axes.plot([0, 1], [0, 1], color=GREY, linestyle="--", linewidth=1, label="perfect")
    axes.plot(found.confidence, found.accuracy, color=BLUE, linewidth=1.2)
    axes.scatter(found.confidence, found.accuracy, s=12 + 160 * found.counts / found.counts.max(), color=BLUE)
    axes.set(xlim=(min(0.5, float(found.confidence.min())) - 0.02, 1.02), ylim=(-0.02, 1.06))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(PercentFormatter(1.0))
    axes.legend(loc="lower right")
    caption = (
        f"Expected calibration error {found.error:.2%} ({_BINS} bins). A larger dot stands for more predictions; "
        "below the dashed line the model is too sure of itself."
    )
    return [picture("reliability", "Reliability", axes, caption)]


def roc(sources: Sources) -> list[Picture]:
    """Draw the ROC curve of a classifier with two classes."""
    predictions, names = sources.predictions, sources.class_names
    if len(np.unique(predictions.labels)) < 2:
        raise MissingSourceError("the test split has one class only")
    scores = predictions.probabilities[:, 1]
    false_positives, true_positives, _ = roc_curve(predictions.labels, scores)
    area = roc_auc_score(predictions.labels, scores)
    axes = new_axes("false positives", "true positives")
    axes.plot([0, 1], [0, 1], color=GREY, linestyle="--", linewidth=1)
    axes.plot(false_positives, true_positives, color=BLUE, label=f"AUC {area:.4f}")
    axes.fill_between(false_positives, true_positives, color=BLUE, alpha=0.08)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(PercentFormatter(1.0))
    axes.legend(loc="lower right")
    caption = f"How many of class {shortened(names[1])} are found, against how many others are taken for it."
    return [picture("roc", "ROC curve", axes, caption)]
