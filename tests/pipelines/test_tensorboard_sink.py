"""TensorBoard's event files, read back."""

from dataclasses import replace

import pytest

from pipelines.config import TrackingConfig
from pipelines.sink import PipelineRun, StageRun
from pipelines.storage import Storage
from pipelines.tensorboard_sink import TensorBoardSink, fills_markdown
from pipelines.tracking import Tracker
from tests.pipelines.tracked import fills, follow, train, validation, wait_for, write


@pytest.fixture
def run(tmp_path):
    """A pipeline that is shown in TensorBoard alone."""
    config = TrackingConfig(mlflow=False)
    return PipelineRun(Storage.from_uri(tmp_path), "sentiment", config)


def scalars(folder):
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    found = {}
    for path in sorted(folder.iterdir()):
        for event in EventFileLoader(str(path)).Load():
            for value in event.summary.value:
                found.setdefault(value.tag, []).append((event.step, event.wall_time))
    return found


def test_tensorboard_has_every_point_once_after_a_resume(run):
    write(run, [train(1), train(2), validation(2), fills(2), train(3)])
    assert follow(run, status="KILLED")
    write(run, [train(3, 7.0), train(4)], after_step=2)
    assert follow(run)
    found = scalars(run.folder.local_path / "mlm" / "tensorboard")
    assert [step for step, _ in found["train/loss"]] == [1, 2, 3, 4]
    assert found["validation/loss"] == [(2, 1002.5)]
    assert found["validation/num_samples"] == [(2, 1002.5)]
    assert [step for step, _ in found["sample predictions/text_summary"]] == [2]


def test_tensorboard_passes_over_points_that_come_again_while_it_runs(run):
    tracker = Tracker(run, poll_seconds=0.01)
    tracker.begin_stage("mlm", run.folder / "mlm")
    write(run, [train(1), train(2), train(3)])
    folder = run.folder.local_path / "mlm" / "tensorboard"
    wait_for(lambda: folder.is_dir() and len(scalars(folder).get("train/loss", [])) == 3)
    write(run, [train(3, 7.0), train(4)], after_step=2)
    assert tracker.close()
    assert [step for step, _ in scalars(folder)["train/loss"]] == [1, 2, 3, 4]


def test_tensorboard_files_reach_remote_storage_at_the_end(run, tmp_path):
    remote = replace(run, storage=Storage.from_uri(f"memory://{tmp_path.name}"))
    write(remote, [train(1)])
    assert follow(remote)
    (remote.folder / "mlm" / "tensorboard").download_folder(tmp_path / "copy")
    assert [step for step, _ in scalars(tmp_path / "copy")["train/loss"]] == [1]


def test_tensorboard_files_of_a_finished_stage_are_kept(run):
    write(run, [train(1)])
    assert follow(run)
    stage = StageRun("mlm", run.folder / "mlm", skipped=True)
    assert not TensorBoardSink().begin(stage)
    assert "train/loss" in scalars(run.folder.local_path / "mlm" / "tensorboard")


def test_fills_as_markdown():
    table = fills_markdown([{"text": "a|b [MASK]", "fills": [[["|", 0.5]]]}])
    assert table.splitlines()[2] == "| a\\|b [MASK] | 1 | \\| 50% |"
