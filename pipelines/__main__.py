"""The command line: `python -m pipelines VERB [options]`."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from perceiver.errors import UserError
from perceiver.openmp import spin_briefly
from pipelines.cli import Command, ConvertCommand, SyncCommand, fail, parse
from pipelines.control import stoppable
from pipelines.models.tools import ToolCommand
from pipelines.program import run_program
from pipelines.tool_cli import DoctorCommand, SubmitCommand


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command.

    Exits with status 0 if all went well, 2 because of a mistake of the user, 1 if training failed or MLflow did not
    take a run, 130 after Ctrl-C or SIGTERM. `doctor` and `submit` have statuses of their own.
    """
    try:
        with stoppable():
            _execute(sys.argv[1:] if argv is None else argv)
    except UserError as error:
        fail(str(error))
    except KeyboardInterrupt:
        print("stopped; the same command goes on from the newest checkpoint", file=sys.stderr)
        sys.exit(130)


def _execute(argv: Sequence[str]) -> None:
    spin_briefly()
    command = parse(argv)
    if isinstance(command, ConvertCommand):
        from pipelines.convert import convert

        convert(command)
    elif isinstance(command, SyncCommand):
        _sync(command)
    elif isinstance(command, DoctorCommand):
        from pipelines.doctor import doctor

        sys.exit(doctor(command))
    elif isinstance(command, SubmitCommand):
        from pipelines.submit import submit

        sys.exit(submit(command))
    elif isinstance(command, ToolCommand):
        sys.exit(command.run())
    else:
        _run(command)


def _run(command: Command) -> None:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if command.run.scaling.use_gpu is False:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # as Ray does for its workers; before torch, which looks only once
    from pipelines.pipeline import StageFailedError
    from pipelines.run import run

    try:
        run(command)
    except StageFailedError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


def _sync(command: SyncCommand) -> None:
    from pipelines.sync import SyncFailedError, sync

    try:
        sync(command)
    except SyncFailedError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


def program() -> None:
    """Run one command as a process of its own."""
    run_program(main)


if __name__ == "__main__":
    program()
