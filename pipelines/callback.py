"""What happens around the steps of a training: metrics into the journal, progress to the driver, checkpoints."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
from torch import Tensor

from perceiver.config import TrainerConfig
from perceiver.data.loader import ReadAheadLoader
from perceiver.tasks.base import Task
from perceiver.tasks.masked_language_model import MaskedLanguageModel
from pipelines.checkpoint import Position
from pipelines.journal import JournalWriter

# Losses stay on the device until this many seconds have passed, because reading one waits for the device.
_FLUSH_SECONDS = 1.0


class StageCallback(pl.Callback):
    """Writes the journal, tells the driver how far training is, and takes checkpoints.

    Every step leaves one record. A checkpoint is taken after the journal is flushed, so that the records of all steps
    before it are safe.

    Args:
        config: How often to take checkpoints, and sizes to report.
        journal: Where rank 0 writes; None on the other ranks.
        report: Called with the state of the training.
        start: Where training starts from.
        started: `time.monotonic()` when this attempt began.
    """

    def __init__(
        self,
        config: TrainerConfig,
        journal: JournalWriter | None,
        report: Callable[[dict[str, Any]], None],
        start: Position,
        started: float,
    ) -> None:
        self.config = config
        self.journal = journal
        self.report = report
        self.start = start
        self.started = started
        self._pending: list[tuple[dict[str, Any], Tensor]] = []
        self._flushed = time.monotonic()
        self._waited = 0.0
        self._learning_rate = 0.0

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock of the epoch's first steps."""
        self._flushed = time.monotonic()

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Note the learning rate before the schedule moves on."""
        self._learning_rate = trainer.optimizers[0].param_groups[0]["lr"]

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Note the step's loss; now and then write, report, or take a checkpoint."""
        assert isinstance(pl_module, Task)
        assert pl_module.step_loss is not None
        record = self._record(trainer, "train", learning_rate=self._learning_rate)
        self._pending.append((record, pl_module.step_loss))
        due = trainer.global_step % self.config.checkpoint_every_n_steps == 0 and not trainer.is_last_batch
        if due or time.monotonic() - self._flushed > _FLUSH_SECONDS:
            self._flush(trainer)
        if due:
            self._save(trainer, trainer.current_epoch, batch_idx + 1, {})

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
            FloatingPointError: If a validation metric is not a number, or infinite.
        """
        metrics = _metrics(trainer, "val_")
        for name, value in metrics.items():
            if not math.isfinite(value):
                raise FloatingPointError(
                    f"{name} is {value} after epoch {trainer.current_epoch + 1}: training diverged, "
                    "set a lower optimizer.learning_rate or a trainer.gradient_clip_norm"
                )
        self._save(trainer, trainer.current_epoch + 1, 0, metrics)
        self._report(trainer, phase="training", epochs_saved=trainer.current_epoch + 1)

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
        """Write the pending steps, with the rate of samples and the share of time spent waiting for them."""
        if not self._pending:
            return
        now = time.monotonic()
        seconds = max(now - self._flushed, 1e-9)
        rate = len(self._pending) * self.config.batch_size / seconds
        rates = {"samples_per_second": round(rate, 2), "data_wait": round(self._take_wait(trainer) / seconds, 4)}
        loss = 0.0
        for record, step_loss in self._pending:
            loss = step_loss.item()
            self._write({**record, "loss": loss, **rates})
        self._pending.clear()
        self._flushed = now
        self._report(trainer, phase="training", loss=loss, samples_per_second=rate)

    def _take_wait(self, trainer: pl.Trainer) -> float:
        """Return the seconds for which training waited for data since the last look."""
        loader = trainer.train_dataloader
        assert isinstance(loader, ReadAheadLoader)
        waited, self._waited = loader.seconds_waited - self._waited, loader.seconds_waited
        return waited

    def _report(self, trainer: pl.Trainer, **state: Any) -> None:
        if not trainer.is_global_zero:
            return
        assert isinstance(trainer.lightning_module, Task)
        self.report(
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
        seconds = self.start.seconds + time.monotonic() - self.started
        position = Position(trainer.global_step, epoch, batch, round(seconds, 3), metrics)
        trainer.save_checkpoint(position.name, storage_options=position)
        self._flushed = time.monotonic()


def _metrics(trainer: pl.Trainer, prefix: str) -> dict[str, float]:
    return {name: value.item() for name, value in trainer.callback_metrics.items() if name.startswith(prefix)}
