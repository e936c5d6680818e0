"""A search: Ray Tune runs the trials, their folders keep what became of them."""

from __future__ import annotations

import json
import logging
import os
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import ray
import ray.tune
from optuna.distributions import BaseDistribution, distribution_to_json

from perceiver.errors import UserError
from pipelines.cli import Command, PipelineConfig
from pipelines.cluster import check_cluster, connected, own_resources
from pipelines.config import RunConfig, ScalingConfig, SentimentConfig
from pipelines.lock import HOLDER, LOCK, check_unlocked, run_lock
from pipelines.pipeline import Pipeline
from pipelines.sink import PipelineRun
from pipelines.stage_folder import plain
from pipelines.stages import prepare, with_absolute_paths
from pipelines.storage import Storage, check_run_name
from tune.config import Goal, SearchConfig
from tune.record import RAN, TRIALS, TrialRecord, read_records, trial_name, with_missed_epochs
from tune.schedulers import make_scheduler, mutable_space
from tune.searcher import NUMBER, TRIAL, SpaceSearcher, check_space
from tune.space import SPACES, load_space, value_of, with_values
from tune.trial import Trial, TrialPlan
from tune.watch import Listener, Watch

SETTINGS = "search.json"
VAL_LOSS, VAL_ACCURACY = "val_loss", "val_accuracy"
_SCRATCH = ".ray"
_TUNE_CHECKPOINTS = 4  # which population-based training passes on
_SETTING_NAMES = {
    "verb": "pipeline",
    "base": "base configuration",
    "space": "space",
    "goal": "metric or mode",
    "scheduler": "scheduler",
}
_ENVIRONMENT = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a trial that failed reports no metric
    "TUNE_GLOBAL_CHECKPOINT_S": "100000000",  # the trials' own folders are what a search goes on from
}


@dataclass(frozen=True)
class Search:
    """A search that was checked.

    Attributes:
        verb: The pipeline.
        base: Its configuration, that of trial 0.
        run: Where results lie and what tracks them.
        config: The search.
        goal: What it optimizes.
        space: Fields that it changes.
        storage: The storage path.
    """

    verb: str
    base: PipelineConfig
    run: RunConfig
    config: SearchConfig
    goal: Goal
    space: Mapping[str, BaseDistribution]
    storage: Storage

    @property
    def folder(self) -> Storage:
        """Folder of the search."""
        return self.storage / self.run.run_name

    @property
    def tracked(self) -> PipelineRun:
        """The search as tracking knows it; TensorBoard has no runs that hold others."""
        return PipelineRun(self.storage, self.run.run_name, replace(self.run.tracking, tensorboard=False))

    @property
    def max_epochs(self) -> int:
        """Epochs of a trial that is not stopped, those of the last stage."""
        return int(value_of(self.base, in_last_stage(self.base, "trainer.max_epochs")))


def plan_search(command: Command, config: SearchConfig) -> Search:
    """Check a search, before anything is started or written.

    Raises:
        UserError: If the user made a mistake.
    """
    check_run_name(command.run.run_name)
    if command.run.scaling != ScalingConfig(max_failures=command.run.scaling.max_failures):
        raise UserError("scaling is that of the trials: use --workers_per_trial and --resources_per_trial instead")
    base = with_absolute_paths(command.config)
    goal = _goal(command.verb, config)
    space = load_space(Path(config.space) if config.space else SPACES / f"{command.verb}.yaml", base)
    if config.scheduler == "pbt":
        if isinstance(base, SentimentConfig):
            raise UserError("--scheduler pbt needs a pipeline of one stage: use --scheduler asha for sentiment")
        space = mutable_space(space, is_default=config.space is None)
    check_space(base, space)
    # The epoch that is best by the metric is the one whose weights become a trial's model.
    base = with_values(base, {in_last_stage(base, "trainer.select_by"): goal.metric})
    search = Search(command.verb, base, command.run, config, goal, space, Storage.from_uri(command.run.storage_path))
    search.storage.check_writable()
    _check_free(search)
    return search


def in_last_stage(base: PipelineConfig, field: str) -> str:
    """Return the dotted name of a field of the last stage's settings."""
    return f"finetune.{field}" if isinstance(base, SentimentConfig) else field


def _goal(verb: str, config: SearchConfig) -> Goal:
    metric = config.metric or (VAL_LOSS if verb == "mlm" else VAL_ACCURACY)
    if metric not in (VAL_LOSS, VAL_ACCURACY):
        raise UserError(f"--metric is {metric}, but trials report {VAL_LOSS} and {VAL_ACCURACY}: choose one of them")
    return Goal(metric, config.mode or ("min" if metric == VAL_LOSS else "max"))


def _check_free(search: Search) -> None:
    """Refuse a name that another run or search has taken."""
    folder, resume = search.folder, search.config.resume
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file: choose another --run_name")
    check_unlocked(folder)
    if not set(folder.names()) - {LOCK, HOLDER}:
        if resume:
            raise UserError(f"--resume needs a search to go on with, but {folder} holds none: check --run_name")
        return
    before = (folder / SETTINGS).read_json()
    if before is None:
        raise UserError(f"{folder} is there, but is no search: choose another --run_name")
    if not resume:
        raise UserError(
            f"{folder} holds a search already: go on with it by --resume true, or choose another --run_name"
        )
    changed = [name for name, value in _settings(search).items() if before.get(name) != value]
    if changed:
        raise UserError(
            f"--resume goes on with the search in {folder}, but its {_SETTING_NAMES[changed[0]]} was another: use the "
            "same options again, or choose another --run_name"
        )


def _settings(search: Search) -> dict[str, Any]:
    """Return what has to be the same when a search goes on."""
    space = {field: json.loads(distribution_to_json(distribution)) for field, distribution in search.space.items()}
    settings = {
        "verb": search.verb,
        "base": asdict(search.base),
        "space": space,
        "goal": search.goal,
        "scheduler": search.config.scheduler,
    }
    return dict(plain(settings))


def run_search(search: Search, listeners: Sequence[Listener]) -> None:
    """Run the trials that are not finished yet; their records are in their folders.

    Args:
        search: The search.
        listeners: Told what becomes of the trials.

    Raises:
        UserError: If the data can't be used, the cluster can't hold a trial, or another process runs the search.
        KeyboardInterrupt: If the user stopped it.
    """
    pipeline = _plan(search, {}).pipeline(0, {})
    prepare(next(iter(pipeline.stages.values())))  # finds what is wrong with the data, and fills the caches
    with run_lock(search.folder), _connected(search) as resources:
        (search.folder / SETTINGS).write_json(_settings(search))
        past = [_restored(search, record, pipeline) for record in read_records(search.folder)]
        gpus = resources.get("GPU", 0.0) * search.config.workers_per_trial
        with Watch(search.folder, search.goal, search.config, past, listeners, gpus) as watch:
            _fit(search, watch, resources)


def _restored(search: Search, record: TrialRecord, pipeline: Pipeline) -> TrialRecord:
    """Return a trial of an earlier start with all that it came to."""
    stage = list(pipeline.stages)[-1]
    is_interrupted = record.state in ("running", "killed")
    return with_missed_epochs(record, search.folder / TRIALS / record.name / stage) if is_interrupted else record


def _fit(search: Search, watch: Watch, resources: dict[str, float]) -> None:
    config, past = search.config, watch.records
    searcher = SpaceSearcher(search.base, search.space, config, search.goal, past, watch.refuse)
    watch.learn = searcher.learn
    num_samples = config.num_samples - sum(record.state in RAN for record in past)
    if num_samples < 1:
        return
    scratch = search.folder / _SCRATCH
    trainable = ray.tune.with_parameters(Trial, plan=_plan(search, resources))
    # A trial whose workers Ray Train places needs next to nothing itself, but Ray Tune wants it to need something.
    bundle = resources if config.workers_per_trial == 1 else {"memory": 1}
    tuner = ray.tune.Tuner(
        ray.tune.with_resources(trainable, bundle),
        param_space=_population(config, searcher, num_samples),
        tune_config=ray.tune.TuneConfig(
            search_alg=None if config.scheduler == "pbt" else searcher,
            num_samples=1 if config.scheduler == "pbt" else num_samples,
            scheduler=make_scheduler(config, search.goal, search.space, search.max_epochs, past),
            max_concurrent_trials=_max_concurrent(config, resources),
            time_budget_s=config.time_budget,
            reuse_actors=True,
            trial_name_creator=lambda trial: trial_name(trial.config[TRIAL][NUMBER]),
            trial_dirname_creator=lambda trial: trial_name(trial.config[TRIAL][NUMBER]),
        ),
        run_config=ray.tune.RunConfig(
            # A name of its own: what Ray notes about a search is of no use to us, and a torn note would stop the next.
            name=uuid.uuid4().hex[:8],
            storage_path=scratch.path,
            storage_filesystem=scratch.filesystem,
            checkpoint_config=ray.tune.CheckpointConfig(num_to_keep=_TUNE_CHECKPOINTS, checkpoint_at_end=False),
            callbacks=[watch],
            verbose=0,
        ),
    )
    try:
        tuner.fit()
    finally:
        scratch.delete()
    if watch.was_interrupted:
        raise KeyboardInterrupt


def _population(config: SearchConfig, searcher: SpaceSearcher, size: int) -> dict[str, Any]:
    """Return the trials of population-based training, which Ray Tune wants to know from the start; else nothing."""
    if config.scheduler != "pbt":
        return {}
    suggestions = [searcher.suggest(str(i)) for i in range(size)]
    return {TRIAL: ray.tune.grid_search([s[TRIAL] for s in suggestions if isinstance(s, dict)])}


@contextmanager
def _connected(search: Search) -> Iterator[dict[str, float]]:
    """Connect to the cluster, and yield the resources of a trial's worker.

    Raises:
        UserError: If the cluster can't hold a trial.
    """
    os.environ.update(_ENVIRONMENT)
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # what goes wrong, the records say
    check_cluster(ScalingConfig())  # RAY_ADDRESS leads somewhere
    if (own := own_resources()) is not None:  # a cluster of our own will have these
        _resources(search.config, own)
    with connected():
        yield _resources(search.config, ray.cluster_resources())


def _resources(config: SearchConfig, total: Mapping[str, float]) -> dict[str, float]:
    """Return the resources of a trial's worker; raise a UserError if the cluster can't hold a trial."""
    resources = {"CPU": 1.0, **({"GPU": 1.0} if total.get("GPU") else {}), **config.resources_per_trial}
    for name, amount in resources.items():
        needed, available = amount * config.workers_per_trial, total.get(name, 0.0)
        if needed > available:
            raise UserError(
                f"a trial needs {needed:g} {name} (resources_per_trial times workers_per_trial), but the cluster has "
                f"{available:g}: ask for less"
            )
    return resources


def _max_concurrent(config: SearchConfig, resources: Mapping[str, float]) -> int:
    """Return how many trials train at once: Ray Tune itself does not count what the workers of a trial need."""
    total = ray.cluster_resources()
    fitting = [int(total[name] / (amount * config.workers_per_trial)) for name, amount in resources.items() if amount]
    return max(1, min([*fitting, config.max_concurrent or config.num_samples]))


def _plan(search: Search, resources: Mapping[str, float]) -> TrialPlan:
    workers = search.config.workers_per_trial
    scaling = ScalingConfig(
        num_workers=0 if workers == 1 else workers,  # 0: in the trial's own process
        cpus_per_worker=max(1, int(resources.get("CPU", 1))),
        use_gpu=None if workers == 1 else resources.get("GPU", 0) > 0,
        max_failures=search.run.scaling.max_failures,
    )
    return TrialPlan(search.verb, search.base, search.folder, scaling)
