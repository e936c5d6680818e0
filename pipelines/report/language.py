"""What a masked language model learned: its fills of the sample texts, and which tokens it restores."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.ticker import PercentFormatter

from pipelines.journal import Record
from pipelines.report.parts import (
    BLUE,
    Cell,
    MissingSourceError,
    Picture,
    ShadedTable,
    label_log_axis,
    new_axes,
    picture,
    shade_of,
)
from pipelines.report.sources import Sources

_MOST_EPOCHS = 24
_BINS_PER_DECADE = 3


def fills(sources: Sources) -> list[ShadedTable]:
    """Show the likeliest token for each mask of the sample texts after each epoch."""
    records = sources.records("fills")
    if len(records) > _MOST_EPOCHS:
        records = [records[place] for place in np.linspace(0, len(records) - 1, _MOST_EPOCHS).round().astype(int)]
    columns = [str(record["epoch"] + 1) for record in records]
    texts = [sample["text"] for sample in records[-1]["samples"]]
    groups = [(text, _rows(records, number)) for number, text in enumerate(texts)]
    caption = "The likeliest token after each epoch; the darker, the more probable."
    return [ShadedTable("Fills of the sample texts", caption, columns, [group for group in groups if group[1]])]


def _rows(records: Sequence[Record], number: int) -> list[tuple[str, list[Cell]]]:
    """Return a row for each mask of a sample."""
    of_epochs = [record["samples"][number]["fills"] for record in records]
    return [(f"mask {mask + 1}", [_cell(masks[mask]) for masks in of_epochs]) for mask in range(len(of_epochs[-1]))]


def _cell(tokens: Sequence[tuple[str, float]]) -> Cell:
    token, probability = tokens[0]
    hint = ", ".join(f"{other} {float(share):.1%}" for other, share in tokens)
    return Cell(token, shade_of(float(probability)), hint)


def token_accuracy(sources: Sources) -> list[Picture]:
    """Draw how often frequent and rare tokens are restored."""
    table = sources.token_accuracy
    counts, correct = table.column("count").to_numpy(), table.column("correct").to_numpy()
    if not counts.any():
        raise MissingSourceError("no token was to be restored")
    edges, accuracies, tokens = accuracy_by_frequency(counts, correct)
    axes = new_axes("times that a token was to be restored", "restored")
    bars = axes.bar(edges[:-1], accuracies, width=np.diff(edges), align="edge", color=BLUE, edgecolor="white")
    axes.bar_label(bars, [f"{number:,}" for number in tokens], fontsize=7.5, padding=2)
    axes.set_xscale("log")
    label_log_axis(axes.xaxis)
    axes.set_ylim(0, max(float(accuracies.max()) * 1.15, 0.05))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    total = f"{correct.sum() / counts.sum():.1%} of {counts.sum():,} masked tokens of the test split were restored."
    caption = f"Above each bar: how many different tokens are in it. {total}"
    return [picture("token-accuracy", "Accuracy by token frequency", axes, caption)]


def accuracy_by_frequency(
    counts: npt.NDArray[np.int64], correct: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Put tokens into bins of like frequency, on a log axis; bins at either end without a token are left out.

    Args:
        counts: Times that each token was to be restored (n,).
        correct: Times that it was (n,).

    Returns:
        Edges of the bins (k + 1,), the share of the masks that was restored in each bin (k,), and its tokens (k,).
    """
    seen = counts > 0
    counts, correct = counts[seen], correct[seen]
    bins = np.floor(np.log10(counts) * _BINS_PER_DECADE + 1e-9).astype(int)
    first = bins.min()
    edges = 10.0 ** (np.arange(first, bins.max() + 2) / _BINS_PER_DECADE)
    tokens = np.bincount(bins - first)
    masks, restored = np.bincount(bins - first, counts), np.bincount(bins - first, correct)
    return edges, np.divide(restored, masks, out=np.zeros_like(masks), where=masks > 0), tokens
