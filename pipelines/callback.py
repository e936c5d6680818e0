"""What happens around the steps of a training: metrics into the journal, progress to the driver, checkpoints."""

from __future__ import annotations

import math
import time
from typing import Any

import pytorch_lightning as pl
import torch

from perceiver.config import TrainerConfig
from perceiver.data.loader import ReadAheadLoader
from perceiver.tasks.base import Task, parts_of
from perceiver.tasks.masked_language_model import MaskedLanguageModel
from pipelines.checkpoint import Position, StoreIO
from pipelines.control import HOW_TO_CONVERGE, DivergedError, Link, StoppedError, Wish
from pipelines.journal import JournalWriter
from pipelines.steps import StepReader

# Losses stay on the device until this many seconds have passed, because reading one waits for the device.
_FLUSH_SECONDS = 1.0
_WISHED_SECONDS = 10.0  # between two checkpoints while the driver wishes for them, as it does when a node will go


class StageCallback(pl.Callback):
    """Writes the journal, tells the driver how far training is, takes checkpoints, and stops where that is wished.

    Every step leaves one record. A checkpoint is taken after the journal is flushed, so that the records of all steps
    before it are safe.

    Args:
        config: How often to take checkpoints, and sizes to report.
        journal: Where rank 0 writes; None on the other ranks.
        link: The way to the driver; what it wishes is asked of rank 0 alone.
        checkpoints: Where the trainer saves.
        start: Where training starts from.
        started: `time.monotonic()` when this attempt began.
    """

    def __init__(
        self,
        config: TrainerConfig,
        journal: JournalWriter | None,
        link: Link,
        checkpoints: StoreIO,
        start: Position,
        started: float,
    ) -> None:
        self.config = config
        self.journal = journal
        self.link = link
        self.checkpoints = checkpoints
        self.start = start
        self._started = started
        self._steps = StepReader(scales_gradients=config.precision == "16-mixed")
        self._flushed = self._saved = time.monotonic()
        self._told_epoch = start.epoch
        self._waited = _Waits()
        self._learning_rate = 0.0

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock of the epoch's first steps."""
        self._flushed = time.monotonic()

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Note the learning rate before the schedule moves on, and let rank 0 tell the others what is wished."""
        assert isinstance(pl_module, Task)
        self._learning_rate = trainer.optimizers[0].param_groups[0]["lr"]
        pl_module.signal = self._wish() if trainer.is_global_zero else Wish.NOTHING

    def _wish(self) -> Wish:
        """Return what the driver wishes, or a checkpoint when the last one was long ago."""
        wish, minutes = self.link.wish(), self.config.checkpoint_every_n_minutes
        passed = time.monotonic() - self._saved
        if wish == Wish.CHECKPOINT and passed < _WISHED_SECONDS:
            wish = Wish.NOTHING
        is_due = minutes is not None and passed > 60 * minutes
        return max(wish, Wish.CHECKPOINT if is_due else Wish.NOTHING)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Note the step's loss; now and then write, report, or take a checkpoint.

        Raises:
            DivergedError: If the loss is not a number, or infinite.
            StoppedError: If the driver wishes an end.
        """
        assert isinstance(pl_module, Task)
        assert pl_module.step_numbers is not None
        record = self._record(trainer, "train", learning_rate=self._learning_rate)
        sample_ids = torch.cat([part["sample_ids"] for part in parts_of(batch)])
        wish = self._steps.add(record, pl_module.step_numbers, sample_ids)
        is_due = trainer.global_step % self.config.checkpoint_every_n_steps == 0 or wish > Wish.NOTHING
        saves = is_due and not trainer.is_last_batch  # the end of the epoch saves anyway
        if saves or time.monotonic() - self._flushed > _FLUSH_SECONDS:
            self._flush(trainer)
        if saves:
            self._save(trainer, trainer.current_epoch, batch_idx + 1, {})
        if wish == Wish.STOP and not trainer.is_last_batch:
            raise StoppedError
        self._tell_saved(trainer)

    def on_validation_batch_start(self, *_: Any) -> None:
        """Stop where that is wished; what was trained since the newest checkpoint will be trained again."""
        self._stop_alone()

    def on_test_batch_start(self, *_: Any) -> None:
        """Stop where that is wished."""
        self._stop_alone()

    def _stop_alone(self) -> None:
        if self.link.is_alone and self.link.wish() == Wish.STOP:
            raise StoppedError

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write what is pending and say that validation runs."""
        self._flush(trainer)
        self._report(trainer, phase="validating")

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the validation metrics and the fills."""
        record = self._record(trainer, "validation", **_metrics(trainer, "val_"))
        self._write(record)
        self._report(trainer, phase="training", epoch_end=record)
        if isinstance(pl_module, MaskedLanguageModel) and pl_module.fills:
            self._write(self._record(trainer, "fills", samples=pl_module.fills))
            self._report(trainer, phase="training", fills=pl_module.fills)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take the checkpoint that ends the epoch.

        Raises:
            DivergedError: If a validation metric is not a number, or infinite.
        """
        metrics = _metrics(trainer, "val_")
        for name, value in metrics.items():
            if not math.isfinite(value):
                message = f"{name} is {value} after epoch {trainer.current_epoch + 1}: {HOW_TO_CONVERGE}"
                raise DivergedError(message, {"epoch": trainer.current_epoch, "step": trainer.global_step, name: value})
        self._save(trainer, trainer.current_epoch + 1, 0, metrics)
        self._tell_saved(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Wait for the last checkpoint; what kept rank 0 from writing it is raised on all ranks, so that none waits."""
        failure: Exception | None = None
        try:
            self.checkpoints.wait()
        except Exception as error:
            failure = error
        if not self.link.is_alone:
            failure = trainer.strategy.broadcast(failure)
        if failure is not None:
            raise failure
        self._tell_saved(trainer)

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Say that the test runs."""
        self._report(trainer, phase="testing")

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the test metrics."""
        self._write(self._record(trainer, "test", **_metrics(trainer, "test_")))

    def _record(self, trainer: pl.Trainer, kind: str, **content: Any) -> dict[str, Any]:
        epoch, step = self._epoch(trainer), self._step(trainer)
        return {"kind": kind, "time": time.time(), "epoch": epoch, "step": step, **content}

    def _step(self, trainer: pl.Trainer) -> int:
        """Return the optimizer steps done, also where the trainer knows of none because it only tests."""
        return max(trainer.global_step, self.start.step)

    def _epoch(self, trainer: pl.Trainer) -> int:
        """Return the epoch, from 0, that the trainer is in or was in last."""
        return min(max(trainer.current_epoch, self.start.epoch), self.config.max_epochs - 1)

    def _write(self, record: dict[str, Any]) -> None:
        if self.journal is not None:
            self.journal.write(record)

    def _flush(self, trainer: pl.Trainer) -> None:
        """Write the steps since the last time, with their rate and the shares of time spent waiting."""
        records = self._steps.take()
        if not records:
            return
        now = time.monotonic()
        seconds = max(now - self._flushed, 1e-9)
        rate = len(records) * self.config.batch_size / seconds
        rates = {"samples_per_second": round(rate, 2)}
        if self._steps.num_tokens:
            rates["tokens_per_second"] = round(self._steps.num_tokens / seconds, 1)
        assert isinstance(trainer.train_dataloader, ReadAheadLoader)
        data, checkpoints = self._waited.since(trainer.train_dataloader.seconds_waited, self.checkpoints.seconds_waited)
        waits = {"data_wait": round(data / seconds, 4), "checkpoint_wait": round(checkpoints / seconds, 4)}
        for record in records:
            self._write({**record, **rates, **waits})
        self._flushed = now
        self._report(trainer, phase="training", loss=records[-1]["loss"], samples_per_second=rate)

    def _tell_saved(self, trainer: pl.Trainer) -> None:
        """Tell the driver of an epoch whose checkpoint has come to be whole."""
        written = self.checkpoints.written
        if written is not None and written.epoch > self._told_epoch:
            self._told_epoch = written.epoch
            self._report(trainer, phase="training", epochs_saved=written.epoch)

    def _report(self, trainer: pl.Trainer, **state: Any) -> None:
        if not trainer.is_global_zero:
            return
        assert isinstance(trainer.lightning_module, Task)
        self.link.report(
            {
                "epoch": self._epoch(trainer) + 1,
                "max_epochs": self.config.max_epochs,
                "step": self._step(trainer),
                "total_steps": trainer.lightning_module.total_steps,
                **state,
            }
        )

    def _save(self, trainer: pl.Trainer, epoch: int, batch: int, metrics: dict[str, float]) -> None:
        if self.journal is not None:
            self.journal.flush()
        seconds = self.start.seconds + time.monotonic() - self._started
        position = Position(trainer.global_step, epoch, batch, round(seconds, 3), metrics)
        trainer.save_checkpoint(position.name, storage_options=position)
        self._saved = time.monotonic()


class _Waits:
    """Turns seconds that add up into those since the last look."""

    def __init__(self) -> None:
        self._before = (0.0, 0.0)

    def since(self, *now: float) -> tuple[float, float]:
        data, checkpoints = (a - b for a, b in zip(now, self._before, strict=True))
        self._before = now[0], now[1]
        return data, checkpoints


def _metrics(trainer: pl.Trainer, prefix: str) -> dict[str, float]:
    return {name: value.item() for name, value in trainer.callback_metrics.items() if name.startswith(prefix)}
