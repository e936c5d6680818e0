"""The classifiers of a run, and the baselines, on one axis."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.ticker import PercentFormatter

from pipelines.past_run import PastStage
from pipelines.report.parts import BLUE, GREY, Picture, new_axes, picture, shortened
from pipelines.sentiment import BASELINE_NAMES, BASELINES
from pipelines.storage import Storage

_STAGES = {"scratch": "from scratch", "frozen": "frozen encoder", "finetune": "fine-tuned"}


def comparison(folder: Storage, stages: Sequence[PastStage]) -> list[Picture]:
    """Draw the test accuracy of a run's classifiers beside that of the baselines; nothing where there is only one."""
    tested = {
        _STAGES.get(stage.run.name, stage.run.name): (stage.result["test_accuracy"], stage.result.get("test_samples"))
        for stage in stages
        if "test_accuracy" in stage.result and "masking" not in stage.run.parameters
    }
    kept: Mapping[str, Any] = (folder / BASELINES).read_json() or {}
    baselines = {BASELINE_NAMES.get(name, name): value for name, value in kept.get("test_accuracy", {}).items()}
    if not tested or len(tested) + len(baselines) < 2:
        return []
    bars = [(name, value, BLUE, half_interval(value, count)) for name, (value, count) in tested.items()]
    bars += [(name, value, GREY, math.nan) for name, value in baselines.items()]
    axes = new_axes("test accuracy", size=(4.8, 0.9 + 0.42 * len(bars)))
    names, values, colors, errors = zip(*reversed(bars), strict=True)
    places = range(len(bars))
    axes.barh(places, values, color=colors, height=0.65)
    axes.errorbar(values, places, xerr=errors, fmt="none", ecolor="#1a202c", capsize=2, linewidth=1)
    for place, value, error in zip(places, values, errors, strict=True):
        axes.text(value + np.nan_to_num(error) + 0.012, place, f"{value:.1%}", va="center", fontsize=9)
    axes.set_yticks(places, [shortened(name, 28) for name in names])
    axes.set_xlim(0, 1.14)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1.0])
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    axes.grid(visible=False, axis="y")
    caption = "Blue: stages, with the 95 % interval that the size of the test split leaves; grey: baselines."
    return [picture("comparison", "Test accuracy", axes, caption)]


def half_interval(accuracy: float, samples: float | None) -> float:
    """Return how far the true accuracy may be from a measured one, at 95 %; NaN where the samples were not counted."""
    return 1.96 * math.sqrt(accuracy * (1 - accuracy) / samples) if samples else math.nan
