"""Whole runs and their reports: at the end of a run, drawn again, with what is missing, and when something fails."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.__main__ import main
from pipelines.measures import TOKEN_ACCURACY
from pipelines.past_run import read_run
from pipelines.predictions import PREDICTIONS
from pipelines.report import curves, page, parts, stage
from pipelines.report.parts import Picture
from pipelines.report.sources import Sources
from pipelines.report.write import write_report
from pipelines.sink import PICTURES, REPORT
from pipelines.storage import Storage
from tests.pipelines.report.folders import system_record as record
from tests.pipelines.report.folders import write_predictions, write_system, write_token_accuracy
from tests.pipelines.report.test_page import Page
from tests.pipelines.test_pipeline import STAGES, chain, digits

LABELS = ("<b>bad</b>", "$good_$")
NEW_FILES = ("system-0.jsonl", PREDICTIONS, TOKEN_ACCURACY)
ALWAYS = {"loss", "speed", "waiting", "learning-rate"}


@pytest.fixture(scope="module", autouse=True)
def _small_pictures() -> Iterator[None]:
    """Draw at a quarter of the resolution, which takes a fraction of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(parts._STYLE, "figure.dpi", 40)
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The storage path of a chain on hostile texts, and of an image classifier, with their reports."""
    root = tmp_path_factory.mktemp("trained")
    text = '"<script>alert({0})</script> a film http://evil/{0} & more",{1}'
    rows = [text.format(number, LABELS[number % 2]) for number in range(60)]
    (root / "reviews.csv").write_text("text,label\n" + "\n".join(rows))
    options = {"data.path": root / "reviews.csv", "tracking.report": "true", "run_name": "texts"}
    main(chain(root, root / "cache", options))
    main(digits(root, root / "cache", {"tracking.report": "true", "run_name": "images"}))
    return root


@pytest.fixture
def runs(trained: Path, tmp_path: Path) -> Path:
    """A copy of it that lacks what not every version writes."""
    for name in ("texts", "images"):
        shutil.copytree(trained / name, tmp_path / name)
    for name in NEW_FILES:
        for file in tmp_path.rglob(name):
            file.unlink()
    return tmp_path


def add_new_files(run: Path) -> None:
    """Write predictions that are all wrong, token accuracies and the load of a machine."""
    for past in read_run(Storage.from_uri(run)).stages:
        found, folder = Sources(past), Path(past.run.folder.path)
        write_system(folder, 0, [record(10, 0, "a"), record(20, 0, "a")])
        if found.kind == "masked language model":
            write_token_accuracy(folder, [1, 10], [0, 5])
            continue
        labels = found.test_images.split.labels if found.kind == "image classifier" else found.test_texts.labels
        classes = len(found.class_names)
        rows = np.full((len(labels), classes), 0.1 / (classes - 1))
        rows[np.arange(len(labels)), (labels + 1) % classes] = 0.9
        write_predictions(folder, labels.tolist(), rows)


def pictures(folder: Path) -> set[str]:
    return {file.stem for file in (folder / PICTURES).glob("*.png")}


def shown(run: Path) -> Page:
    text = (run / REPORT).read_text()
    assert len(text) < 5e6
    return Page(text)


def test_a_run_ends_with_its_page_and_its_pictures(trained: Path) -> None:
    assert "mlm" in shown(trained / "texts").text
    assert "image-classifier" in shown(trained / "images").text
    assert pictures(trained / "texts") == {"comparison"}
    for name in STAGES:
        assert pictures(trained / "texts" / name) >= ALWAYS
    assert pictures(trained / "images" / "image-classifier") >= {*ALWAYS, "accuracy"}


def test_a_second_start_draws_nothing_again(trained: Path) -> None:
    before = (trained / "images" / REPORT).stat().st_mtime_ns
    main(digits(trained, trained / "cache", {"tracking.report": "true", "run_name": "images"}))
    assert (trained / "images" / REPORT).stat().st_mtime_ns == before


def test_old_runs_have_a_page_that_says_what_is_missing(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main_report(runs / "texts")
    captured = capsys.readouterr()
    assert captured.out == f"{runs / 'texts' / REPORT}\n"
    assert captured.err == "", "what an old run lacks is no failure"
    text = shown(runs / "texts").text
    for title, reason in {
        "Confusion matrix": f"there is no {PREDICTIONS}",
        "Worst errors": f"there is no {PREDICTIONS}",
        "Accuracy by token frequency": f"there is no {TOKEN_ACCURACY}",
        "Load": "there is no system-RANK.jsonl",
    }.items():
        assert f"Not shown: {title}; {reason}." in text


def main_report(run: Path) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["report", str(run)])
    assert ended.value.code == 0


def test_with_all_sources_every_picture_is_drawn(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("texts", "images"):
        add_new_files(runs / name)
        main_report(runs / name)
    assert capsys.readouterr().err == ""
    machine, classifier = {*ALWAYS, "load", "memory", "attention-1"}, {"accuracy", "confusion", "reliability"}
    assert pictures(runs / "texts" / "mlm") >= {*machine, "perplexity", "token-accuracy"}
    assert pictures(runs / "texts" / "finetune") >= {*machine, *classifier, "roc", "attention-3"}
    images = pictures(runs / "images" / "image-classifier")
    assert images >= {*machine, *classifier, "worst-errors", "attention-3"}
    assert "roc" not in images
    page = shown(runs / "texts")
    assert "< script > alert" in page.text, "a review is shown token by token"
    assert f"{LABELS[0]}, taken for {LABELS[1]} (90.0%)" in page.text


def test_predictions_of_other_samples_are_refused(runs: Path) -> None:
    folder = runs / "texts" / "finetune"
    write_predictions(folder, [0, 1], [[0.1, 0.9], [0.9, 0.1]], [0, 10_000])
    main_report(runs / "texts")
    assert "Not shown: Worst errors; the predictions are not of the test split" in shown(runs / "texts").text


def test_data_that_has_changed_is_not_shown(runs: Path, trained: Path, tmp_path: Path) -> None:
    add_new_files(runs / "texts")
    other = tmp_path / "other.csv"
    other.write_text((trained / "reviews.csv").read_text() + "\nnew,$good_$")
    for config in (runs / "texts").rglob("config.yaml"):
        config.write_text(config.read_text().replace(str(trained / "reviews.csv"), str(other)))
    main_report(runs / "texts")
    assert f"Worst errors; {other} is not what it was when the stage was tested." in shown(runs / "texts").text


def fail(*_: Any) -> list[Picture]:
    raise RuntimeError("no ink\nleft")


def test_a_picture_that_fails_is_a_line_and_the_others_are_there(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawings = (stage._Drawing("Speed", fail), stage._Drawing("Rate", curves.learning_rate))
    monkeypatch.setattr(stage, "_OF_TRAINING", drawings)
    said: list[str] = []
    write_report(read_run(Storage.from_uri(runs / "images")), said.append)
    assert said == ["report: image-classifier: speed: it could not be drawn (no ink)"]
    assert "Not shown: Speed; it could not be drawn (no ink)." in shown(runs / "images").text
    assert "learning-rate" in pictures(runs / "images" / "image-classifier")


def test_a_report_that_fails_is_no_failure_of_the_run(
    tmp_path: Path, trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(page, "page_environment", fail)
    main(digits(tmp_path, trained / "cache", {"tracking.report": "true"}))
    captured = capsys.readouterr()
    assert "report: it could not be written (no ink)" in captured.err.splitlines()
    assert "test accuracy" in captured.out
    assert not (tmp_path / "image-classifier" / REPORT).exists()


def test_a_failed_run_has_a_page_too(tmp_path: Path, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from perceiver.tasks.base import Task

    monkeypatch.setattr(Task, "test_step", fail)
    with pytest.raises(SystemExit) as ended:
        main(digits(tmp_path, trained / "cache", {"tracking.report": "true"}))
    assert ended.value.code == 1
    assert "failed" in shown(tmp_path / "image-classifier").text


def test_a_run_that_is_not_there_is_a_mistake_of_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["report", "nothing", f"--storage_path={tmp_path}"])
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("error: there is no run")
