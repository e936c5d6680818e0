"""A trial: the pipeline itself, an epoch at a time, in a process that is used for one trial after the other.

Training runs in a thread, which waits after each epoch until Ray Tune has decided that the trial goes on. A trial lies
in a folder as a run does, so that it is skipped, resumed and read like one.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray.tune
from ray.tune.result import DONE

from pipelines.checkpoint import CheckpointStore
from pipelines.config import RunConfig, ScalingConfig, StageConfig, TrackingConfig, stages_of
from pipelines.pipeline import Pipeline, StageFailedError
from pipelines.stage_folder import CHECKPOINTS
from pipelines.storage import Storage
from tune.record import TRIALS, trial_name, validation_metrics
from tune.searcher import TRIAL, VALUES
from tune.space import Values, with_values

if TYPE_CHECKING:
    from pipelines.cli import PipelineConfig

EPOCH, SECONDS, PARAMETERS = "epoch", "seconds", "parameters"
FAILURE = "failure"
"""Why a trial failed; Ray Tune would start a new process for the next one, were it raised."""
COMPLETE = "complete"
"""Whether a trial has trained all its epochs; Ray Tune says `done` of those that it stops, too."""


@dataclass(frozen=True)
class TrialPlan:
    """What all trials of a search have in common.

    Attributes:
        verb: The pipeline.
        base: Its configuration, which a trial's values change.
        search: Folder of the search.
        scaling: Workers of a trial.
    """

    verb: str
    base: PipelineConfig
    search: Storage
    scaling: ScalingConfig

    @property
    def trials(self) -> Storage:
        """Folder of all trials."""
        return self.search / TRIALS

    def stages(self, config: PipelineConfig, number: int) -> Mapping[str, StageConfig]:
        """Return the stages of a trial's pipeline."""
        return stages_of(self.verb, config, (self.trials / trial_name(number)).uri)

    def pipeline(self, number: int, values: Values) -> Pipeline:
        """Return a trial's pipeline.

        Raises:
            ValueError: If the configuration does not take the values.
        """
        config = with_values(self.base, values)
        run = RunConfig(
            trial_name(number), self.trials.uri, self.scaling, TrackingConfig(mlflow=False, tensorboard=False)
        )
        return Pipeline(config, self.stages(config, number), run, self.trials, tests=False)


class _StoppedError(BaseException):
    """Ends the training of a trial that is not wanted any more; nothing on the way takes it for a failure."""


class Training:
    """The training of a trial in a thread, from which results are taken an epoch at a time.

    Args:
        pipeline: The trial's pipeline. The epochs of its last stage are the trial's epochs.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline
        self._last_stage = list(pipeline.stages)[-1]
        self._results: queue.Queue[dict[str, Any]] = queue.Queue()
        self._wanted = threading.Semaphore(0)
        self._stopped = False
        self._facts: dict[str, Any] = {}
        self._validation: Mapping[str, Any] = {}
        self._final: dict[str, Any] = {}
        self._waited, self._started = 0.0, time.monotonic()
        self._log = pipeline.folder.local_path / "log.txt" if pipeline.folder.is_local else None
        self._thread = threading.Thread(target=self._run, name="training", daemon=True)

    def next_epoch(self) -> dict[str, Any]:
        """Let the trial train for an epoch, and return its metrics: COMPLETE in the last one, FAILURE if it failed."""
        if not self._thread.is_alive():
            self._thread.start()
        else:
            self._wanted.release()
        return self._results.get()

    def stop(self) -> None:
        """End the training and wait until it has ended."""
        self._stopped = True
        self._wanted.release()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        self.message("begins")
        try:
            outcome = self._pipeline.execute(self)[-1]
            # Without a step where the stage had ended before, so that there was no epoch to tell of.
            result = self._final or {EPOCH: outcome.result["epochs"], **validation_metrics(outcome.result)}
            self._results.put({**result, PARAMETERS: outcome.result["parameters"], COMPLETE: True, DONE: True})
        except _StoppedError:
            pass
        except BaseException as error:  # whatever ends the training is told where the result is waited for
            lines = str(error).strip().splitlines()
            self.message(f"failed: {error}")
            self._results.put({FAILURE: lines[-1] if lines else type(error).__name__, DONE: True})

    def update(self, state: Mapping[str, Any]) -> None:
        """Take a state of the training, as `pipelines.progress.Progress.update` does."""
        if self._stopped:
            raise _StoppedError
        if PARAMETERS in state:
            self._facts[PARAMETERS] = state[PARAMETERS]
        if "epoch_end" in state:
            self._validation = state["epoch_end"]
        if "epochs_saved" in state and state["stage"] == self._last_stage:  # nothing is lost if it ends here
            self._end_epoch(self._validation, is_last=state["epochs_saved"] == state["max_epochs"])

    def message(self, text: str) -> None:
        """Take a line that `pipelines.progress.Progress.message` would show."""
        if self._log is not None:
            self._log.parent.mkdir(parents=True, exist_ok=True)
            with self._log.open("a") as file:
                file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {text}\n")

    def _end_epoch(self, record: Mapping[str, Any], is_last: bool) -> None:
        metrics = validation_metrics(record)
        seconds = time.monotonic() - self._started - self._waited
        epoch = {EPOCH: record["epoch"] + 1, "step": record["step"]}
        result = {**epoch, **metrics, **self._facts, SECONDS: round(seconds, 3)}
        self.message("  ".join([f"epoch {epoch[EPOCH]}", *(f"{name} {value:.4f}" for name, value in metrics.items())]))
        if is_last:  # the last result comes when the model is there
            self._final = result
            return
        self._results.put(result)
        before = time.monotonic()
        self._wanted.acquire()
        self._waited += time.monotonic() - before
        if self._stopped:
            raise _StoppedError


class Trial(ray.tune.Trainable):
    """A trial as Ray Tune sees it. One process is the same object for many trials."""

    def setup(self, config: dict[str, Any], plan: TrialPlan | None = None) -> None:
        """Begin the first trial of this process; see ray.tune.Trainable."""
        assert plan is not None
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        self._plan = plan
        self._training: Training | None = None

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Begin another trial in this process; see ray.tune.Trainable."""
        self.cleanup()
        return True

    def step(self) -> dict[str, Any]:
        """Train for an epoch; see ray.tune.Trainable."""
        if self._training is None:
            self._training = Training(self._pipeline())
        return self._training.next_epoch()

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Hand out the newest checkpoint, from which this trial or another can go on."""
        store = self._store(self._pipeline())
        newest = store.newest()
        if newest is None:
            raise StageFailedError(f"{store.storage} has no checkpoint to go on from")
        (store.storage / newest.name).download_folder(Path(checkpoint_dir) / newest.name)

    def load_checkpoint(self, checkpoint_dir: str) -> None:
        """Go on from a checkpoint, of this trial or another, with this trial's values."""
        self.cleanup()
        pipeline = self._pipeline()
        store = self._store(pipeline)
        (folder,) = (path for path in Path(checkpoint_dir).iterdir() if path.is_dir())
        store.storage.parent.delete()  # with its settings, which may have been others
        (store.storage / folder.name).upload_folder(folder)

    def cleanup(self) -> None:
        """End the training; see ray.tune.Trainable."""
        if self._training is not None:
            self._training.stop()
            self._training = None

    def _pipeline(self) -> Pipeline:
        # Population-based training gives a trial the configuration of another one, so that the number is not in it.
        return self._plan.pipeline(int(self.trial_name), self.config[TRIAL][VALUES])

    @staticmethod
    def _store(pipeline: Pipeline) -> CheckpointStore:
        name, config = list(pipeline.stages.items())[-1]
        return CheckpointStore(pipeline.folder / name / CHECKPOINTS, config.trainer.select_by)
