from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pytorch_lightning import Callback, LightningModule, Trainer

from perceiver.data.modules import Batch, BatchSource, DataModule
from perceiver.data.sampling import IntArray, Loading

NUM_SAMPLES, BATCH_SIZE, STEPS = 13, 4, 4


class Numbers(BatchSource):
    """Samples that are their own ids; a batch also tells the epoch that it was read for."""

    def __init__(self, size: int = NUM_SAMPLES) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def read(self, samples: IntArray, epoch: int) -> Batch:
        return {"epochs": torch.full((len(samples),), epoch)}

    def filler(self) -> Batch:
        return {"epochs": torch.tensor([-1])}


class Recorder(LightningModule):
    """Notes the batches of each training step."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.steps: list[tuple[int, int, list[int]]] = []
        self.validated: list[int] = []

    def training_step(self, batch: Batch, index: int) -> torch.Tensor:
        (epoch,) = set(batch["epochs"].tolist())
        assert epoch == self.current_epoch
        self.steps.append((epoch, index, batch["sample_ids"].tolist()))
        return self.weight * 0

    def validation_step(self, batch: Batch) -> None:
        self.validated += batch["sample_ids"].tolist()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class SaveOnce(Callback):
    """Saves a checkpoint after a number of steps, either at once or, if it is the epoch's last, when the epoch ends."""

    def __init__(self, path: Path, num_steps: int, at_epoch_end: bool) -> None:
        self.path, self.num_steps, self.at_epoch_end = path, num_steps, at_epoch_end

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self.num_steps and not self.at_epoch_end:
            trainer.save_checkpoint(self.path)

    def on_train_epoch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self.num_steps and self.at_epoch_end:
            trainer.save_checkpoint(self.path)


def fit(loading: Loading, loader_workers: int = 0, callback: Callback | None = None, **kwargs: Any) -> Recorder:
    model = Recorder()
    trainer = Trainer(
        max_epochs=3,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[callback] if callback else None,
    )
    data = DataModule(Numbers(), Numbers(5), Numbers(7), loading, loader_workers)
    trainer.fit(model, datamodule=data, **kwargs)
    return model


@pytest.fixture(scope="module")
def uninterrupted() -> Recorder:
    return fit(Loading(BATCH_SIZE, seed=3))


def test_each_epoch_of_a_fit_visits_each_sample_once_in_a_new_order(uninterrupted: Recorder) -> None:
    orders = [[i for e, _, ids in uninterrupted.steps if e == epoch for i in ids] for epoch in range(3)]
    assert len(uninterrupted.steps) == 3 * STEPS
    assert all(sorted(order) == list(range(NUM_SAMPLES)) for order in orders)
    assert orders[0] != orders[1] != orders[2]
    assert sorted(uninterrupted.validated[-5:]) == list(range(5))


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended")
@pytest.mark.parametrize("loader_workers", [0, 1])
@pytest.mark.parametrize(("num_steps", "at_epoch_end"), [(2, False), (4, False), (4, True), (6, False)])
def test_resumed_fit_takes_the_steps_that_were_left(
    tmp_path: Path, uninterrupted: Recorder, num_steps: int, at_epoch_end: bool, loader_workers: int
) -> None:
    path = tmp_path / "checkpoint.ckpt"
    first = fit(Loading(BATCH_SIZE, seed=3), loader_workers, SaveOnce(path, num_steps, at_epoch_end))
    epoch, step = divmod(num_steps, STEPS)
    loading = Loading(BATCH_SIZE, seed=3, start_epoch=epoch, start_step=step)
    resumed = fit(loading, loader_workers, ckpt_path=path, weights_only=True)
    assert first.steps == uninterrupted.steps
    assert resumed.steps == uninterrupted.steps[num_steps:]


def test_sizes_count_samples_and_global_batches() -> None:
    data = DataModule(Numbers(), Numbers(5), Numbers(7), Loading(BATCH_SIZE, 0, rank=1, world_size=2, start_step=3))
    assert (data.num_train, data.num_validation, data.num_test, data.steps_per_epoch) == (NUM_SAMPLES, 5, 7, STEPS)
    assert (len(data.train_dataloader()), len(data.val_dataloader()), len(data.test_dataloader())) == (4, 2, 2)


def test_worker_without_rows_gets_a_filler() -> None:
    loadings = [Loading(BATCH_SIZE, 0, rank=rank, world_size=2) for rank in range(2)]
    batches = [list(DataModule(Numbers(), Numbers(5), Numbers(7), loading).val_dataloader()) for loading in loadings]
    assert [batch["sample_ids"].tolist() for batch in batches[0]] == [[0, 2], [4]]
    assert [batch["sample_ids"].tolist() for batch in batches[1]] == [[1, 3], [-1]]
    assert batches[1][1]["epochs"].tolist() == [-1]


def test_evaluation_has_its_own_batch_size() -> None:
    data = DataModule(Numbers(), Numbers(5), Numbers(7), Loading(BATCH_SIZE, 0, eval_batch_size=7))
    np.testing.assert_array_equal(next(iter(data.test_dataloader()))["sample_ids"], np.arange(7))
