"""The command line: `python -m tests.benchmarks [WHAT ...] [options]`.

Each WHAT is measured, its raw result kept, and the page written from all results that are there.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from tests.benchmarks.processes import REGIMES
from tests.benchmarks.settings import Settings, say

Section = Callable[[Settings], dict[str, Any]]
_DEFAULTS = Settings()


def sections() -> dict[str, Section]:
    """Return what can be measured, by name."""
    from tests.benchmarks.batch_predict import measure_batch_predict
    from tests.benchmarks.curves import measure_curves
    from tests.benchmarks.floor import measure_floor
    from tests.benchmarks.frozen_stage import measure_frozen_stage
    from tests.benchmarks.growth import measure_growth
    from tests.benchmarks.official import measure_official
    from tests.benchmarks.recovery import measure_recovery
    from tests.benchmarks.serving import measure_serving
    from tests.benchmarks.steps import measure_tricks, measure_workload
    from tests.benchmarks.tracking import measure_tracking
    from tests.benchmarks.workloads import WORKLOADS

    return {
        **{name: partial(measure_workload, name) for name in WORKLOADS},
        **{f"tricks-{name}": partial(measure_tricks, name) for name in ("mlm", "frozen", "joint", "images")},
        "frozen-stage": measure_frozen_stage,
        "floor": measure_floor,
        "curves": measure_curves,
        "growth": measure_growth,
        "mlflow": measure_tracking,
        "recovery": measure_recovery,
        "serving": measure_serving,
        "batch-predict": measure_batch_predict,
        "official": measure_official,
    }


def chosen(names: Sequence[str], known: Sequence[str], device: str) -> list[str]:
    """Return the sections to measure: those named, or all; "tricks" stands for all that begin with it.

    Raises:
        ValueError: If a name is not known.
    """
    if not names:
        return [name for name in known if name != "official" or device == "cuda"]
    result = []
    for name in names:
        matches = [
            section for section in known if section == name or section.startswith(f"{name}-") and name == "tricks"
        ]
        if not matches:
            raise ValueError(f"{name} can't be measured: name some of {', '.join(['tricks', *known])}")
        result += matches
    return result


def parse(argv: Sequence[str]) -> tuple[list[str], Settings, bool]:
    """Turn a command line into names of sections, settings, and whether the page is only written anew."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("what", nargs="*", metavar="WHAT", help="sections to measure (none: all); see --list")
    parser.add_argument("--list", action="store_true", help="list the sections and end")
    parser.add_argument("--render", action="store_true", help="measure nothing, write the page from what is there")
    parser.add_argument("--device", choices=("cpu", "cuda"), default=_DEFAULTS.device)
    parser.add_argument("--size", choices=("default", "tiny"), default=_DEFAULTS.size, help="tiny: to try it out")
    parser.add_argument("--rounds", type=int, default=_DEFAULTS.rounds, help="rounds that count")
    parser.add_argument("--batches", type=int, default=_DEFAULTS.batches, help="batches in a round")
    parser.add_argument("--steps", type=int, default=_DEFAULTS.steps, help="steps of the loss curves")
    parser.add_argument("--timeout", type=float, default=_DEFAULTS.timeout, help="seconds for one size of the growth")
    parser.add_argument("--regime", choices=tuple(REGIMES), action="append", help="allocator's regime (none: both)")
    data = os.environ.get("PERCEIVER_TEST_DATA")
    parser.add_argument("--data", type=Path, default=data, help="folder with imdb/ and mnist/ (PERCEIVER_TEST_DATA)")
    parser.add_argument("--results", type=Path, default=_DEFAULTS.results, help="folder of the raw results")
    parser.add_argument("--out", type=Path, default=_DEFAULTS.out, help="page to write")
    values = parser.parse_args(argv)
    known = list(sections())
    if values.list:
        print("\n".join(["tricks", *known]))
        sys.exit(0)
    try:
        names = chosen(values.what, known, values.device)
        check(values)
    except ValueError as error:
        parser.error(str(error))
    settings = Settings(
        device=values.device,
        size=values.size,
        rounds=values.rounds,
        batches=values.batches,
        steps=values.steps,
        timeout=values.timeout,
        data=None if values.data is None else values.data.resolve(),
        results=values.results.resolve(),
        out=values.out.resolve(),
        regimes=tuple(values.regime or REGIMES),
        command=public_command(argv, values.data),
    )
    return names, settings, values.render


def check(values: argparse.Namespace) -> None:
    """Raise a ValueError if something can't be measured as it is asked for."""
    for name in ("rounds", "batches", "steps"):
        if getattr(values, name) < 1:
            raise ValueError(f"--{name} is {getattr(values, name)}, but must be 1 or more")
    if values.data is not None and not values.data.is_dir():
        raise ValueError(f"--data {values.data} is no folder: name one with imdb/ and mnist/, or leave it out")
    if values.device == "cuda" and not values.render and not torch.cuda.is_available():
        raise ValueError("--device is cuda, but PyTorch finds no GPU here")


def public_command(argv: Sequence[str], data: Path | None) -> str:
    """Return the command line for the page, on which no folder of this machine is named."""
    words = ["python", "-m", "tests.benchmarks"]
    skip = False
    for word in argv:
        name = word.partition("=")[0]
        if name in ("--data", "--results", "--out"):
            skip = "=" not in word
            continue
        if not skip:
            words.append(word)
        skip = False
    return shlex.join(words) + (" --data FOLDER" if data else "")


def main(argv: Sequence[str]) -> None:
    """Measure what is asked for and write the page."""
    names, settings, only_render = parse(argv)
    from tests.benchmarks.environment import describe
    from tests.benchmarks.report import write_page

    known = sections()
    for name in [] if only_render else names:
        say(name)
        start = time.monotonic()
        result = known[name](settings)
        settings.save(name, {**result, "environment": describe(settings)})
        write_page(settings)
        say(f"  {name} took {time.monotonic() - start:.0f} s")
    write_page(settings)
    say(f"{settings.out} is written")


if __name__ == "__main__":
    main(sys.argv[1:])
