"""`batch-predict` leaves what `classify` says, each row once, whether it was killed or not."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from filelock import FileLock

from perceiver.inference import Predictor, load
from pipelines.__main__ import main
from pipelines.lock import LOCK
from pipelines.models.batch_actor import classify_rows
from pipelines.models.batch_predict import MANIFEST
from pipelines.models.inputs import Row, Wanted, find_files
from pipelines.models.parquet_input import Cursor
from pipelines.models.shards import divide, is_written, write_shard
from tests.commands import commands
from tests.pipelines.models.saved import CLASSIFIER, IMAGES, MLM, save

WANTED = Wanted("text", "text", "id")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    for name, config in {"text": CLASSIFIER, "mlm": MLM, "image": IMAGES}.items():
        save(root / name, config)
    return root


def texts(size: int) -> list[str]:
    return [f'film "number" {i}\nwhat a {"good, " * (i % 5)} film' for i in range(size)]


def write_tables(folder: Path, size: int) -> list[str]:
    """Write the same rows in three forms, and return their texts."""
    folder.mkdir()
    rows = [{"id": f"r{i}", "text": text} for i, text in enumerate(texts(size))]
    with (folder / "a.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["id", "text"])
        writer.writeheader()
        writer.writerows(rows)
    (folder / "b.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    pq.write_table(pa.Table.from_pylist(rows), folder / "c.parquet", row_group_size=17)
    return [row["text"] for row in rows]


@pytest.mark.parametrize("rows_per_shard", [1, 7, 17, 1000])
def test_shards_hold_each_row_once_in_order(tmp_path: Path, rows_per_shard: int) -> None:
    expected = write_tables(tmp_path / "in", 40)
    files = find_files([str(tmp_path / "in")], "text")
    shards = divide(files, WANTED, rows_per_shard)
    assert [shard.number for shard in shards] == list(range(len(shards)))
    assert all(1 <= shard.rows <= rows_per_shard for shard in shards)
    found = [row for shard in shards for row in shard.read(WANTED)]
    assert [row.content for _, _, row in found] == expected * 3
    assert [row.id for _, _, row in found] == [f"r{i}" for i in range(40)] * 3
    assert [(file, number) for file, number, _ in found] == [(str(file), i) for file in files for i in range(40)]
    assert shards == [type(shard).from_json(shard.to_json()) for shard in shards]


def test_a_row_group_is_decoded_once_for_all_its_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = write_tables(tmp_path / "in", 200)
    pq.write_table(pq.read_table(tmp_path / "in" / "c.parquet"), tmp_path / "in" / "c.parquet", row_group_size=150)
    shards = divide([tmp_path / "in" / "c.parquet"], WANTED, 20)
    begun: list[list[int]] = []
    iter_batches = pq.ParquetFile.iter_batches

    def counted_iter_batches(file: pq.ParquetFile, *args: Any, **options: Any) -> Any:
        begun.append(options["row_groups"])
        return iter_batches(file, *args, **options)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", counted_iter_batches)
    cursor = Cursor()
    found = [(number, row.content) for shard in shards for _, number, row in shard.read(WANTED, cursor)]
    assert found == list(enumerate(expected))
    assert begun == [[0, 1], [1]]
    in_any_order = [shards[i] for i in (3, 5, 4, 4, 9, 0)]  # as an actor that shares the work may get them
    for shard in in_any_order:
        rows = [row.content for _, _, row in shard.read(WANTED, cursor)]
        start = shard.pieces[0].start.row
        assert rows == expected[start : start + shard.rows]


def test_lines_of_text_are_divided(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("\ufeffone\r\n\r\ntwo\n\nthree".encode())
    wanted = Wanted("text", "text")
    shards = divide([tmp_path / "a.txt"], wanted, 2)
    assert [[row.content for _, _, row in shard.read(wanted)] for shard in shards] == [["one", "two"], ["three"]]


def test_only_a_whole_file_of_the_same_input_and_model_counts(tmp_path: Path) -> None:
    write_tables(tmp_path / "in", 5)
    first, second, *_ = divide([tmp_path / "in" / "a.csv"], WANTED, 2)
    schema = pa.schema([("row", pa.int64())])
    write_shard(tmp_path, first, {"row": [0, 1]}, schema, "x")
    assert is_written(tmp_path, first, "x")
    assert not is_written(tmp_path, first, "y")
    assert not is_written(tmp_path, second, "x")
    (tmp_path / first.name).rename(tmp_path / second.name)
    assert not is_written(tmp_path, second, "x")
    path = tmp_path / second.name
    path.write_bytes(path.read_bytes()[:-10])
    assert not is_written(tmp_path, second, "x")


def test_a_row_that_cannot_be_read_spoils_no_other(models: Path, tmp_path: Path) -> None:
    predictor: Predictor = load(models / "image")
    good = tmp_path / "good.png"
    PIL.Image.fromarray(np.zeros((6, 5), np.uint8)).save(good)
    (tmp_path / "bad.png").write_bytes(b"nothing")
    rows = [Row("a", good), Row("b", tmp_path / "bad.png"), Row("c", None, None, "is missing"), Row("d", good)]
    (first, none), (bad, why), (missing, because), (last, _) = classify_rows(predictor, rows)
    assert first == last == predictor.classify([good])[0]
    assert none is bad is missing is None
    assert "bad.png cannot be read as an image" in str(why)
    assert because == "is missing"


MISTAKES = {
    "input": (["--model", "{models}/text"], "--input is missing: name files or folders"),
    "none": (["--model", "{models}/text", "--input", "{data}/none"], "{data}/none does not exist: correct the path"),
    "model": (["--model", "{models}/mlm", "--input", "{data}/in"], "fills masks, but a classifier is needed: name ano"),
    "column": (["--model", "{models}/text", "--input", "{data}/in", "--text_column", "x"],
               "{data}/in/a.csv has no column x: set --text_column to one of id, text"),
    "id": (["--model", "{models}/text", "--input", "{data}/in", "--id_column", "x"], "set --id_column to one of id"),
    "id of an image": (["--model", "{models}/image", "--input", "{data}/pictures", "--id_column", "id"],
                       "{data}/pictures/a.png has no columns: leave --id_column out"),
    "label": (["--model", "{models}/text", "--input", "{data}/in", "--id_column", "label"], "rename it"),
    "actors": (["--model", "{models}/text", "--input", "{data}/in", "--num_actors", "9999"],
               "num_actors is 9999, but this machine has "),
    "remote": (["--model", "{models}/text", "--input", "s3://x/y"], "s3://x/y is not a local path: name files"),
    "empty": (["--model", "{models}/text", "--input", "{data}/empty.txt"], "{data}/empty.txt has no rows: there is"),
    "class": (["--model", "{models}/text", "--input", "{data}/in", "--id_column", "probability_pos"], "rename it"),
    "inside": (["--model", "{models}/text", "--input", "{data}/in", "--output", "{data}"],
               "output {data} holds the input {data}/in: name another folder"),
    "below": (["--model", "{models}/text", "--input", "{data}/in", "--output", "{data}/in/out"],
              "output {data}/in/out lies in the input {data}/in: name a folder elsewhere"),
    "held": (["--model", "{models}/text", "--input", "{data}/in", "--output", "{data}/held"], "{data}/held is in use:"),
    "full": (["--model", "{models}/text", "--input", "{data}/in", "--output", "{data}/other"], "other is not empty: "),
    "denied": (["--model", "{models}/text", "--input", "{data}/in", "--output", "/proc/x"], "/proc/x cannot be writ"),
    "mixed": (["--model", "{models}/text", "--input", "{data}/in", "--output", "{data}/mixed"],
              "{data}/mixed has predictions of another input: name another folder, or delete it"),
}  # fmt: skip


@pytest.mark.parametrize(("arguments", "expected"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_line_and_starts_nothing(
    arguments: list[str],
    expected: str,
    models: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    write_tables(tmp_path / "in", 3)
    (tmp_path / "empty.txt").touch()
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").touch()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    held = FileLock(tmp_path / "held" / LOCK)
    held.acquire()
    (tmp_path / "mixed").mkdir()
    (tmp_path / "mixed" / MANIFEST).write_text("{}")
    before = sorted(tmp_path.rglob("*"))
    options = [argument.format(models=models, data=tmp_path) for argument in arguments]
    output = [] if "--output" in options else ["--output", str(tmp_path / "out")]
    with pytest.raises(SystemExit) as caught:
        main(["batch-predict", *options, *output])
    said = capsys.readouterr().err
    assert caught.value.code == 2
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    assert expected.format(data=tmp_path) in said
    assert sorted(tmp_path.rglob("*")) == before


def command(models: Path, tmp_path: Path) -> list[str]:
    options = {
        "model": models / "text",
        "input": tmp_path / "in",
        "output": tmp_path / "out",
        "num_actors": 2,
        "rows_per_shard": 50,
        "batch_size": 8,
        "id_column": "id",
    }
    parts = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    return [sys.executable, "-m", "pipelines", "batch-predict", *parts]


def parts(folder: Path) -> list[Path]:
    return sorted(folder.glob("part-*.parquet"))


def wait_for_parts(folder: Path, number: int, process: subprocess.Popen[bytes], deadline: float = 120.0) -> None:
    end = time.monotonic() + deadline
    while len(parts(folder)) < number:
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < end, f"no {number} shards within {deadline} s"
        time.sleep(0.02)


def check_rows(folder: Path, expected: list[Any], size: int) -> None:
    rows = [row for part in parts(folder) for row in pq.read_table(part).to_pylist()]
    assert pq.read_table(folder).num_rows == len(rows), "the folder is a Parquet data set"
    assert [row["id"] for row in rows] == [f"r{i}" for i in range(size)] * 3
    assert [row["row"] for row in rows] == list(range(size)) * 3
    for row, prediction in zip(rows, expected * 3, strict=True):
        assert row["label"] == prediction["label"]
        assert row["error"] is None
        for name, probability in prediction["probabilities"].items():
            assert row[f"probability_{name}"] == pytest.approx(probability, abs=1e-5)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_killed_command_goes_on_and_has_the_rows_of_classify_once_each(models: Path, tmp_path: Path) -> None:
    size = 4000
    expected = load(models / "text").classify(write_tables(tmp_path / "in", size))
    log = tmp_path / "log.txt"
    with commands(log, {**os.environ, "RAY_ADDRESS": "local"}) as start:
        process = start(command(models, tmp_path))
        wait_for_parts(tmp_path / "out", 5, process)
        os.kill(process.pid, signal.SIGKILL)
        process.wait(30)
        survivors = {part: part.stat().st_mtime_ns for part in parts(tmp_path / "out")}
        assert len(survivors) < 3 * size / 50
        damaged = parts(tmp_path / "out")[0]
        damaged.write_bytes(damaged.read_bytes()[:100])
        assert start(command(models, tmp_path)).wait(300) == 0, log.read_text()
    del survivors[damaged]
    assert "shards are there already" in log.read_text()
    assert re.search(r"^[\d,]+ of [\d,]+ rows$", log.read_text(), re.MULTILINE), "progress is in the log"
    assert all(part.stat().st_mtime_ns == made for part, made in survivors.items())
    check_rows(tmp_path / "out", expected, size)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        MANIFEST,
        LOCK,
        *(p.name for p in parts(tmp_path / "out")),
    }
