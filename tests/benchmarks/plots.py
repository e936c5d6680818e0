"""The pictures of the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_LABELS = {"ours": "ours", "plain": "plain formulation"}


def plot_curves(losses: Mapping[str, Sequence[float]], file: Path) -> None:
    """Plot the losses of both models by step, and below them how far they are apart.

    Args:
        losses: Ours and plain, one number per step.
        file: Picture to write.
    """
    figure, (above, below) = _subplots(2, 1, figsize=(8, 6), sharex=True, height_ratios=(2, 1))
    steps = range(1, len(losses["ours"]) + 1)
    above.plot(steps, losses["plain"], label="plain formulation", linewidth=3, alpha=0.4)
    above.plot(steps, losses["ours"], label="ours, every trick on", linewidth=1)
    above.set_ylabel("loss")
    above.legend()
    differences = [max(abs(a - b), 1e-9) for a, b in zip(losses["ours"], losses["plain"], strict=True)]
    below.semilogy(steps, differences, color="black", linewidth=1)
    below.axhline(1e-3, color="red", linestyle="--", linewidth=1, label="target: 0.001")
    below.set_ylabel("absolute difference")
    below.set_xlabel("training step")
    below.legend()
    _save(figure, file)


def plot_growth(growth: Mapping[str, Mapping[str, Mapping[str, Any]]], file: Path) -> None:
    """Plot seconds and memory of a step by the size of its inputs, one column for each kind of input.

    Args:
        growth: See tests.benchmarks.growth.measure_growth.
        file: Picture to write.
    """
    figure, axes = _subplots(2, len(growth), figsize=(10, 7), sharex="col", squeeze=False)
    for column, (kind, implementations) in enumerate(growth.items()):
        for name, results in implementations.items():
            measured = {int(extent): result for extent, result in results.items() if "failure" not in result}
            seconds = [result["seconds"] for result in measured.values()]
            mebibytes = [max(result["bytes"] / 2**20, 1) for result in measured.values()]
            axes[0][column].loglog(list(measured), seconds, marker="o", label=_LABELS[name])
            axes[1][column].loglog(list(measured), mebibytes, marker="o", label=_LABELS[name])
        extents = [int(extent) for extent in next(iter(implementations.values()))]
        axes[1][column].set_xticks(extents, [str(extent) for extent in extents])
        axes[1][column].tick_params(axis="x", which="minor", bottom=False, labelbottom=False)
        axes[1][column].set_xlabel(kind)
        axes[0][column].legend()
    axes[0][0].set_ylabel("seconds a step")
    axes[1][0].set_ylabel("memory of a step in MiB")
    for axis in axes.flat:
        axis.grid(visible=True, alpha=0.3)
    _save(figure, file)


def _subplots(*shape: int, **options: Any) -> Any:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    return pyplot.subplots(*shape, layout="constrained", **options)


def _save(figure: Any, file: Path) -> None:
    from matplotlib import pyplot

    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=120)
    pyplot.close(figure)
