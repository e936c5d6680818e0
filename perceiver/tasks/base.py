"""What all tasks share: an exact global loss, stateless dropout, metrics over every sample once."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torchmetrics import MeanMetric, Metric, SumMetric

from perceiver.config import OptimizerConfig
from perceiver.optim import build_optimizer, can_fuse, schedule_factor
from perceiver.random import step_seed

Batch = dict[str, Tensor]

NOT_COMPUTED = -1.0  # in place of a gradient's norm


class LossTerms(NamedTuple):
    """A loss before it is divided, so that it can be added up over workers.

    Attributes:
        total: Sum of the losses of all terms, a scalar with gradient.
        num_terms: Number of terms, a scalar.
    """

    total: Tensor
    num_terms: Tensor


class Evaluation(NamedTuple):
    """A loss before it is divided, and the predictions that training has no use for.

    Attributes:
        loss: The loss.
        predictions: Predicted class of each term, (T,).
        labels: True class of each term, (T,); -100 where there is none.
        logits: What the predictions come from, (T, number of classes), where they are few enough to be kept.
    """

    loss: LossTerms
    predictions: Tensor
    labels: Tensor
    logits: Tensor | None = None


def parts_of(batch: Batch | list[Batch]) -> list[Batch]:
    """Return the parts in which a worker computes its share of a training batch."""
    return batch if isinstance(batch, list) else [batch]


def count_tokens(parts: list[Batch]) -> Tensor | None:
    """Return the tokens in the parts of a batch that are no padding, a scalar; None where there are no tokens."""
    counts = [((part["sample_ids"] >= 0)[:, None] & ~part["pad_mask"]).sum() for part in parts if "pad_mask" in part]
    return torch.stack(counts).sum() if counts else None


class Task(pl.LightningModule):
    """A model with its loss, metrics and optimizer. Subclasses say what the loss terms of a batch are.

    The loss of a step is the sum over the global batch divided by its number of terms, whatever the number of
    workers: the ranks' sums and counts are added before the division, because ranks hold unequal numbers of terms.

    Args:
        model: The network, a plain torch module.
        optimizer: Optimizer and schedule.
        accuracy: Metric over (predictions, labels) that ignores the label -100.
        total_steps: Optimizer steps of the whole run.
        seed: Seed of the dropout masks.

    Attributes:
        signal: A number that travels with the loss of a step: the ranks' sum of it is in `step_numbers` of all of them,
            which is how they agree on something without a collective of its own.
        log_gradient_norm: Whether the L2 norm of the gradient is computed where nothing is clipped.
        step_numbers: Loss, sum of the signals, norm of the gradient before clipping (NOT_COMPUTED where it was not
            wanted) and tokens that are no padding, over all ranks (0 where there are no tokens), of the last step,
            (4,), on the device of the training.
    """

    signal: float = 0.0
    log_gradient_norm: bool = False
    step_numbers: Tensor | None = None

    def __init__(
        self, model: nn.Module, optimizer: OptimizerConfig, accuracy: Metric, total_steps: int, seed: int = 0
    ) -> None:
        super().__init__()
        self.model = model
        self.optimizer_config = optimizer
        self.total_steps = total_steps
        self.seed = seed
        self.mean_loss = MeanMetric()
        self.accuracy = accuracy
        self.num_samples = SumMetric()
        self._step_sums: Tensor | None = None

    def loss_terms(self, batch: Batch) -> LossTerms:
        """Return the undivided loss of this worker's part of a batch."""
        raise NotImplementedError

    def count_terms(self, batch: Batch) -> Tensor:
        """Return the number of terms that `loss_terms` would add up, a scalar, before anything is computed."""
        raise NotImplementedError

    def evaluate(self, batch: Batch) -> Evaluation:
        """Return the undivided loss of this worker's part of a batch, and the predictions."""
        raise NotImplementedError

    def configure_optimizers(self) -> Any:
        """Build the optimizer and a schedule that advances with every step."""
        fused = can_fuse(str(self.trainer.precision))
        optimizer = build_optimizer(self.model, self.optimizer_config, fused)
        factor = schedule_factor(self.optimizer_config, self.total_steps)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Let the configured learning rate and weight decay hold, where a search changed them since the checkpoint."""
        (state,), (schedule,) = checkpoint["optimizer_states"], checkpoint["lr_schedulers"]
        groups = build_optimizer(self.model, self.optimizer_config).param_groups
        for saved, group in zip(state["param_groups"], groups, strict=True):
            saved["weight_decay"] = group["weight_decay"]
            if saved["initial_lr"] != group["lr"]:
                saved["lr"] *= group["lr"] / saved["initial_lr"]
                saved["initial_lr"] = group["lr"]
        schedule["base_lrs"] = [group["lr"] for group in groups]

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Scale a large gradient down to the norm that is set, and note the numbers of the step.

        Lightning would refuse where a fused optimizer meets bfloat16, as if its gradients were scaled like float16's.
        """
        assert self._step_sums is not None
        norm = self._step_sums.new_tensor(NOT_COMPUTED)
        if gradient_clip_val:
            norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), gradient_clip_val)
        elif self.log_gradient_norm:
            norm = torch.nn.utils.get_total_norm([p.grad for p in self.model.parameters() if p.grad is not None])
        if isinstance(norm, DTensor):  # each worker has a part of the model
            norm = norm.full_tensor()
        total, count, signals, tokens = self._step_sums
        self.step_numbers = torch.stack([total / count, signals, norm.float(), tokens])

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: torch.optim.Optimizer) -> None:
        """Leave the gradients alone: `on_train_batch_start` cleared them, and those of parts are being added up."""

    def on_train_batch_start(self, batch: Batch | list[Batch], batch_idx: int) -> None:
        """Clear the gradients; make dropout a function of step and rank alone, so that a resumed run repeats it."""
        self.trainer.optimizers[0].zero_grad()
        seed = step_seed(self.seed, self.trainer.global_step, self.trainer.global_rank)
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would spend a millisecond where there is no GPU
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)

    def training_step(self, batch: Batch | list[Batch], batch_idx: int) -> Tensor:
        """Return the loss whose gradient, averaged over ranks, is that of the global batch's mean loss.

        Of a batch in parts, it is the loss of the last one: the gradients of the others are computed here.
        """
        *others, last = parts_of(batch)
        num_tokens = count_tokens(parts_of(batch))
        if not others:
            terms = self.loss_terms(last)
            sums = self._add_ranks(terms.total.detach(), terms.num_terms, num_tokens)
            return terms.total * (self.trainer.world_size / sums[1])
        # The terms have to be counted before the first gradient.
        counts = torch.stack([self.count_terms(part).float() for part in [*others, last]])
        factor = self.trainer.world_size / self._add_ranks(counts.new_zeros(()), counts.sum(), num_tokens)[1]
        total = torch.zeros_like(factor)
        for part in others:
            terms = self.loss_terms(part)
            total += terms.total.detach()
            with torch.autocast(self.device.type, enabled=False):  # it is for forward passes alone
                self.trainer.strategy.backward(terms.total * factor, None)  # ranks add up theirs with the last part's
        terms = self.loss_terms(last)
        self._add_ranks(total + terms.total.detach(), counts.sum(), num_tokens)
        return terms.total * factor

    def _add_ranks(self, total: Tensor, num_terms: Tensor, num_tokens: Tensor | None) -> Tensor:
        """Add up loss, terms, signal and tokens over the ranks, and keep the sums: (4,), the second at least 1."""
        signal = torch.full_like(total, self.signal, dtype=torch.float32)
        tokens = torch.zeros_like(signal) if num_tokens is None else num_tokens.float()
        sums = torch.stack([total.float(), num_terms.float(), signal, tokens])
        if self.trainer.world_size > 1:
            torch.distributed.all_reduce(sums)
        sums[1].clamp_(min=1)
        self._step_sums = sums
        return sums

    def keep_tested(self, batch: Batch, evaluation: Evaluation) -> None:
        """Keep what is to be known of the samples or tokens of a test batch beside the metrics; by default nothing."""

    def gather_tested(self) -> None:
        """Bring together, at the end of a test, what the ranks kept; by default nothing."""

    def _evaluate(self, batch: Batch) -> Evaluation:
        evaluation = self.evaluate(batch)
        loss, predictions, labels = evaluation.loss, evaluation.predictions, evaluation.labels
        self.mean_loss.update(loss.total / loss.num_terms.clamp(min=1), weight=loss.num_terms)
        if labels.numel():  # a short text may have no masked token
            self.accuracy.update(predictions, labels)
        self.num_samples.update((batch["sample_ids"] >= 0).sum())
        return evaluation

    def _report(self, prefix: str) -> None:
        """Log the metrics of a pass over a split; each `compute` adds up the ranks."""
        metrics = {"loss": self.mean_loss, "accuracy": self.accuracy, "samples": self.num_samples}
        for name, metric in metrics.items():
            self.log(f"{prefix}_{name}", metric.compute().float(), rank_zero_only=False)
            metric.reset()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Add a batch to the validation metrics."""
        self._evaluate(batch)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Add a batch to the test metrics."""
        self.keep_tested(batch, self._evaluate(batch))

    def on_validation_epoch_end(self) -> None:
        """Log val_loss, val_accuracy and val_samples."""
        self._report("val")

    def on_test_epoch_end(self) -> None:
        """Log test_loss, test_accuracy and test_samples, and bring together what else was kept."""
        self._report("test")
        self.gather_tested()
