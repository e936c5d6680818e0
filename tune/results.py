"""What a search leaves behind: the best configuration, a table of all trials, and what to read on the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
from rich.box import ASCII, SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from pipelines.progress import duration
from pipelines.stage_folder import write_config
from tune.record import TrialRecord, ranked
from tune.report import PICTURES, REPORT, write_report
from tune.search import Search
from tune.space import shown, value_of, with_values

BEST, TABLE = "best.yaml", "trials.parquet"
ARTIFACTS = (BEST, TABLE, REPORT, PICTURES)
"""What belongs to a search as a whole."""
_SHOWN = 10


def write_results(search: Search, records: Sequence[TrialRecord]) -> TrialRecord | None:
    """Write best.yaml, trials.parquet, tune.html and pictures into the search's folder; return the best trial."""
    write_table(search, records)
    write_report(search, records)
    best = next(iter(ranked(records, search.goal)), None)
    if best is not None:
        config = with_values(search.base, best.values)
        run = replace(search.run, run_name=f"{search.run.run_name}-best")
        write_config(search.folder, config, run, BEST)
    return best


def write_table(search: Search, records: Sequence[TrialRecord]) -> None:
    """Write trials.parquet: one row per trial, one column per field that was searched."""
    rows = [
        {
            "trial": record.number,
            "state": record.state,
            "reason": record.reason,
            search.goal.metric: record.best(search.goal),
            "epochs": len(record.epochs),
            "parameters": record.parameters,
            "seconds": record.seconds,
            "gpu_seconds": record.gpu_seconds,
            **record.values,
        }
        for record in records
    ]
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    (search.folder / TABLE).write_bytes(sink.getvalue().to_pybytes())


def print_results(search: Search, records: Sequence[TrialRecord], console: Console) -> None:
    """Print the best trials, what distinguishes the best from the base, and what became of the others."""
    best = ranked(records, search.goal)
    if best:
        console.print(_ranking(search, best, console))
    if best and best[0].number:
        console.print(_differences(search, best[0], console))
    states = [record.state for record in records]
    counts = [f"{states.count(state)} {state}" for state in dict.fromkeys(states)]
    console.print(f"{len(records)} trials: {', '.join(counts)}", highlight=False)
    for record in [record for record in records if record.state == "failed"][:_SHOWN]:
        console.print(f"trial {record.number} failed: {record.reason}", markup=False, highlight=False, soft_wrap=True)


def _ranking(search: Search, best: Sequence[TrialRecord], console: Console) -> Table:
    table = Table(box=SIMPLE_HEAD if console.is_terminal else ASCII)
    for name in ("trial", search.goal.metric, "epochs", "parameters", "time"):
        table.add_column(name, justify="right")
    for record in [*best[:_SHOWN], *[record for record in best[_SHOWN:] if record.number == 0]]:
        seconds = duration(record.seconds) if record.seconds >= 60 else f"{record.seconds:.1f} s"
        parameters = "" if record.parameters is None else f"{record.parameters:,}"
        table.add_row(record.label, f"{record.best(search.goal):.4f}", str(len(record.epochs)), parameters, seconds)
    return table


def _differences(search: Search, best: TrialRecord, console: Console) -> Table:
    table = Table(box=SIMPLE_HEAD if console.is_terminal else ASCII)
    table.add_column("field", overflow="fold")
    for name in ("base", f"trial {best.number}"):
        table.add_column(name, justify="right")
    for field, value in best.values.items():
        table.add_row(field, shown(value_of(search.base, field)), shown(value))
    return table


def summary(search: Search, records: Sequence[TrialRecord], best: TrialRecord) -> dict[str, float]:
    """Return the metrics that the search's own run shows."""
    values = {f"best_{search.goal.metric}": best.best(search.goal), "best_trial": best.number, "trials": len(records)}
    base = next((record for record in records if record.number == 0), None)
    values[f"base_{search.goal.metric}"] = None if base is None else base.best(search.goal)
    values["seconds"] = sum(record.seconds for record in records)
    values["gpu_seconds"] = sum(record.gpu_seconds for record in records)
    return {name: float(value) for name, value in values.items() if value is not None}
