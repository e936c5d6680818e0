"""From a parsed command to a finished search and what it says."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence

from pipelines.cli import Command
from pipelines.progress import plain_console, print_commands
from pipelines.tracking import viewing_commands
from tune.config import SearchConfig
from tune.record import TrialRecord, read_records
from tune.report import REPORT
from tune.results import BEST, print_results, summary, write_results
from tune.retrain import retrain
from tune.search import Search, plan_search, run_search
from tune.show import Show
from tune.tracking import SearchTracker


def run(command: Command, config: SearchConfig) -> int:
    """Run a search and print what came out.

    Returns:
        The exit status: 1 if no trial reported the metric.

    Raises:
        UserError: If the user made a mistake.
        KeyboardInterrupt: If the user stopped it; what is there is written first.
    """
    search = plan_search(command, config)
    show = Show(search.goal, config.num_samples, search.max_epochs)
    with SearchTracker(search, show.message) as tracker:
        try:
            run_search(search, [show, tracker])
        except KeyboardInterrupt:
            show.close()
            _conclude(search, tracker)
            raise
        finally:
            show.close()
        best = _conclude(search, tracker)
    if best is None:
        failed = any(record.state == "failed" for record in read_records(search.folder))
        reason = "they failed" if failed else "the time budget was too short for an epoch"
        print(f"error: no trial reported {search.goal.metric}: {reason}", file=sys.stderr)
        return 1
    if config.retrain:
        retrain(search, best)
    return 0


def _conclude(search: Search, tracker: SearchTracker) -> TrialRecord | None:
    """Write and print what there is, and return the best trial."""
    records = list(read_records(search.folder))
    best = write_results(search, records)
    if best is not None:
        tracker.conclude(summary(search, records, best))
    if records:
        _print(search, records, best)
    return best


def _print(search: Search, records: Sequence[TrialRecord], best: TrialRecord | None) -> None:
    console = plain_console()
    print_results(search, records, console)
    commands = viewing_commands(search.tracked)
    if best is not None:
        commands["Report"] = str(search.folder / REPORT)
        commands["Train it"] = f"python -m pipelines {search.verb} --config {shlex.quote(str(search.folder / BEST))}"
    print_commands(str(search.folder), commands, console)
