"""`predict` says what the model says, of any input, in any form; and mistakes are one line."""

from __future__ import annotations

import csv
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from perceiver.inference import load
from pipelines.__main__ import main
from tests.pipelines.models.saved import CLASSIFIER, IMAGES, MLM, save

TEXTS = ["what a good film", "it was bad, was it?", "film number 3"]
REPOSITORY = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    for name, config in {"text": CLASSIFIER, "mlm": MLM, "image": IMAGES}.items():
        save(root / name, config)
    return root


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Files of the same texts and images in all forms, and some that can't be used."""
    (tmp_path / "texts.txt").write_text("\n".join([TEXTS[0], "", *TEXTS[1:]]))
    with (tmp_path / "texts.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["id", "text"], *([str(i), text] for i, text in enumerate(TEXTS))])
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"id": 1, "text": text}) + "\n" for text in TEXTS))
    pq.write_table(pa.table({"text": TEXTS}), tmp_path / "texts.parquet", row_group_size=2)
    (tmp_path / "pictures").mkdir()
    for i in range(3):
        pixels = np.random.default_rng(i).integers(0, 256, (6, 5) if i else (9, 9, 3), dtype=np.uint8)
        PIL.Image.fromarray(pixels).save(tmp_path / "pictures" / f"{i}.png")
    cells = [{"bytes": path.read_bytes(), "path": path.name} for path in pictures(tmp_path)]
    pq.write_table(pa.table({"image": cells}), tmp_path / "pictures.parquet")
    (tmp_path / "pictures.csv").write_text("image\n" + "".join(f"pictures/{i}.png\n" for i in range(3)))
    for name, content in BROKEN.items():
        (tmp_path / name).write_bytes(content)
    return tmp_path


BROKEN = {
    "empty.txt": b"",
    "blank.txt": b"\n  \n",
    "empty.csv": b"",
    "header.csv": b"text\n",
    "empty.jsonl": b"",
    "latin.csv": "text\ncafé\n".encode("latin-1"),
    "quote.csv": b'text\n"open\n',
    "half.jsonl": b'{"text": "a"}\n{"text": "b\\ud83d"}\n',
    "number.jsonl": b'{"text": "a"}\n{"text": 5}\n',
    "null.jsonl": b'{"text": "a"}\n{"text": null}\n',
    "list.jsonl": b'[{"text": "a"}]\n',
    "broken.jsonl": b"nothing\n",
    "broken.parquet": b"nothing",
    "broken.png": b"nothing",
    "texts.doc": b"x",
}


def pictures(data: Path) -> list[Path]:
    return sorted((data / "pictures").iterdir())


def predict(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[list[Any], str]:
    """Run the command; return the JSON lines that it prints, and what it says besides."""
    with pytest.raises(SystemExit) as caught:
        main(["predict", *map(str, arguments)])
    printed, said = capsys.readouterr()
    assert caught.value.code == 0, said
    return [json.loads(line) for line in printed.splitlines()], said


def test_texts_are_classified_as_in_python(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results, said = predict(capsys, "--model", models / "text", "--text", *TEXTS[:2], "--text", TEXTS[2])
    expected = load(models / "text").classify(TEXTS)
    assert results == [{"text": text, **prediction} for text, prediction in zip(TEXTS, expected, strict=True)]
    assert said == ""


@pytest.mark.parametrize("name", ["texts.txt", "texts.csv", "texts.jsonl", "texts.parquet"])
def test_files_of_texts_give_the_same(name: str, models: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results, _ = predict(capsys, "--model", models / "text", "--input", data / name, "--batch_size", 2)
    assert [result["text"] for result in results] == TEXTS
    for result, expected in zip(results, load(models / "text").classify(TEXTS), strict=True):
        assert result["probabilities"] == pytest.approx(expected["probabilities"], abs=1e-5)


def test_masks_are_filled(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = "[MASK] a good [MASK]"
    results, said = predict(capsys, "--model", models / "mlm", "--text", text, "none", "--top_k", 2)
    fills = load(models / "mlm").fill([text, "none"], 2)[0]["fills"]
    assert results[0] == {"text": text, "fills": [[{"token": t, "probability": p} for t, p in f] for f in fills]}
    assert results[1] == {"text": "none", "fills": []}
    assert said == "note: a text without [MASK] that the model reads has no fills\n"
    (result,), _ = predict(capsys, "--model", models / "mlm", "--text", "a [MASK]")
    assert len(result["fills"][0]) == 5


@pytest.mark.parametrize("name", ["pictures", "pictures.parquet", "pictures.csv"])
def test_images_are_classified(name: str, models: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results, said = predict(capsys, "--model", models / "image", "--input", data / name)
    for result, expected in zip(results, load(models / "image").classify(pictures(data)), strict=True):
        assert result["probabilities"] == pytest.approx(expected["probabilities"], abs=1e-6)
        assert result["label"] == expected["label"]
    assert said == "note: images of another size are resized to 6 x 5 pixels, which the model was trained on\n"
    if name != "pictures.parquet":
        assert [result["path"] for result in results] == [str(path) for path in pictures(data)]


def read_flat(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".parquet":
        rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
        return rows
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_tables_are_written(suffix: str, models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / f"out{suffix}"
    predict(capsys, "--model", models / "text", "--text", *TEXTS, "--output", output)
    rows = read_flat(output)
    assert [row["text"] for row in rows] == TEXTS
    for row, expected in zip(rows, load(models / "text").classify(TEXTS), strict=True):
        assert row["label"] == expected["label"]
        assert float(row["probability_pos"]) == pytest.approx(expected["probabilities"]["pos"])
    predict(capsys, "--model", models / "mlm", "--text", "[MASK] film [MASK]", "--top_k", 2, "--output", output)
    assert [(int(row["mask"]), int(row["rank"])) for row in read_flat(output)] == [(1, 1), (1, 2), (2, 1), (2, 2)]
    assert list(tmp_path.iterdir()) == [output]


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_tables_hold_any_text(suffix: str, models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = ["one\rline", "two\nlines", 'a "quote", a comma', "\u2028", "\0"]
    predict(capsys, "--model", models / "text", "--text", *texts, "--output", tmp_path / f"out{suffix}")
    assert [row["text"] for row in read_flat(tmp_path / f"out{suffix}")] == texts


def test_a_review_about_masks_is_classified(models: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (data / "masks.txt").write_text("a film\na [MASK] film\n")
    results, said = predict(capsys, "--model", models / "text", "--input", data / "masks.txt")
    assert len(results) == 2
    assert said == "note: some texts have a [MASK], but the model classifies: it is read as it stands\n"


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
@pytest.mark.parametrize("model", ["text", "mlm"])
def test_predictions_repeat_a_column(
    suffix: str, model: str, models: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (data / "ids.jsonl").write_text('{"id": 7, "text": "a [MASK]"}\n' if model == "mlm" else '{"id": 7, "text": "a"}\n')
    options = ["--model", models / model, "--input", data / "ids.jsonl", "--id_column", "id"]
    results, _ = predict(capsys, *options)
    assert [result["id"] for result in results] == ["7"]
    _, said = predict(capsys, *options, "--output", data / f"out{suffix}")
    assert {row["id"] for row in read_flat(data / f"out{suffix}")} == {"7"}
    assert said == f"{data / f'out{suffix}'}: predictions for 1 row\n"


def test_json_lines_are_written(models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    printed, _ = predict(capsys, "--model", models / "text", "--text", *TEXTS)
    predict(capsys, "--model", models / "text", "--text", *TEXTS, "--output", tmp_path / "out.jsonl")
    assert [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()] == printed


def test_a_table_has_all_probabilities(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["predict", "--model", str(models / "text"), "--text", "a [red] film", "--format", "table"])
    printed = capsys.readouterr().out
    assert all(part in printed for part in ("a [red] film", "label", "neg ", "pos "))


@pytest.mark.parametrize("model", ["text", "mlm"])
def test_a_table_has_the_repeated_column(
    model: str, models: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (data / "ids.csv").write_text("id,text\nseven [7],a [MASK] film\n" if model == "mlm" else "id,text\nseven [7],a\n")
    options = ["--input", str(data / "ids.csv"), "--id_column", "id", "--format", "table"]
    with pytest.raises(SystemExit):
        main(["predict", "--model", str(models / model), *options])
    printed = capsys.readouterr().out
    assert printed.count("seven [7]") == 1


Case = tuple[str, list[str], str]
MISTAKES: dict[str, Case] = {
    "no model": ("none", ["--text", "a"], "none does not exist: name a run's folder"),
    "nothing there": ("text", ["--input", "{data}/none.csv"], "{data}/none.csv does not exist: correct the path"),
    "top_k of a classifier": ("text", ["--text", "a", "--top_k", "3"], "is a classifier, which has no --top_k: leave"),
    "mask of a classifier": ("text", ["--text", "a [MASK]"], "'a [MASK]' has a [MASK], but the model classifies: name"),
    "image to a text model": ("text", ["--input", "{data}/pictures/1.png"], "1.png is an image, but the model reads t"),
    "images to a text model": ("text", ["--input", "{data}/pictures"], "pictures holds images, but the model reads te"),
    "text to an image model": ("image", ["--text", "a"], "reads images, not texts: name images with --input, or"),
    "texts to an image model": ("image", ["--input", "{data}/texts.txt"], "holds texts, but the model reads images"),
    "empty text file": ("text", ["--input", "{data}/empty.txt"], "{data}/empty.txt has no rows: there is nothing to p"),
    "blank text file": ("text", ["--input", "{data}/blank.txt"], "{data}/blank.txt has no rows: there is nothing to p"),
    "empty table": ("text", ["--input", "{data}/empty.csv"], "{data}/empty.csv has no rows: there is nothing"),
    "table without rows": ("text", ["--input", "{data}/header.csv"], "{data}/header.csv has no rows: there is nothing"),
    "empty lines": ("text", ["--input", "{data}/empty.jsonl"], "{data}/empty.jsonl has no rows: there is nothing to"),
    "column of csv": ("text", ["--input", "{data}/texts.csv", "--text_column", "review"],
                      "{data}/texts.csv has no column review: set --text_column to one of id, text"),
    "column of jsonl": ("text", ["--input", "{data}/texts.jsonl", "--text_column", "x"], "to one of id, text"),
    "column of parquet": ("text", ["--input", "{data}/texts.parquet", "--text_column", "x"], "_column to one of text"),
    "column of images": ("image", ["--input", "{data}/texts.csv"], "has no column image: set --image_column to one"),
    "no utf-8": ("text", ["--input", "{data}/latin.csv"], "{data}/latin.csv, line 2: not UTF-8: convert the file"),
    "open quote": ("text", ["--input", "{data}/quote.csv"], "{data}/quote.csv, line 2: not comma-separated values ("),
    "null": ("text", ["--input", "{data}/null.jsonl"], "{data}/null.jsonl, row 2: text is missing: mend or remove"),
    "list": ("text", ["--input", "{data}/list.jsonl"], "{data}/list.jsonl, row 1: not an object such as"),
    "no json": ("text", ["--input", "{data}/broken.jsonl"], "{data}/broken.jsonl is not JSON, an object per line ("),
    "no parquet": ("text", ["--input", "{data}/broken.parquet"], "{data}/broken.parquet is not a Parquet file ("),
    "broken image": ("image", ["--input", "{data}/broken.png"], "{data}/broken.png cannot be read as an image ("),
    "size": ("image", ["--input", "{data}/pictures", "--resize", "false"], "0.png is 9 x 9 pixels, but the model was"),
    "suffix": ("text", ["--input", "{data}/texts.doc"], "texts.doc has the suffix '.doc', which is not known: convert"),
    "output suffix": ("text", ["--text", "a", "--output", "x.txt"], "output is x.txt, but must end with .jsonl, .csv,"),
    "output folder": ("text", ["--text", "a", "--output", "/proc/x.csv"], "output /proc/x.csv cannot be written ("),
    "no folder": ("text", ["--text", "a", "--output", "{data}/no/x.csv"], "x.csv cannot be written (No such file"),
    "half a character": ("text", ["--input", "{data}/half.jsonl"], "half.jsonl, row 2: text has half a character (a l"),
    "half an argument": ("text", ["--text", "a", "b\ud83d"], "text 2 has half a character (a lone surrogate): mend or"),
    "name too long": ("text", ["--input", "a" * 300], "a" * 100 + " can't be used (File name too long): mend that and"),
    "no text": ("text", ["--input", "{data}/number.jsonl"], "number.jsonl, row 2: text is 5, but must be a text: mend"),
    "too many fills": ("mlm", ["--text", "a [MASK]", "--top_k", "100000"], "top_k is 100,000, but the model knows "),
    "no id": ("text", ["--input", "{data}/texts.csv", "--id_column", "x"], "set --id_column to one of id, text"),
    "id of a text": ("text", ["--text", "a", "--id_column", "id"], "id_column is a column of a file, but there is no"),
    "id of lines": ("text", ["--input", "{data}/texts.txt", "--id_column", "id"], "texts.txt has no columns: leave --"),
    "id of an image": ("image", ["--input", "{data}/pictures", "--id_column", "id"], "0.png has no columns: leave --i"),
    "text as id": ("text", ["--input", "{data}/texts.csv", "--id_column", "text"], "have a column of that name: ren"),
    "batch size": ("text", ["--text", "a", "--batch_size", "0"], "batch_size is 0, but must be 1 or more"),
    "two inputs": ("text", ["--text", "a", "--input", "b"], "--text and --input are both given: give one of them"),
}  # fmt: skip


@pytest.mark.parametrize(("model", "arguments", "expected"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_line_and_leaves_nothing(
    model: str, arguments: list[str], expected: str, models: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [argument.format(data=data) for argument in arguments]
    output = [] if "--output" in options else ["--output", str(data / "out.parquet")]
    before = sorted(data.rglob("*"))
    with pytest.raises(SystemExit) as caught:
        main(["predict", "--model", str(models / model), *options, *output])
    assert caught.value.code == 2
    said = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("note: ")]
    assert len(said) == 1
    assert said[0].startswith("error: ")
    assert expected.format(data=data) in said[0]
    assert sorted(data.rglob("*")) == before


def run(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pipelines", "predict", *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False, **options
    )


def limited(size: int) -> Callable[[], None]:
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_where_a_file_has_no_room_nothing_stays(suffix: str, models: Path, tmp_path: Path) -> None:
    texts = tmp_path / "in" / "texts.txt"
    texts.parent.mkdir()
    texts.write_text("".join(f"film number {i}\n" for i in range(500)))
    output = tmp_path / f"out{suffix}"
    output.write_text("before")
    done = run("--model", models / "text", "--input", texts, "--output", output, preexec_fn=limited(3000))
    assert done.returncode == 2
    reason = "File too large): name another file"
    assert done.stderr == f"error: output {output} cannot be written ({reason}\n"
    assert output.read_text() == "before"
    assert sorted(tmp_path.iterdir()) == [tmp_path / "in", output]


def test_only_what_is_used_is_imported(models: Path) -> None:
    code = (
        "import sys; from pipelines.__main__ import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "heavy = {'ray', 'mlflow', 'pytorch_lightning', 'datasets', 'pandas', 'torchmetrics', 'sklearn', 'rich'}\n"
        "print(*sorted(heavy & set(sys.modules)))"
    )
    arguments = ["predict", "--model", str(models / "text"), "--text", "a"]
    done = subprocess.run([sys.executable, "-c", code, *arguments], cwd=REPOSITORY, capture_output=True, text=True)
    result, imported = done.stdout.splitlines()
    assert json.loads(result)["text"] == "a"
    assert imported == ""


def test_standard_input_is_read_and_a_text_of_ten_megabytes_is_cut_at_once(models: Path) -> None:
    start = time.monotonic()
    done = run("--model", models / "text", input="\ufeffa good film\n\n" + "a film " * 1_500_000 + "\nbad\n")
    assert time.monotonic() - start < 60.0
    first, long, last = (json.loads(line) for line in done.stdout.splitlines())
    assert (first["text"], len(long["text"]), last["text"]) == ("a good film", 10_500_000, "bad")
    assert done.stderr == "note: texts of more than 12 tokens are cut to what the model reads\n"
    assert long["probabilities"] == pytest.approx(load(models / "text").classify(["a film " * 12])[0]["probabilities"])


def test_an_empty_standard_input_is_a_mistake(models: Path) -> None:
    done = run("--model", models / "text", input="")
    assert (done.returncode, done.stderr) == (2, "error: the standard input has no rows: there is nothing to predict\n")


def test_a_reader_that_has_enough_is_no_error(models: Path, tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("a film\n" * 20000)
    options = ["--model", str(models / "text"), "--input", str(tmp_path / "texts.txt")]
    command = f"{sys.executable} -m pipelines predict {' '.join(options)} | head -n 1"
    done = subprocess.run(command, shell=True, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert json.loads(done.stdout)["text"] == "a film"
    assert done.stderr == ""
