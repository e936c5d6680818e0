"""`python -m pipelines report`: the page of a run, drawn again from its folder."""

from __future__ import annotations

import sys

from perceiver.errors import UserError, one_line
from pipelines.lock import run_lock
from pipelines.past_run import read_run
from pipelines.report.options import ReportOptions
from pipelines.report.write import publish
from pipelines.sink import REPORT
from pipelines.storage import Storage
from pipelines.sync import find_run


def report(options: ReportOptions) -> int:
    """Write the report of a run, and return the exit status: 1 if it could not be written.

    Raises:
        UserError: If there is no such run, or it is being trained.
    """
    try:
        folder = find_run(options.run, Storage.from_uri(options.storage_path))
        with run_lock(folder):
            written = publish(read_run(folder), lambda line: print(line, file=sys.stderr, flush=True))
    except OSError as error:
        reason = error.strerror or one_line(error)
        raise UserError(f"{options.run} cannot be used ({reason}): check its name and its permissions") from None
    if written:
        print(folder / REPORT)
    return 0 if written else 1
