"""Feeds MLflow and TensorBoard from the journals that training writes, without ever being in its way.

Each sink has a thread, so that a slow or absent server holds up neither training nor the other sink. A thread reads
the journals of the stages in the order in which they began, and tries again, at growing intervals, what a sink did not
accept.
"""

from __future__ import annotations

import shlex
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipelines.journal import Cursor, read_journal
from pipelines.mlflow_client import tracking_uri, without_secrets
from pipelines.mlflow_sink import MlflowSink
from pipelines.sink import PipelineRun, Sink, StageRun, Status, root_cause
from pipelines.storage import Storage
from pipelines.tensorboard_sink import TensorBoardSink

_LONGEST_PAUSE = 60.0


def _print(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def make_sinks(run: PipelineRun) -> list[Sink]:
    """Return the sinks that a pipeline's configuration asks for."""
    sinks: list[Sink] = []
    if run.config.mlflow:
        sinks.append(MlflowSink(run))
    if run.config.tensorboard:
        sinks.append(TensorBoardSink())
    return sinks


class Tracker:
    """Follows the stages of a pipeline from the driver process. No call blocks but `close`, and none raises.

    Args:
        run: The pipeline.
        warn: Shows the user a line; called from other threads.
        sinks: What to feed (none: what the pipeline's configuration asks for).
        poll_seconds: Seconds between two looks into a journal (none: 1 on local storage, 5 on remote storage).
    """

    def __init__(
        self,
        run: PipelineRun,
        warn: Callable[[str], None] = _print,
        sinks: Sequence[Sink] | None = None,
        poll_seconds: float | None = None,
    ) -> None:
        poll = poll_seconds or (1.0 if run.storage.is_local else 5.0)
        chosen = make_sinks(run) if sinks is None else sinks
        self._feeds = [_Feed(sink, warn, poll) for sink in chosen]
        self._warn = warn
        self._run = run
        self._open: list[StageRun] = []

    def begin_stage(
        self,
        name: str,
        folder: Storage,
        parameters: Mapping[str, Any] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> StageRun:
        """Follow a stage that begins or resumes, once its folder is where it stays.

        Args:
            name: The stage's name.
            folder: The stage's folder, whose journal is read.
            parameters: The stage's configuration.
            tags: Short facts about the stage.
        """
        stage = StageRun(name, folder, parameters or {}, tags or {})
        self._open.append(stage)
        self._put(stage)
        return stage

    def skip_stage(
        self,
        name: str,
        folder: Storage,
        parameters: Mapping[str, Any] | None = None,
        tags: Mapping[str, str] | None = None,
        status: Status = "FINISHED",
    ) -> None:
        """Send what was not sent yet of a stage that ended in an earlier start of the pipeline; often nothing.

        Args:
            name: The stage's name.
            folder: The stage's folder, whose journal is read.
            parameters: The stage's configuration.
            tags: Short facts about the stage.
            status: How it ended.
        """
        stage = StageRun(name, folder, parameters or {}, tags or {}, skipped=True)
        stage.end_time = time.time()
        stage.status = status
        self._put(stage)

    def end_stage(self, status: Status = "FINISHED", stage: StageRun | None = None) -> None:
        """Say that a stage's journal is complete.

        Args:
            status: How it ended.
            stage: The stage (none: all that have begun).
        """
        for ended in [stage] if stage is not None else self._open:
            ended.end_time = time.time()
            ended.status = status  # last: the feeds look at it
        self._open = [other for other in self._open if other.status is None]
        for feed in self._feeds:
            feed.wake()

    def close(
        self, status: Status = "FINISHED", summary: Mapping[str, float] | None = None, timeout: float = 60.0
    ) -> bool:
        """Send the rest and stop.

        Args:
            status: How the pipeline, and the stages that have not ended, ended.
            summary: Metrics of the whole pipeline.
            timeout: Seconds to wait at most.

        Returns:
            Whether everything was sent.
        """
        self.end_stage(status)
        deadline = time.monotonic() + timeout
        for feed in self._feeds:
            feed.close(status, summary or {})
        late = [feed.name for feed in self._feeds if not feed.join(deadline)]
        if late:
            repair = self._run.sync_command if late == [MlflowSink.name] else "starting it again"
            self._warn(f"{' and '.join(late)} did not take every point; all are kept, and sent by {repair}")
        self._feeds = []
        return not late

    def _put(self, stage: StageRun) -> None:
        for feed in self._feeds:
            feed.put(stage)


@dataclass
class _Followed:
    """A stage, and how far a feed has come with it."""

    stage: StageRun
    begun: bool = False
    cursor: Cursor = field(default_factory=Cursor)


class _Feed:
    """Feeds one sink from one thread."""

    def __init__(self, sink: Sink, warn: Callable[[str], None], poll_seconds: float) -> None:
        self.name = sink.name
        self._sink = sink
        self._warn = warn
        self._poll_seconds = poll_seconds
        self._stages: list[_Followed] = []
        self._finish: Callable[[], None] | None = None
        self._done = False
        self._warned = False
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._work, name=f"tracking-{sink.name}", daemon=True)
        self._thread.start()

    def put(self, stage: StageRun) -> None:
        self._stages.append(_Followed(stage))
        self.wake()

    def wake(self) -> None:
        self._wake.set()

    def close(self, status: Status, summary: Mapping[str, float]) -> None:
        end_time = time.time()
        self._finish = lambda: self._sink.finish(status, summary, end_time)
        self.wake()

    def join(self, deadline: float) -> bool:
        """Wait for the thread and return whether it sent everything."""
        self._thread.join(max(0.0, deadline - time.monotonic()))
        return self._done

    def _work(self) -> None:
        failures = 0
        while not self._done:
            finish = self._finish  # taken before the work, which then includes all that came before the closing
            try:
                self._feed_stages()
                if finish is not None:
                    finish()
                    self._done = True
                failures = 0
            except Exception as error:  # whatever a sink raises is kept from training
                failures += 1
                self._complain(error)
                if finish is not None:
                    return
            if not self._done:
                self._wake.wait(min(self._poll_seconds * 2**failures, _LONGEST_PAUSE))
                self._wake.clear()

    def _feed_stages(self) -> None:
        """Bring the sink up to date; stages that ended are followed no more."""
        for followed in list(self._stages):
            ended = followed.stage.status is not None  # looked at before the journal, which grows no more afterwards
            if not followed.begun and not self._sink.begin(followed.stage):
                self._stages.remove(followed)
                continue
            followed.begun = True
            self._feed_records(followed)
            if ended:
                self._sink.end(followed.stage)
                self._stages.remove(followed)

    def _feed_records(self, followed: _Followed) -> None:
        reading = read_journal(followed.stage.folder, followed.cursor)
        if reading.records:
            self._sink.log(followed.stage, reading.records)
        followed.cursor = reading.cursor

    def _complain(self, error: Exception) -> None:
        if not self._warned:
            self._warn(
                f"{self.name} does not answer ({without_secrets(root_cause(error))}): training goes on, "
                "its points are kept and sent later"
            )
            self._warned = True


def viewing_commands(run: PipelineRun) -> dict[str, str]:
    """Return how to open what was tracked, by the program that shows it: a command, or a server's address."""
    commands = {}
    if run.config.mlflow:
        uri = without_secrets(tracking_uri(run.config, run.storage))
        is_server = uri.startswith(("http://", "https://"))
        commands["MLflow"] = uri if is_server else f"mlflow ui --workers 1 --backend-store-uri {shlex.quote(uri)}"
    if run.config.tensorboard:
        commands["TensorBoard"] = f"tensorboard --logdir {shlex.quote(str(run.folder))}"
    return commands
