"""Markdown tables of measured rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

import numpy as np

from tests.benchmarks.measure import Row, peak_memory, rate, ratio, seconds_per_step
from tests.benchmarks.workloads import OURS, OURS_KEPT, PLAIN

_MEBIBYTE = 2**20


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table, numbers to the right."""
    is_text = [all(not row[i][:1].isdigit() for row in rows) for i in range(len(header))]
    rule = ["---" if text else "---:" for text in is_text]
    return "\n".join(f"| {' | '.join(row)} |" for row in [header, rule, *rows])


def seconds(value: float) -> str:
    """Return seconds with two or three digits that matter."""
    return f"{value:.2f}" if value >= 1 else f"{value:.3f}" if value >= 0.01 else f"{value:.4f}"


def times(value: float) -> str:
    """Return a ratio."""
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def mebibytes(value: float) -> str:
    """Return bytes in MiB."""
    return f"{value / _MEBIBYTE:,.0f}"


def comparison_table(rows: Sequence[Row], differences: Mapping[str, str], unit: str) -> str:
    """Return the table of the implementations of a workload in one regime.

    Args:
        rows: See tests.benchmarks.measure.
        differences: How a peer's architecture differs from ours, by its name.
        unit: What a row's first figure is seconds of.
    """
    by_name = {row["name"]: row for row in rows}
    has_tokens = any(done["tokens"] for row in rows for done in row["rounds"])
    header = ["implementation", f"s a {unit}", "samples/s", *(["tokens/s"] if has_tokens else [])]
    header += [
        "against plain",
        "ours is faster by",
        "MiB of work",
        "MiB in all",
        "parameters",
        "how it differs from ours",
    ]
    lines = []
    for row in rows:
        difference = differences.get(row["name"], "")
        if row["failure"]:
            empty = [""] * (len(header) - 3)
            lines.append([row["name"], f"failed: {row['failure']}", *empty, difference])
            continue
        peak, growth = peak_memory(row)
        lines.append(
            [
                row["name"],
                seconds(seconds_per_step(row)),
                f"{rate(row, 'samples'):,.0f}",
                *([f"{rate(row, 'tokens'):,.0f}"] if has_tokens else []),
                _against(by_name.get(PLAIN), row),
                "" if row["name"] == OURS_KEPT else _against(row, by_name.get(OURS)),
                mebibytes(growth),
                mebibytes(peak),
                f"{row['rounds'][0]['parameters']:,}",
                difference,
            ]
        )
    return markdown(header, lines)


def _against(slow: Row | None, fast: Row | None) -> str:
    if slow is None or fast is None or slow["failure"] or fast["failure"]:
        return ""
    return times(ratio(slow, fast))


def trick_table(rows: Sequence[Row], descriptions: Mapping[str, str]) -> str:
    """Return the table of the tricks of a workload, the first row being the one with all of them."""
    everything = rows[0]
    lines = [[everything["name"], "", *_figures(everything, everything)]]
    lines += [
        [f"without: {row['name']}", descriptions.get(row["name"], ""), *_figures(row, everything)] for row in rows[1:]
    ]
    return markdown(["", "what it is", "s a step", "gain of the trick", "MiB of work"], lines)


def _figures(row: Row, everything: Row) -> list[str]:
    if row["failure"]:
        return [f"failed: {row['failure']}", "", ""]
    _, growth = peak_memory(row)
    return [seconds(seconds_per_step(row)), _against(row, everything), mebibytes(growth)]


def tracking_table(rows: Sequence[Row]) -> str:
    """Return the table of what MLflow costs, the first row being that without it."""
    lines = []
    for row in rows:
        if row["failure"]:
            lines.append([row["name"], f"failed: {row['failure']}", "", "", ""])
            continue
        mean, cores = (1e3 * median(done[figure] for done in row["rounds"]) for figure in ("mean", "cores"))
        step = 1e3 * seconds_per_step(row)
        lines.append([row["name"], f"{step:.2f}", _against(row, rows[0]), f"{mean:.2f}", f"{cores:.2f}"])
    return markdown(["", "median step", "against without", "mean step", "of the cores"], lines)


def serving_table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the table of what servers did under load."""
    lines = []
    for name, row in rows.items():
        latencies = [f"{1e3 * row[share]:.0f}" for share in ("p50", "p99")]
        memory = [mebibytes(size) for size in row["memory"]]
        lines.append([f"`{name}`", f"{row['requests_per_second']:.1f}", *latencies, str(row["errors"]), *memory])
    header = ["", "requests/s", "p50 in ms", "p99 in ms", "errors", "MiB at the start", "MiB at the end"]
    return markdown(header, lines)


def batch_predict_table(rows: Sequence[Mapping[str, float]]) -> str:
    """Return the table of what inputs of several sizes took."""
    lines = []
    for row in rows:
        memory = [mebibytes(row[who]) for who in ("driver", "actor", "all")]
        speed = row["rows"] / row["seconds"]
        lines.append([f"{row['rows']:,}", f"{row['seconds']:.0f}", f"{speed:,.0f}", *memory])
    return markdown(["rows", "s", "rows/s", "MiB of the command", "of the largest actor", "of all processes"], lines)


def recovery_table(kills: Sequence[Mapping[str, float]]) -> str:
    """Return the table of what some deaths cost."""
    lines = []
    for name, figure in (("seconds until training steps again", "seconds"), ("steps lost", "lost")):
        median_, most = np.percentile([kill[figure] for kill in kills], [50, 95])
        lines.append([name, f"{median_:.1f}", f"{most:.1f}"])
    return markdown(["", "median", "95th percentile"], lines)


def growth_table(results: Mapping[str, Mapping[str, Any]], kind: str) -> str:
    """Return the table of one kind of growth.

    Args:
        results: Implementation -> extent -> seconds and bytes, or failure.
        kind: What grows.
    """
    ours, plain = results[OURS], results[PLAIN]
    header = [kind, "ours: s a step", "plain: s a step", "ratio", "ours: MiB", "plain: MiB", "ratio"]
    lines = []
    for extent in ours:
        pair = [ours[extent], plain[extent]]
        lines.append([extent, *_pair(pair, "seconds"), *_pair(pair, "bytes")])
    return markdown(header, lines)


def _pair(pair: Sequence[Mapping[str, Any]], figure: str) -> list[str]:
    show = seconds if figure == "seconds" else mebibytes
    shown = [result["failure"] if "failure" in result else show(result[figure]) for result in pair]
    if any("failure" in result for result in pair):
        return [*shown, ""]
    ours, plain = (max(result[figure], 1e-9) for result in pair)
    return [*shown, times(plain / ours)]
