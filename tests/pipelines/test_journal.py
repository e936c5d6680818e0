import json
import math
import uuid

import pytest

from pipelines.journal import JournalWriter, StepMarks, decode_record, encode_record, read_journal
from pipelines.storage import Storage


@pytest.fixture(params=["local", "memory"])
def folder(request, tmp_path):
    if request.param == "local":
        return Storage.from_uri(tmp_path / "mlm")
    return Storage.from_uri(f"memory://{uuid.uuid4().hex}/mlm")


def train(step, loss=1.0):
    return {"kind": "train", "time": 1000.0 + step, "epoch": 0, "step": step, "loss": loss}


def write(folder, records, after_step=-1):
    writer = JournalWriter(folder, after_step)
    for record in records:
        writer.write(record)
    writer.close()


def steps(records):
    return [record["step"] for record in records]


def test_records_come_back_as_they_were(folder):
    fills = {
        "kind": "fills",
        "time": 5.0,
        "epoch": 0,
        "step": 2,
        "samples": [{"text": "ein [MASK]\u2028é", "fills": [[["nan", 0.5], ["inf", 0.25]]]}],
    }
    write(folder, [train(1), fills])
    assert read_journal(folder).records == [train(1), fills]


def test_not_a_number_survives_as_strict_json():
    line = encode_record({**train(1), "loss": math.nan, "a": math.inf, "b": -math.inf, "deep": [[math.nan]]})
    assert b"NaN" not in line
    assert b"Infinity" not in line
    record = decode_record(line)
    assert math.isnan(record["loss"])
    assert (record["a"], record["b"]) == (math.inf, -math.inf)
    assert json.loads(line)["deep"] == [["nan"]]


def test_time_is_filled_in(folder):
    write(folder, [{"kind": "train", "epoch": 0, "step": 1, "loss": 1.0}])
    assert read_journal(folder).records[0]["time"] > 1.7e9


def test_record_without_step_is_a_bug(folder):
    writer = JournalWriter(folder)
    with pytest.raises(AssertionError, match="lacks"):
        writer.write({"kind": "train", "epoch": 0})


def test_reader_goes_on_where_it_was(folder):
    assert read_journal(folder).records == []
    writer = JournalWriter(folder)
    writer.write(train(1))
    writer.flush()
    first = read_journal(folder)
    assert steps(first.records) == [1]
    assert read_journal(folder, first.cursor).records == []
    writer.write(train(2))
    writer.flush()
    second = read_journal(folder, first.cursor)
    assert steps(second.records) == [2]
    assert not second.restarted


def test_local_records_can_be_read_before_a_flush(tmp_path):
    folder = Storage.from_uri(tmp_path)
    JournalWriter(folder).write(train(1))
    assert steps(read_journal(folder).records) == [1]


def test_remote_records_appear_with_a_flush():
    folder = Storage.from_uri(f"memory://{uuid.uuid4().hex}")
    writer = JournalWriter(folder)
    writer.write(train(1))
    assert read_journal(folder).records == []
    writer.flush()
    assert steps(read_journal(folder).records) == [1]


def test_torn_tail_is_left_until_it_is_complete(tmp_path):
    folder = Storage.from_uri(tmp_path)
    lines = encode_record(train(1)) + encode_record(train(2))
    for cut in range(len(encode_record(train(1))), len(lines)):
        (tmp_path / "metrics.jsonl").write_bytes(lines[:cut])
        reading = read_journal(folder)
        assert steps(reading.records) == [1]
        (tmp_path / "metrics.jsonl").write_bytes(lines)
        assert steps(read_journal(folder, reading.cursor).records) == [2]


def test_resuming_cuts_what_came_after_the_checkpoint_and_torn_lines(folder):
    validation = {"kind": "validation", "time": 1.0, "epoch": 0, "step": 2, "val_loss": 0.5}
    write(folder, [train(1), train(2), validation, train(3)])
    torn = (folder / "metrics.jsonl").read_bytes() + encode_record(train(4))[:-5]
    (folder / "metrics.jsonl").write_bytes(torn)
    write(folder, [train(3, loss=7.0)], after_step=2)
    assert read_journal(folder).records == [train(1), train(2), validation, train(3, loss=7.0)]


def test_resuming_before_the_test_drops_an_earlier_test(folder):
    test = {"kind": "test", "time": 1.0, "epoch": 0, "step": 1, "test_loss": 0.5}
    write(folder, [train(1), test])
    write(folder, [{**test, "time": 2.0}], after_step=1)
    assert [record["time"] for record in read_journal(folder).records] == [1001.0, 2.0]


def test_beginning_anew_drops_everything(folder):
    write(folder, [train(0), train(1)])
    write(folder, [train(5)])
    assert steps(read_journal(folder).records) == [5]


@pytest.mark.parametrize("rewritten", [0, 1, 2, 3, 6])
def test_reader_misses_and_repeats_nothing_when_a_run_resumes(folder, rewritten):
    """Whether the new file is shorter than what was read, as long, or longer, and wherever its lines end."""
    write(folder, [train(step) for step in range(1, 6)])
    reading = read_journal(folder)
    marks = StepMarks()
    taken = marks.take(reading.records)
    write(folder, [train(step, loss=2.125) for step in range(3, 3 + rewritten)], after_step=2)
    again = read_journal(folder, reading.cursor)
    assert again.restarted
    taken += marks.take(again.records)
    write(folder, [train(9)], after_step=8)
    taken += marks.take(read_journal(folder, again.cursor).records)
    assert steps(taken) == sorted({*range(1, 6), *range(1, 3 + rewritten), 9})


def test_cut_that_touches_nothing_that_was_read_goes_unnoticed(folder):
    write(folder, [train(1)])
    first = read_journal(folder)
    write(folder, [train(2)], after_step=1)
    second = read_journal(folder, first.cursor)
    assert steps(second.records) == [2]
    assert not second.restarted


def test_journal_that_went_away_is_read_from_the_start_when_it_is_back(folder):
    write(folder, [train(1), train(2)])
    first = read_journal(folder)
    (folder / "metrics.jsonl").delete()
    gone = read_journal(folder, first.cursor)
    assert gone.restarted
    write(folder, [train(1)])
    assert steps(read_journal(folder, gone.cursor).records) == [1]


def test_marks_are_kept_per_kind():
    marks = StepMarks({"train": 3})
    validation = {"kind": "validation", "step": 2}
    assert not marks.is_new(train(3))
    assert marks.take([train(3), train(4), validation, train(4)]) == [train(4), validation]
    assert marks.steps == {"train": 4, "validation": 2}
