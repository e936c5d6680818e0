"""`python -m pipelines compare`: how runs of one task differ, as tables or as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rich.box import ASCII, SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pipelines.models.changed_predictions import ComparedPredictions
from pipelines.models.compare_options import CompareOptions
from pipelines.models.comparison import Comparison, compare_runs
from pipelines.progress import duration, plain_console

_TEXT_SHOWN = 300  # characters of a sample


def compare(options: CompareOptions) -> None:
    """Print how runs differ.

    Raises:
        UserError: If there is no such run, it has finished no stage, or the runs are of different tasks.
    """
    comparison = compare_runs(options.runs, options.storage_path, options.num_samples)
    if options.format == "json":
        print(json.dumps(asdict(comparison), indent=2))
    else:
        print_comparison(comparison, plain_console())


def print_comparison(comparison: Comparison, console: Console) -> None:
    """Print settings, results and predictions of runs one below the other."""
    runs = comparison.runs
    if comparison.settings:
        settings = {name: list(map(_setting, values)) for name, values in comparison.settings.items()}
        _print_table(console, "settings that differ", runs, settings)
    else:
        console.print("all settings are the same")
    for stage, results in comparison.stages.items():
        with_differences = len(runs) == 2
        rows = {name: _result_cells(name, values, with_differences) for name, values in results.items()}
        _print_table(console, stage, [*runs, *(["difference"] if with_differences else [])], rows)
    if comparison.predictions is not None:
        _print_predictions(console, runs, comparison.predictions)


def _print_table(console: Console, title: str, columns: Sequence[str], rows: Mapping[str, Sequence[str]]) -> None:
    table = Table(box=SIMPLE_HEAD if console.is_terminal else ASCII)
    table.add_column(escape(title), overflow="fold")
    for column in columns:
        table.add_column(escape(column), justify="right", overflow="fold")
    for name, cells in rows.items():
        table.add_row(escape(name), *map(escape, cells))
    console.print(table)


def _setting(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False) if not isinstance(value, str) else value


def _result_cells(name: str, values: Sequence[Any], with_differences: bool) -> list[str]:
    cells = [_result(name, value) for value in values]
    if not with_differences:
        return cells
    first, second = values
    return [*cells, "" if None in (first, second) else _difference(name, second - first)]


def _result(name: str, value: float | None) -> str:
    if value is None:
        return ""
    if name == "seconds":
        return duration(value)
    if name.endswith("accuracy"):
        return f"{value:.2%}"
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:.4f}"


def _difference(name: str, value: float) -> str:
    if value == 0:
        return ""
    return ("+" if value > 0 else "-") + _result(name, abs(value))


def _print_predictions(console: Console, runs: Sequence[str], predictions: ComparedPredictions) -> None:
    if not predictions.contrasts:
        console.print(f"predictions are not compared: {predictions.reason}", markup=False, soft_wrap=True)
        return
    rows = {
        contrast.run: [
            f"{contrast.fixed:,}",
            f"{contrast.broken:,}",
            f"{contrast.both_wrong:,}",
            f"{contrast.changed:,}",
            f"{contrast.p_value:.2g}",
        ]
        for contrast in predictions.contrasts
    }
    title = f"{predictions.num_samples:,} test samples, against {runs[0]}"
    _print_table(console, title, ["fixed", "broken", "both wrong", "changed", "p (McNemar)"], rows)
    if predictions.reason:
        console.print(predictions.reason, markup=False, soft_wrap=True)
    for sample in predictions.samples:
        answers = ", ".join(f"{run}: {answer}" for run, answer in zip(runs, sample.predicted, strict=True))
        line = f"sample {sample.sample_id} is {sample.label}; {answers}"
        console.print(line, markup=False, soft_wrap=True)
        if sample.text is not None:
            console.print(f"    {_shortened(sample.text)}", markup=False, soft_wrap=True)


def _shortened(text: str) -> str:
    """Return a text in one line, cut where it is long."""
    line = " ".join(text.split())
    return line if len(line) <= _TEXT_SHOWN else line[: _TEXT_SHOWN - 3] + "..."
