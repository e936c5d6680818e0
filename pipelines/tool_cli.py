"""The command lines of doctor and submit, which take a pipeline's options besides their own."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import NoReturn

from pipelines.cli import PIPELINES, PROGRAM, Command, check_verb, parse_pipeline

_HELP = ("-h", "--help")


@dataclass(frozen=True)
class DoctorConfig:
    """Say what a run would use, and what is wrong with it."""

    json: bool = False
    """Whether to print a JSON record per check instead of a table."""


@dataclass(frozen=True)
class DoctorCommand:
    """A parsed `doctor`.

    Attributes:
        command: The run to look at.
        with_data: Whether its verb was named, so that its settings and its data are looked at too.
        json: Whether to print a JSON record per check instead of a table.
    """

    command: Command
    with_data: bool
    json: bool


@dataclass(frozen=True)
class SubmitConfig:
    """Let a Ray cluster run a pipeline as a job that is named like the run."""

    address: str | None = None
    """URL of the cluster's dashboard (null: RAY_API_SERVER_ADDRESS, else http://127.0.0.1:8265)."""
    working_dir: str = "."
    """Folder that travels to the cluster, where the job starts in its copy."""
    runtime_env: str | None = "runtime-env.yaml"
    """File with Ray's runtime environment: what of the folder stays here, and variables, none of them secret
    (null: no such file)."""
    follow: bool = True
    """Whether to show the job's log until it ends, and to exit with its status."""


@dataclass(frozen=True)
class SubmitCommand:
    """A parsed `submit`.

    Attributes:
        command: The run.
        config: How to submit it.
        options: The pipeline's options as they were given, which the job is given too.
    """

    command: Command
    config: SubmitConfig
    options: tuple[str, ...]


def parse_doctor(options: Sequence[str]) -> DoctorCommand:
    """Turn `[VERB] [options]` into a checked command; exits with status 2 and one line if it can't be understood."""
    with_data = bool(options) and not options[0].startswith("-")
    verb, rest = (options[0], options[1:]) if with_data else (next(iter(PIPELINES)), options)
    check_verb(verb, list(PIPELINES))
    command, (config,) = parse_pipeline(verb, rest, f"{PROGRAM} doctor", [DoctorConfig])
    return DoctorCommand(command, with_data, config.json)


def parse_submit(options: Sequence[str]) -> SubmitCommand:
    """Turn `VERB [options]` into a checked command; exits with status 2 and one line if it can't be understood."""
    if not options or options[0] in _HELP:
        _help()
    verb, *rest = options
    check_verb(verb, list(PIPELINES))
    command, (config,) = parse_pipeline(verb, rest, f"{PROGRAM} submit", [SubmitConfig])
    passed = _without_own(rest)
    parse_pipeline(verb, passed)  # the job takes no other, be it from a file
    return SubmitCommand(command, config, tuple(passed))


def _help() -> NoReturn:
    print(f"usage: {PROGRAM} submit VERB [options]\n\n{SubmitConfig.__doc__}\n")
    print(f"`{PROGRAM} submit VERB -h` shows all options; VERB is one of {', '.join(PIPELINES)}.")
    sys.exit(0)


def _without_own(options: Sequence[str]) -> list[str]:
    """Return the options but for those of submit itself."""
    own = {f"--{field.name}" for field in fields(SubmitConfig)}
    passed = []
    left = iter(options)
    for option in left:
        name, has_value, _ = option.partition("=")
        if name not in own:
            passed.append(option)
        elif not has_value:
            next(left, None)
    return passed
