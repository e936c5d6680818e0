"""The page is one file that a browser without network shows, whatever names and texts are in it."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from pipelines.config import TrackingConfig
from pipelines.past_run import PastRun, PastStage
from pipelines.report.comparison import comparison, half_interval
from pipelines.report.errors import shaded_tokens
from pipelines.report.page import StageSection, render
from pipelines.report.parts import Cell, Facts, Omitted, Part, ShadedTable, ShadedText, ShadedTexts, drawing_style
from pipelines.sentiment import BASELINES
from pipelines.sink import PipelineRun
from pipelines.storage import Storage
from tests.pipelines.report.folders import LANGUAGE_MODEL, past_stage

HOSTILE = "<script src=http://evil>alert(1)</script>\"'><img src=//evil onerror=alert(1)>{{ 7*7 }}"
_VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """Checks that tags are closed in order, and that nothing is loaded from anywhere or run."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag not in ("script", "link", "iframe", "object", "embed", "base")
        for name, value in attrs:
            assert not name.startswith("on")
            assert name != "src" or (value or "").startswith("data:image/png;base64,")
            assert name != "href" or (value or "").startswith("#")
        self.tags.append(tag)
        if tag not in _VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        assert self.open[-1:] != ["style"] or "url(" not in data
        self.text += data


def past_run(folder: Path, *stages: PastStage, name: str = "run") -> PastRun:
    run = PipelineRun(Storage.from_uri(folder), name, TrackingConfig(), {"data": {"path": HOSTILE}}, start_time=0.0)
    return PastRun(run, list(stages), "FINISHED", 65.0, {})


def rendered(past: PastRun, *parts: Part) -> Page:
    return Page(render(past, [], [StageSection(stage, parts) for stage in past.stages]))


def test_names_texts_and_reasons_are_shown_as_they_are_and_never_obeyed(tmp_path: Path) -> None:
    event = {"kind": "event", "time": 1.0, "epoch": 0, "step": 3, "event": "restart", "reason": HOSTILE}
    stage = past_stage(tmp_path / HOSTILE.replace("/", ""), [event])
    cell = Cell(HOSTILE, 3, HOSTILE)
    page = rendered(
        past_run(tmp_path, stage, name=HOSTILE),
        ShadedTable(HOSTILE, HOSTILE, [HOSTILE], [(HOSTILE, [(HOSTILE, [cell])])]),
        ShadedTexts(HOSTILE, HOSTILE, [ShadedText(HOSTILE, [cell])] * 5),
        Facts(HOSTILE, HOSTILE, {HOSTILE: HOSTILE}),
        Omitted(HOSTILE, HOSTILE),
    )
    assert page.text.count(HOSTILE) > 20
    assert "img" not in page.tags


def test_head_tells_what_ran_when_and_how_it_ended(tmp_path: Path) -> None:
    result = {"epochs": 3, "val_loss": 0.5, "test_accuracy": 0.876, "seconds": 61.0, "parameters": 1_738_643}
    page = rendered(past_run(tmp_path, past_stage(tmp_path / "text-classifier", result=result)))
    for told in ("finished", "01 January 1970, 00:00 UTC", "(1:05 later)", "0.5000", "87.60%", "1,738,643", "1:01"):
        assert told in page.text
    assert "synthetic" not in page.text


def test_synthetic_data_and_restarts_are_told(tmp_path: Path) -> None:
    event = {"kind": "event", "time": 1.0, "epoch": 0, "step": 1234, "event": "restart", "reason": "a node died"}
    stage = past_stage(tmp_path / "mlm", [event])
    page = rendered(past_run(tmp_path, PastStage(stage.run, stage.records, {}, synthetic=True)))
    assert "The data is synthetic" in page.text
    assert "a node died" in page.text
    assert "1,234" in page.text


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    page = rendered(past_run(tmp_path, past_stage(tmp_path / "mlm")), Omitted("Reliability", "there is no file"))
    assert "Not shown: Reliability; there is no file." in page.text


def test_tokens_make_up_a_text_shaded_by_their_weights() -> None:
    cells = shaded_tokens(["un", "##like", "any"], np.array([0.1, 0.2, 0.0, 9.0]))
    assert "".join(cell.text for cell in cells) == " unlike any"
    assert [cell.shade for cell in cells] == [5, 9, 0]
    assert cells[0].hint == "0.1"


def test_a_long_text_is_cut_and_says_so() -> None:
    cells = shaded_tokens(["word"] * 1000, np.ones(1000))
    assert len(cells) == 401
    assert cells[-1].text == " … and 600 more tokens"


def test_fifty_long_errors_of_two_stages_stay_below_five_megabytes(tmp_path: Path) -> None:
    text = ShadedText("text", shaded_tokens(["lengthy"] * 512, np.full(512, 1 / 512)))
    texts = ShadedTexts("errors", "", [text] * 50)
    past = past_run(tmp_path, past_stage(tmp_path / "frozen"), past_stage(tmp_path / "finetune"))
    assert len(render(past, [], [StageSection(stage, [texts]) for stage in past.stages])) < 3.5e6


def test_comparison_has_stages_and_baselines(tmp_path: Path) -> None:
    folder = Storage.from_uri(tmp_path)
    language_model = past_stage(tmp_path / "mlm", result={"test_accuracy": 0.4}, settings=LANGUAGE_MODEL)
    classifier = past_stage(tmp_path / "finetune", result={"test_accuracy": 0.9, "test_samples": 100.0})
    assert comparison(folder, [language_model, classifier]) == [], "one bar compares nothing"
    (folder / BASELINES).write_json({"data": "?", "test_accuracy": {"majority": 0.5}})
    with drawing_style():
        (picture,) = comparison(folder, [language_model, classifier])
    assert picture.name == "comparison"


def test_interval_is_that_of_a_share() -> None:
    assert half_interval(0.5, 100) == pytest.approx(0.098)
    assert np.isnan(half_interval(0.5, None))


def test_page_of_a_run_without_stages(tmp_path: Path) -> None:
    assert "run" in rendered(past_run(tmp_path)).text
