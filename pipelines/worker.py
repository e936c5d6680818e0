"""What one training worker runs: a stage's plan becomes a Lightning fit, a test and a model folder.

Nothing here needs Ray when there is one worker, so that a search can run trials inside its own processes.
"""

from __future__ import annotations

import logging
import signal
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from tokenizers import Tokenizer

from perceiver.allocator import keep_freed_memory
from perceiver.build import build_model
from perceiver.data.modules import DataModule
from perceiver.data.sampling import Loading
from perceiver.flops import flops_per_sample
from perceiver.saving import CARD, save_model
from perceiver.sharding import ShardedStrategy, is_sharded
from perceiver.tasks.base import Task
from pipelines.build import build
from pipelines.callback import StageCallback
from pipelines.checkpoint import CheckpointStore, Position, StoreIO
from pipelines.config import StageConfig, Strategy, TextClassifierStageConfig
from pipelines.control import DivergedError, Link, Report
from pipelines.journal import JournalWriter
from pipelines.measures import baseline_of, write_tested
from pipelines.models.card import render_card
from pipelines.stage_folder import CHECKPOINTS
from pipelines.stages import StagePlan
from pipelines.system import SystemSampler


def run_stage(plan: StagePlan, link: Link, strategy: Strategy = "ddp") -> dict[str, Any]:
    """Train a stage from its newest checkpoint on, test the best weights if asked to, and leave them in model/.

    Args:
        plan: What to train.
        link: The way to the driver, and this worker's place among the others.
        strategy: What several workers share; see ScalingConfig.

    Returns:
        The stage's result: epochs, steps, best epoch, validation and test metrics, parameters, restarts, seconds,
        floating-point operations per training sample, name of the device and number of workers.

    Raises:
        StoppedError: If the driver wished it.
        DivergedError: If the numbers make no sense any more.
    """
    _be_quiet()
    if not torch.cuda.is_available():
        keep_freed_memory()
    started = time.monotonic()
    trainer_config = plan.config.trainer
    micro_batch_size = trainer_config.micro_batch_size
    store = CheckpointStore(plan.storage / CHECKPOINTS, trainer_config.select_by)

    def tell(state: dict[str, Any]) -> None:
        if link.rank == 0:
            link.report(state)

    found = _agree(_look_back(store, tell) if link.rank == 0 else None, link.world_size)
    start = found or Position()
    loading = Loading(
        batch_size=trainer_config.batch_size,
        seed=trainer_config.seed,
        rank=link.rank,
        world_size=link.world_size,
        start_epoch=start.epoch,
        start_step=start.batch,
        eval_batch_size=None if micro_batch_size is None else micro_batch_size * link.world_size,
        micro_batch_size=micro_batch_size,
    )
    device = _device(link.world_size)
    task, data = build(plan.config, plan.prepared, loading, device, tell)
    task.log_gradient_norm = trainer_config.log_gradient_norm
    tell({"parameters": _num_parameters(task)})
    with (
        _journal(plan, start, link) as journal,
        closing(StoreIO(store, in_background=plan.tests)) as checkpoints,
        _pass_on_ctrl_c(),
    ):
        callback = StageCallback(trainer_config, journal, link, checkpoints, start, started)
        trainer = _trainer(plan.config, link.world_size, strategy, checkpoints, callback)
        with _sampler(plan, link, lambda: max(trainer.global_step, start.step), device):
            best = _fit_and_test(plan, task, data, trainer, store, found, link)
        seconds = start.seconds + time.monotonic() - started
        result = {
            **_result(task, trainer, start, best, seconds),
            "restarts": len(link.reasons),
            **_circumstances(plan, link, device),
        }
        if link.rank == 0:
            _leave_results(plan, task, data, result)
    return result


def _fit_and_test(
    plan: StagePlan,
    task: Task,
    data: DataModule,
    trainer: pl.Trainer,
    store: CheckpointStore,
    found: Position | None,
    link: Link,
) -> Position:
    """Train what is left to train, give the task the best weights, test them if asked to, and return where they are."""
    if found is None or found.epoch < plan.config.trainer.max_epochs:
        trainer.fit(task, datamodule=data, ckpt_path=found.name if found else None, weights_only=True)
    best, state = load_best(store, link)
    if is_sharded(task.model):
        task.model = build_model(plan.prepared.model)
    task.load_state_dict(state["state_dict"])
    if plan.tests:
        trainer.test(task, datamodule=data, verbose=False)
    return best


def load_best(store: CheckpointStore, link: Link) -> tuple[Position, dict[str, Any]]:
    """Read the best checkpoint, which rank 0 chooses: it has written them all, the others may come before the last.

    Raises:
        DamagedFolderError: If no whole checkpoint has the metric.
    """
    if link.rank == 0:
        best, state = store.load_best()
        _agree(best, link.world_size)
        return best, state
    chosen = _agree(None, link.world_size)
    assert chosen is not None, "rank 0 has chosen one"
    return chosen, store.load(chosen)


def _sampler(
    plan: StagePlan, link: Link, step: Callable[[], int], device: torch.device
) -> AbstractContextManager[object]:
    """Sample this node, unless the stage leaves nothing behind or another worker does it."""
    if not plan.tests or link.local_rank > 0:
        return nullcontext()
    return SystemSampler(plan.storage, link.rank, step, device)


def _look_back(store: CheckpointStore, tell: Report) -> Position | None:
    """Clear away what an attempt that died left half written, and find the checkpoint to go on from."""
    store.storage.delete_leftovers()
    found, damaged = store.newest_and_damaged()
    if damaged:
        goes_on = f"goes on from {found.name}" if found else "starts anew"
        tell({"note": f"{', '.join(damaged)} {'is' if len(damaged) == 1 else 'are'} damaged: {goes_on}"})
    return found


def _agree(found: Position | None, world_size: int) -> Position | None:
    """Return to all ranks the checkpoint that rank 0 found."""
    if world_size == 1:
        return found
    box = [found]
    torch.distributed.broadcast_object_list(box, src=0)
    return box[0]


@contextmanager
def _journal(plan: StagePlan, start: Position, link: Link) -> Iterator[JournalWriter | None]:
    """Open the journal on rank 0, whose records after the checkpoint will come again; note what ended this attempt."""
    if link.rank:
        yield None
        return
    journal = JournalWriter(plan.storage, after_step=start.step)
    where = {"kind": "event", "epoch": start.epoch, "step": start.step}
    if link.reasons:
        journal.write({**where, "event": "restart", "reason": link.reasons[-1], "workers": link.world_size})
    elif start.step:
        journal.write({**where, "event": "resume", "workers": link.world_size})
    try:
        yield journal
    except DivergedError as error:
        journal.write({**where, **error.facts, "event": "diverged"})
        raise
    finally:
        journal.close()


@contextmanager
def _pass_on_ctrl_c() -> Iterator[None]:
    """Undo what Lightning makes of Ctrl-C: it ends the program as if training had failed, and is deaf to the next."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as error:
        if not isinstance(error.__context__, KeyboardInterrupt):
            raise
        signal.signal(signal.SIGINT, handler)
        raise KeyboardInterrupt from None


def _device(world_size: int) -> torch.device:
    """Return the device that Lightning will train on."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    if world_size == 1:
        return torch.device("cuda", 0)
    from ray.train.torch import get_device

    device: torch.device = get_device()
    return device


def _trainer(
    config: StageConfig, world_size: int, strategy: Strategy, checkpoint_io: StoreIO, callback: pl.Callback
) -> pl.Trainer:
    has_gpu = torch.cuda.is_available()
    torch.set_float32_matmul_precision("high" if has_gpu else "highest")  # high: TF32, what float32 stays is fast
    placement: dict[str, Any] = {"strategy": "auto", "devices": 1, "plugins": [checkpoint_io]}
    if world_size > 1:
        from ray.train.lightning import RayLightningEnvironment

        plugins = [RayLightningEnvironment(), checkpoint_io]
        placement = {"strategy": _ray_strategy(strategy), "devices": "auto", "plugins": plugins}
    trainer = pl.Trainer(
        **placement,
        accelerator="gpu" if has_gpu else "cpu",
        precision=resolve_precision(config.trainer.precision),
        max_epochs=config.trainer.max_epochs,
        gradient_clip_val=config.trainer.gradient_clip_norm,
        callbacks=[callback],
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    _leave_signals_alone(trainer)
    return trainer


def _ray_strategy(strategy: Strategy) -> Any:
    from ray.train.lightning import RayDDPStrategy

    class RayShardedStrategy(ShardedStrategy, RayDDPStrategy):
        """Knows from Ray which device is whose."""

    if strategy == "fsdp":
        return RayShardedStrategy()
    # The gradients live in the buckets that are sent while the backward pass goes on.
    return RayDDPStrategy(gradient_as_bucket_view=True)


def _leave_signals_alone(trainer: pl.Trainer) -> None:
    """Keep Lightning from ending training at SIGTERM, and from asking all ranks about it in every step.

    It would end the program as if all were well, before a checkpoint is taken; and a GPU would have to finish each step
    before it is given the next.
    """
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]


def resolve_precision(precision: str) -> Any:
    """Turn "auto" into a number format that Lightning knows: bf16-mixed on GPUs that have it, else 32-true."""
    if precision != "auto":
        return precision
    has_bf16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bf16-mixed" if has_bf16 else "32-true"


def _result(task: Task, trainer: pl.Trainer, start: Position, best: Position, seconds: float) -> dict[str, Any]:
    test = {name: value.item() for name, value in trainer.callback_metrics.items() if name.startswith("test_")}
    return {
        "epochs": trainer.max_epochs,
        "steps": trainer.global_step or start.step,
        "best_epoch": best.epoch,
        **best.metrics,
        **test,
        "parameters": _num_parameters(task),
        "seconds": round(seconds, 1),
    }


def _circumstances(plan: StagePlan, link: Link, device: torch.device) -> dict[str, Any]:
    """Return on what the stage was trained, and how much there was to compute."""
    config = plan.config
    is_frozen = isinstance(config, TextClassifierStageConfig) and config.freeze_encoder
    return {
        "flops_per_sample": flops_per_sample(plan.prepared.model, trains_encoder=not is_frozen),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        "num_workers": link.world_size,
    }


def _num_parameters(task: Task) -> int:
    return sum(parameter.numel() for parameter in task.model.parameters())


def _leave_results(plan: StagePlan, task: Task, data: DataModule, result: Mapping[str, Any]) -> None:
    """Leave the model and, of a stage that was tested, what the test found and the model's card."""
    texts = {}
    if plan.tests:
        write_tested(plan.storage, task)
        texts[CARD] = render_card(plan, result, baseline_of(task, data))
    _leave_model(plan, task, texts)


def _leave_model(plan: StagePlan, task: Task, texts: Mapping[str, str]) -> None:
    tokenizer = Tokenizer.from_str(plan.prepared.tokenizer) if plan.prepared.tokenizer else None
    with tempfile.TemporaryDirectory(prefix="perceiver-model-") as folder:
        save_model(Path(folder), task.model, plan.prepared.model, tokenizer, texts)
        (plan.storage / "model").upload_folder(folder)


def _be_quiet() -> None:
    """Leave the terminal to the driver: workers say nothing but errors."""
    for name in ("pytorch_lightning", "lightning.pytorch", "lightning.fabric", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for category in (UserWarning, FutureWarning):
        warnings.simplefilter("ignore", category)
