"""What the tests of tracking share: records, journals, and a driver that follows one stage."""

import time

from pipelines.journal import JournalWriter
from pipelines.tracking import Tracker

SAMPLES = [{"text": "i saw this [MASK]", "fills": [[["movie", 0.31], ["film", 0.28]]]}]


def train(step, loss=1.0):
    return {"kind": "train", "time": 1000.0 + step, "epoch": 0, "step": step, "loss": loss, "learning_rate": 1e-3}


def validation(step):
    return {"kind": "validation", "time": 1000.5 + step, "epoch": 0, "step": step, "val_loss": 0.5, "num_samples": 9}


def fills(step):
    return {"kind": "fills", "time": 1000.6 + step, "epoch": 0, "step": step, "samples": SAMPLES}


def write(run, records, stage="mlm", after_step=-1):
    writer = JournalWriter(run.folder / stage, after_step)
    for record in records:
        writer.write(record)
    writer.close()


def follow(run, warnings=None, status="FINISHED", stage="mlm", **options):
    """Track one stage whose journal is written, as a driver would."""
    tracker = Tracker(run, (warnings if warnings is not None else []).append, poll_seconds=0.05)
    tracker.begin_stage(stage, run.folder / stage, {"trainer": {"batch_size": 4}}, {"data_fingerprint": "abc"})
    return tracker.close(status, **options)


def wait_for(condition, seconds=30):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "nothing happened in time"
        time.sleep(0.02)
