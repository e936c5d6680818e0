import io
import re

import pytest
from rich.console import Console

from pipelines.progress import Progress, SummaryRow, duration, fills_line, print_summary, summary_table

STATE = {"stage": "mlm", "epoch": 1, "max_epochs": 3, "step": 10, "total_steps": 300, "loss": 6.5, "phase": "training"}
SAMPLE = {"text": "saw this [MASK] [MASK]", "fills": [[["movie", 0.31], ["film", 0.28]], [["[bold]", 0.5]]]}
ROWS = [
    SummaryRow("mlm", 3, 4.12, 0.2345, None, 4210.0),
    SummaryRow("finetune", 3, 0.35, 0.88, 0.8754, 820.0, "done before"),
    SummaryRow("majority baseline", test_accuracy=0.5),
]


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self):
        return True

    def text(self):
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.getvalue())


@pytest.fixture
def clock(monkeypatch):
    """Time that moves when it is told to."""
    now = [1000.0]
    monkeypatch.setattr("pipelines.progress.time.monotonic", lambda: now[0])
    return now


def logged(log):
    return log.getvalue().splitlines()


def test_log_gets_a_line_about_every_ten_seconds(clock):
    log = io.StringIO()
    progress = Progress(log)
    for step in range(0, 300, 10):
        progress.update({**STATE, "step": step, "samples_per_second": 512.4})
        clock[0] += 1.0
    progress.close()
    assert len(logged(log)) == 3
    assert logged(log)[1] == "mlm  epoch 1/3  step 100/300  loss 6.5000  512 samples/s  0:20 left"


def test_states_may_hold_only_what_changed(clock):
    log = io.StringIO()
    progress = Progress(log)
    progress.update(STATE)
    clock[0] += 11
    progress.update({"phase": "validating"})
    assert logged(log)[1] == "mlm  epoch 1/3  step 10/300  loss 6.5000  validating"


def test_a_new_stage_starts_afresh_and_is_shown_at_once(clock):
    log = io.StringIO()
    progress = Progress(log)
    progress.update(STATE)
    progress.update({"stage": "frozen", "phase": "starting"})
    assert logged(log)[1] == "frozen  starting"


def test_time_left_survives_a_worker_that_goes_back(clock):
    log = io.StringIO()
    progress = Progress(log)
    for step in (100, 200, 150, 160):
        progress.update({**STATE, "step": step})
        clock[0] += 10
    assert logged(log)[-1].endswith("step 160/300  loss 6.5000  2:20 left")


def test_a_note_is_shown_once(clock):
    log = io.StringIO()
    progress = Progress(log)
    progress.update(STATE)
    progress.update({"note": "reads the texts in each epoch"})
    progress.update(STATE)
    assert logged(log)[1:] == ["mlm  reads the texts in each epoch"]


def test_end_of_an_epoch_and_fills_are_always_shown(clock):
    log = io.StringIO()
    progress = Progress(log)
    progress.update(STATE)
    progress.update({"epoch_end": {"kind": "validation", "time": 1.0, "val_loss": 5.25, "val_accuracy": 0.125}})
    progress.update({"fills": [SAMPLE] * 5})
    assert logged(log)[1] == "mlm  epoch 1/3  val_loss 5.2500  val_accuracy 0.1250"
    assert logged(log)[2:] == ["    saw this [MASK] [MASK]  ->  movie 31%, film 28% | [bold] 50%"] * 3


@pytest.mark.parametrize("width", [80, 100, 140])
def test_terminal_shows_one_line_that_fits(width, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("TERM", "xterm")
    terminal = Terminal()
    progress = Progress(terminal)
    progress.update({**STATE, "stage": "finetune", "step": 1000, "total_steps": 14080, "samples_per_second": 1234.0})
    progress.message("a [message]")
    progress.close()
    lines = re.split(r"[\r\n]+", terminal.text())
    assert "a [message]" in [line.strip() for line in lines]
    shown = [line for line in lines if "finetune  epoch 1/3" in line]
    assert shown
    assert all("step 1000/14080  loss 6.5000  1234 samples/s" in line for line in shown)
    assert max(map(len, lines)) <= width
    assert ("━" in shown[0]) == (width >= 100)


def rendered(width, rows=ROWS, **options):
    console = Console(file=io.StringIO(), width=width)
    console.print(summary_table(rows, **options))
    return console.file.getvalue()


@pytest.mark.parametrize("width", [60, 80, 120])
def test_table_fits_and_never_cuts_a_number(width):
    text = rendered(width)
    assert max(map(len, text.splitlines())) <= width
    for value in ("4.1200", "23.45%", "87.54%", "50.00%", "1:10:10", "13:40"):
        assert value in text


def test_table_leaves_out_columns_without_values():
    text = rendered(100, [SummaryRow("mnist", 2, test_accuracy=0.5)])
    assert "test accuracy" in text
    assert "val loss" not in text


def test_summary_in_a_log_is_plain_and_its_commands_are_whole():
    log = io.StringIO()
    command = "python -m pipelines classify " + "x" * 200
    print_summary("/runs/[a]", ROWS, {"MLflow": "http://host", "Use it": command}, log)
    assert log.getvalue().isascii()
    assert "finetune (done before)" in log.getvalue()
    assert log.getvalue().splitlines()[-3:] == ["Results  /runs/[a]", "MLflow   http://host", f"Use it   {command}"]


def test_durations_and_fills():
    assert [duration(seconds) for seconds in (0, 59.6, 3599, 3600, 36610)] == [
        "0:00",
        "1:00",
        "59:59",
        "1:00:00",
        "10:10:10",
    ]
    assert fills_line(SAMPLE) == "movie 31%, film 28% | [bold] 50%"
