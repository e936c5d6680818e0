"""Run the stages of a pipeline one after the other: skip, resume or train each, and say what came out."""

from __future__ import annotations

import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from perceiver.errors import UserError
from perceiver.files import is_full
from pipelines.cluster import check_cluster, check_workers, cluster
from pipelines.config import RunConfig, StageConfig, TextClassifierStageConfig
from pipelines.lock import check_unlocked, run_lock
from pipelines.sink import PipelineRun, Status, summary_of
from pipelines.stage_folder import ERROR, Decision, StageFolder, plain, write_config
from pipelines.stages import Prepared, StagePlan, prepare, with_absolute_paths
from pipelines.storage import Storage, check_run_name
from pipelines.tracking import Tracker

_DRAIN_SECONDS = 30.0


class Listener(Protocol):
    """Takes what a pipeline tells while it runs; pipelines.progress.Progress shows it."""

    def update(self, state: Mapping[str, Any]) -> None:
        """Take a state of the training."""
        ...

    def message(self, text: str) -> None:
        """Take a line."""
        ...


class StageFailedError(RuntimeError):
    """A stage's training failed; its text is one line."""


@dataclass(frozen=True)
class StageOutcome:
    """What became of a stage.

    Attributes:
        name: Name of the stage.
        result: Epochs, metrics, parameters and seconds, as `pipelines.worker.run_stage` returns them.
        folder: Folder of the result.
        skipped: Whether an earlier start had finished it.
        synthetic: Whether its data is made up.
    """

    name: str
    result: Mapping[str, Any]
    folder: Storage
    skipped: bool
    synthetic: bool


@dataclass
class Pipeline:
    """The stages of a run, in order.

    Attributes:
        config: The pipeline's configuration.
        stages: Configuration of each stage by its name.
        run: Where the pipeline runs and what it leaves behind.
        storage: The storage path.
        tests: Whether each stage ends with a test; trials of a search never see the test split.
    """

    config: Any
    stages: Mapping[str, StageConfig]
    run: RunConfig
    storage: Storage
    tests: bool = True
    outcomes: list[StageOutcome] = field(default_factory=list)

    @property
    def folder(self) -> Storage:
        """Folder of the run."""
        return self.storage / self.run.run_name

    def execute(self, progress: Listener) -> list[StageOutcome]:
        """Run every stage that isn't finished.

        Raises:
            UserError: If the user made a mistake; found before any worker starts.
            StageFailedError: If training failed.
            KeyboardInterrupt: If the user stopped it.
        """
        self.check()
        first = prepare(next(iter(self.stages.values())))
        with (
            _space(self.folder),
            run_lock(self.folder),
            cluster(self.run.scaling),
            self._tracked(first, progress) as tracker,
        ):
            for number, (name, config) in enumerate(self.stages.items()):
                prepared = first if number == 0 else prepare(config)
                self.outcomes.append(self._run_stage(name, config, prepared, tracker, progress))
        return self.outcomes

    @contextmanager
    def _tracked(self, first: Prepared, progress: Listener) -> Iterator[Tracker]:
        """Write config.yaml and follow the stages; from here on the run's folder changes."""
        write_config(self.folder, self.config, self.run)
        parameters = plain({**asdict(self.config), **asdict(self.run)})
        tags = {"synthetic_data": "true"} if first.synthetic else {}
        pipeline_run = PipelineRun(
            self.storage, self.run.run_name, self.run.tracking, parameters, tags, start_time=time.time()
        )
        tracker = Tracker(pipeline_run, warn=progress.message)
        status: Status = "FAILED"
        try:
            yield tracker
            status = "FINISHED"
        except KeyboardInterrupt:
            status = "KILLED"
            raise
        finally:
            summary = summary_of({outcome.name: outcome.result for outcome in self.outcomes})
            tracker.close(status, summary, _DRAIN_SECONDS)

    def check(self) -> None:
        """Find mistakes that need no data.

        Raises:
            UserError: If there is one.
        """
        check_run_name(self.run.run_name)
        check_workers(self.stages, self.run.scaling)
        check_cluster(self.run.scaling)
        self._check_folder()

    def _check_folder(self) -> None:
        self.storage.check_writable()
        if not self.folder.exists():
            return
        if not self.folder.is_dir():
            raise UserError(f"run_name is {self.run.run_name}, but {self.folder} is a file: choose another run_name")
        self.folder.check_writable()
        check_unlocked(self.folder)
        for name, config in self.stages.items():
            stage = StageFolder(self.folder, name)
            stage.read_state()
            init_from = config.init_from if isinstance(config, TextClassifierStageConfig) else None
            if init_from and Storage.from_uri(init_from, "init_from").uri.startswith(f"{stage.storage.uri}/"):
                raise UserError(f"init_from {init_from} is this stage's own result: choose another run_name")

    def _run_stage(
        self, name: str, config: StageConfig, prepared: Prepared, tracker: Tracker, progress: Listener
    ) -> StageOutcome:
        folder = StageFolder(self.folder, name)
        decision = folder.decide(config, prepared)
        tags = {"data_fingerprint": prepared.data_fingerprint}
        if decision.action == "skip":
            progress.message(f"{name}: finished before, skipped ({decision.reason})")
            tracker.skip_stage(name, folder.storage, plain(asdict(config)), tags)
            return StageOutcome(name, folder.result(), folder.storage, True, prepared.synthetic)
        _announce(name, decision, folder, progress)
        folder.begin(config, prepared, self.run)
        tracker.begin_stage(name, folder.storage, plain(asdict(config)), tags)
        result = self._train(
            StagePlan(name, with_absolute_paths(config), prepared, folder.storage, self.tests), progress
        )
        folder.finish(config, prepared, result)
        tracker.end_stage()
        return StageOutcome(name, result, folder.storage, False, prepared.synthetic)

    def _train(self, plan: StagePlan, progress: Listener) -> dict[str, Any]:
        from pipelines.train import train

        progress.update({"stage": plan.name, "phase": "starting"})
        try:
            return train(plan, self.run.scaling, lambda state: progress.update({**state, "stage": plan.name}))
        except UserError:
            raise
        except Exception as error:
            story = _keep_story(plan.storage / ERROR)
            raise StageFailedError(f"stage {plan.name} failed: {_cause(error)}; {story}") from error


@contextmanager
def _space(folder: Storage) -> Iterator[None]:
    """Let a disk that is full be the user's mistake."""
    try:
        yield
    except OSError as error:
        if not is_full(error):
            raise
        raise UserError(f"{folder} has no space left: free some, then the same command goes on") from error


def _keep_story(file: Storage) -> str:
    """Write the traceback of the error at hand, and say where; the reason of the error may stand in the way."""
    try:
        file.write_bytes(traceback.format_exc().encode())
    except Exception as error:  # file systems raise errors of many kinds
        return f"the whole story could not be written ({_cause(error)})"
    return f"the whole story is in {file}"


def _announce(name: str, decision: Decision, folder: StageFolder, progress: Listener) -> None:
    if decision.action == "resume":
        start = (
            "goes on from its newest checkpoint" if folder.has_checkpoint() else "starts anew, for it has no checkpoint"
        )
        progress.message(f"{name}: {decision.reason}, {start}")
    elif decision.action == "restart":
        kept = folder.set_aside()
        progress.message(f"{name}: changed ({decision.reason}), runs again; the earlier result is kept in {kept}")


def _cause(error: BaseException) -> str:
    """Return the innermost message of a failure that passed through Ray, in one line."""
    if failures := getattr(error, "worker_failures", None):
        from pipelines.mailbox import first_failure  # imports Ray, whose error this is

        return f"{first_failure(failures)}, and scaling.max_failures allows no more restarts"
    while error.__cause__ is not None:
        error = error.__cause__
    text = str(error).strip().splitlines() or [type(error).__name__]
    return f"{type(error).__name__}: {text[-1]}"[:500]
