"""What a run would use and what stands in its way, before it starts: `python -m pipelines doctor`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TextIO

from rich.box import ASCII, SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from pipelines import checks
from pipelines.checks import Check, checking
from pipelines.cli import Command
from pipelines.cluster import check_cluster, check_workers, trains_in_process
from pipelines.cluster_checks import check_answers, check_joined, named_address
from pipelines.config import TextClassifierStageConfig, stages_of
from pipelines.progress import plain_console
from pipelines.ray_token import check_token
from pipelines.storage import Storage, check_run_name
from pipelines.tool_cli import DoctorCommand

_WIDTH = 100
_MARKS = {"ok": "ok", "warning": "warning", "failure": "FAIL"}
_COLOURS = {"ok": "green", "warning": "yellow", "failure": "bold red"}


def doctor(command: DoctorCommand) -> int:
    """Print what was found.

    Returns:
        The exit status: 1 if a run would fail.
    """
    found = []
    for check in examine(command.command, command.with_data):
        found.append(check)
        if command.json:
            print(json.dumps(asdict(check)), flush=True)
    if not command.json:
        print_checks(found)
    return int(any(check.status == "failure" for check in found))


def examine(command: Command, with_data: bool) -> Iterator[Check]:
    """Yield what is found about each thing that a run needs.

    Args:
        command: The run.
        with_data: Whether its settings and its data are looked at too.
    """
    run, address = command.run, named_address()
    yield checks.check_versions()
    yield checks.check_gpus()
    yield checks.check_shared_memory(starts_cluster=address is None and not trains_in_process(run.scaling))
    yield check_token(joins=address is not None)
    answers = check_answers(run.scaling)
    yield answers
    storage_check = checks.check_storage(run.storage_path)
    yield storage_check
    storage = Storage.from_uri(run.storage_path) if storage_check.status == "ok" else None
    if address is None:
        yield _check_workers_here(command)
    elif answers.status == "ok":
        yield from check_joined(storage, run.scaling)
    if storage is not None:
        yield checks.check_mlflow(run.tracking, storage)
        if storage.is_local:
            yield checks.check_disk("storage", storage.local_path)
    yield checks.check_disk("cache", command.config.data.cache_dir)
    if address is None:
        yield checks.check_disk("Ray", checks.ray_folder())
    if with_data:
        yield from _examine_stage(command)


def _examine_stage(command: Command) -> Iterator[Check]:
    """Yield what is found about the settings, the data and the input model of the first stage."""
    yield _check_settings(command)
    first = next(iter(stages_of(command.verb, command.config, "").values()))
    yield checks.check_data(first)
    if isinstance(first, TextClassifierStageConfig) and first.init_from is not None:
        yield checks.check_input(first)


@checking("settings")
def _check_settings(command: Command) -> Check:
    check_run_name(command.run.run_name)
    check_workers(stages_of(command.verb, command.config, ""), command.run.scaling)
    return Check("settings", "ok", f"{command.verb}, run_name {command.run.run_name}")


@checking("workers")
def _check_workers_here(command: Command) -> Check:
    scaling = command.run.scaling
    check_cluster(scaling)
    place = "the process of the command" if trains_in_process(scaling) else "a Ray cluster that it starts"
    return Check("workers", "ok", f"{scaling.workers_in_words()}, in {place}")


def print_checks(found: Sequence[Check], stream: TextIO | None = None) -> None:
    """Print a table, a row per check with its advice below it, and what comes of it.

    Args:
        found: The checks.
        stream: Where to write (none: standard output).
    """
    console = plain_console(stream or sys.stdout)
    console.width = min(console.width, _WIDTH)
    table = Table(box=SIMPLE_HEAD if console.is_terminal else ASCII)
    table.add_column("", no_wrap=True)
    table.add_column("check", no_wrap=True)
    table.add_column("found", overflow="fold")
    for check in found:
        colour = _COLOURS[check.status]
        advice = f"\n-> {check.advice}" if check.advice else ""
        mark = f"[{colour}]{_MARKS[check.status]}[/]"
        table.add_row(mark, check.name, escape(check.found + advice))
    console.print(table)
    console.print(_verdict(found))


def _verdict(found: Sequence[Check]) -> str:
    failures = [check.name for check in found if check.status == "failure"]
    warnings = [check.name for check in found if check.status == "warning"]
    if failures:
        return f"A run would fail: mend {', '.join(failures)}."
    if warnings:
        return f"A run would start; look at {', '.join(warnings)}."
    return "All is well."
