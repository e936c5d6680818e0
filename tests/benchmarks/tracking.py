"""What MLflow costs a training step: the same stage without it, with a healthy server, a dead one, and a slow one.

Stages are real ones, trained in the process of the command: one with steps so short that all that is added shows, and
the quickstart's pretraining.
"""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from perceiver.tasks.base import Task
from perceiver.tasks.masked_language_model import MaskedLanguageModel
from perceiver.tasks.text_classifier import TextClassifier
from pipelines import pipeline as pipeline_module
from pipelines.config import RunConfig, ScalingConfig, TrackingConfig
from pipelines.pipeline import Pipeline
from pipelines.storage import Storage
from tests.benchmarks.loop import Clock, stages
from tests.benchmarks.measure import Pass, interleave
from tests.benchmarks.processes import Child
from tests.benchmarks.settings import Settings, say
from tests.benchmarks.workloads import Size
from tests.mlflow_server import Proxy, free_port, mlflow_server

WITHOUT, HEALTHY, DEAD, SLOW = "without MLflow", "healthy server", "dead server", "server that takes 5 s"
_STEPS: dict[str, dict[Size, int]] = {
    "tiny": {"default": 2000, "tiny": 60},
    "quickstart": {"default": 300, "tiny": 20},
}
_TASKS: dict[str, type[Task]] = {"tiny": TextClassifier, "quickstart": MaskedLanguageModel}
_SLOW_SECONDS = 5.0
_DRAIN_SECONDS = 1.0  # what comes after the last step is not measured
_WARM_UP = 10


@dataclass(frozen=True)
class StepPass(Pass):
    """What the steps of a training took; `seconds` is their number times the median step.

    Attributes:
        mean: Seconds of a step on average, with all pauses between the first and the last one.
        cores: Seconds of the process's cores in a step on average, those of tracking among them.
    """

    mean: float = 0.0
    cores: float = 0.0


def measure_tracking(settings: Settings) -> dict[str, Any]:
    """Train each stage in turns.

    Returns:
        stages: name of a stage -> steps (of a training) and the rows of tests.benchmarks.measure.
    """
    with mlflow_server_and_proxy() as (address, proxy):
        uris = {WITHOUT: None, HEALTHY: address, DEAD: f"http://127.0.0.1:{free_port()}", SLOW: proxy.address}
        stages = {
            name: _measure_stage(name, steps[settings.size], uris, proxy, settings) for name, steps in _STEPS.items()
        }
    return {"stages": stages}


@contextmanager
def mlflow_server_and_proxy() -> Iterator[tuple[str, Proxy]]:
    """Run a server, and before it a proxy that can be slow."""
    with tempfile.TemporaryDirectory(prefix="perceiver-benchmark-") as folder, mlflow_server(Path(folder)) as address:
        proxy = Proxy(address)
        proxy.up()
        try:
            yield address, proxy
        finally:
            proxy.down()


def _measure_stage(
    stage: str, steps: int, uris: Mapping[str, str | None], proxy: Proxy, settings: Settings
) -> dict[str, Any]:
    say(f"  {stage}")
    with tempfile.TemporaryDirectory(prefix="perceiver-benchmark-") as folder, ExitStack() as stack:
        runners = {}
        for number, (name, uri) in enumerate(uris.items()):
            child = Child(Trainer, stage, str(Path(folder) / f"runs-{number}"), str(Path(folder) / "cache"), uri, steps)
            stack.callback(child.close)
            runners[name] = _Runner(child, proxy if name == SLOW else None)
        passes, failures = interleave(runners, settings.rounds, say)
    rows = [
        {"name": name, "failure": failures.get(name), "rounds": [asdict(done) for done in passes.get(name, [])]}
        for name in uris
    ]
    return {"steps": steps, "rows": rows}


class _Runner:
    """Runs the rounds of a child; a proxy is slow only meanwhile, so that what is left over is soon done."""

    def __init__(self, child: Child, proxy: Proxy | None) -> None:
        self._child, self._proxy = child, proxy

    def ask(self, request: int) -> Any:
        with self._slow():
            return self._child.ask(request)

    @contextmanager
    def _slow(self) -> Iterator[None]:
        if self._proxy is not None:
            self._proxy.delay = _SLOW_SECONDS
        yield
        if self._proxy is not None:
            self._proxy.delay = 0.0


class Trainer:
    """Trains a stage, once for each round, in a process of its own.

    Args:
        stage: Its name.
        folder: Storage path.
        cache: Cache folder.
        uri: MLflow's tracking URI (none: without MLflow).
        steps: Steps of a training.
    """

    def __init__(self, stage: str, folder: str, cache: str, uri: str | None, steps: int) -> None:
        os.environ.pop("MLFLOW_TRACKING_URI", None)
        pipeline_module._DRAIN_SECONDS = _DRAIN_SECONDS
        self._storage = Storage.from_uri(folder)
        self._tracking = TrackingConfig(mlflow=uri is not None, uri=uri, tensorboard=False)
        self._config, self._task = stages(cache, steps)[stage], _TASKS[stage]

    def __call__(self, number: int) -> StepPass:
        """Run a round."""
        for thread in threading.enumerate():  # of the round before
            if thread.name == "tracking-MLflow":
                thread.join(60)
        clock = Clock()
        run = RunConfig(f"run-{number}", self._storage.uri, ScalingConfig(num_workers=0), self._tracking)
        with clock.watch(self._task):
            Pipeline(self._config, {"stage": self._config}, run, self._storage).execute(_Silence())
        ticks = clock.ticks[_WARM_UP:]
        steps = len(ticks) - 1
        lengths = [after[0] - before[0] for before, after in zip(ticks, ticks[1:], strict=False)]
        seconds, cores = (ticks[-1][i] - ticks[0][i] for i in (0, 1))
        return StepPass(median(lengths) * steps, steps, 0, mean=seconds / steps, cores=cores / steps)


class _Silence:
    """Shows nothing."""

    def update(self, state: Any) -> None:
        """Take a state of the training."""

    def message(self, text: str) -> None:
        """Take a line."""
