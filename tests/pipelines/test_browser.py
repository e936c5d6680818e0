"""What a user sees in a browser: MLflow's pages of a run and of a search, and the pages that both leave in it."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import FrameLocator, Locator, Page, expect, sync_playwright

from pipelines.__main__ import main
from pipelines.config import TrackingConfig
from pipelines.sink import PICTURES, REPORT, PipelineRun
from pipelines.storage import Storage
from pipelines.tracking import viewing_commands
from tests.mlflow_server import running
from tests.pipelines.test_pipeline import STAGES, chain
from tests.tune.options import options
from tune.report import REPORT as TUNE_REPORT

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(BROWSER is None, reason="neither Chromium nor Chrome is installed"),
]

_SEARCH_PICTURES = 5
_ARE_THERE = "images => images.every(image => image.complete && image.naturalWidth > 0)"
_MILLISECONDS = 60_000


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The storage path of a chain and of a search that MLflow knows."""
    root = tmp_path_factory.mktemp("browser")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.delenv("RAY_ADDRESS", raising=False)
        main(chain(root / "runs", root / "cache", {"tracking.mlflow": "true", "tracking.report": "true"}))
        changes = {"num_samples": 2, "trainer.max_epochs": 1, "tracking.mlflow": "true"}
        command = [sys.executable, "-m", "tune", "image-classifier", *options(root, **changes)]
        subprocess.run(command, check=True, capture_output=True, timeout=300, env=os.environ)
    return root / "runs"


@pytest.fixture(scope="module")
def address(storage: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where MLflow listens, after it was started with the command that a run prints."""
    printed = viewing_commands(PipelineRun(Storage.from_uri(storage), "sentiment", TrackingConfig()))["MLflow"]
    with running(shlex.split(printed)[1:], tmp_path_factory.mktemp("mlflow")) as found:
        yield found


@pytest.fixture(scope="module")
def browser_page() -> Iterator[Page]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1400, "height": 900})
        page.set_default_timeout(_MILLISECONDS)
        expect.set_options(timeout=_MILLISECONDS)
        yield page
        browser.close()


@pytest.fixture
def page(browser_page: Page, address: str) -> Page:
    """The list of runs, which is reached from MLflow's start page."""
    browser_page.goto("about:blank")
    browser_page.goto(address)
    browser_page.get_by_text("Model training", exact=True).click()
    browser_page.get_by_role("link", name="perceiver", exact=True).first.click()
    browser_page.get_by_role("link", name="Runs", exact=True).first.click()
    return browser_page


def open_run(page: Page, name: str) -> None:
    page.get_by_role("link", name=name, exact=True).click()
    expect(page.get_by_role("heading", name=name, exact=True)).to_be_visible()


def open_artifact(page: Page, *names: str) -> None:
    page.get_by_role("tab", name="Artifacts").click()
    for name in names:
        page.get_by_text(name, exact=True).first.click()


def shown_page(page: Page) -> FrameLocator:
    return page.frame_locator("iframe.mlflow-html-iframe")


def assert_there(images: Locator) -> None:
    """Assert that there are pictures, and that all of them were loaded."""
    expect(images.first).to_be_attached()
    assert images.evaluate_all(_ARE_THERE)


def test_from_the_list_of_runs_to_the_page_of_a_run(page: Page) -> None:
    open_run(page, "sentiment")
    open_artifact(page, REPORT)
    report = shown_page(page)
    expect(report.locator("h2")).to_have_text(list(STAGES))
    assert_there(report.locator("img"))
    assert report.locator("img").count() > 10 * len(STAGES)


def test_the_description_of_a_run_leads_to_its_page(page: Page) -> None:
    open_run(page, "sentiment")
    with page.context.expect_page() as opened:
        page.get_by_role("link", name=REPORT, exact=True).click()
    report = shown_page(opened.value)
    expect(report.locator("h1")).to_have_text("sentiment", timeout=_MILLISECONDS)
    assert_there(report.locator("img"))
    opened.value.close()


@pytest.mark.parametrize("stage", STAGES)
def test_from_a_run_to_the_pictures_of_its_stages(page: Page, stage: str, storage: Path) -> None:
    open_run(page, "sentiment")
    open_run(page, stage)
    names = sorted(file.name for file in (storage / "sentiment" / stage / PICTURES).iterdir())
    open_artifact(page, PICTURES)
    for name in names:
        expect(page.get_by_text(name, exact=True).first).to_be_visible()
    page.get_by_text("loss.png", exact=True).first.click()
    assert_there(page.get_by_alt_text(f"{PICTURES}/loss.png", exact=True))


def test_the_page_of_a_search_is_drawn_where_mlflow_shows_it(page: Page) -> None:
    open_run(page, "search")
    open_artifact(page, TUNE_REPORT)
    report = shown_page(page)
    expect(report.locator("h2")).to_have_count(_SEARCH_PICTURES)
    expect(report.locator("figure img")).to_have_count(0)
    drawn = report.locator("figure .main-svg:first-child")
    assert drawn.count() >= _SEARCH_PICTURES
    assert drawn.evaluate_all("pictures => pictures.every(picture => picture.getBoundingClientRect().height > 200)")


@pytest.mark.parametrize("scripts", [True, False])
def test_the_page_of_a_search_needs_neither_scripts_nor_a_network(
    browser_page: Page, storage: Path, scripts: bool
) -> None:
    file = storage / "search" / TUNE_REPORT
    assert file.stat().st_size < 5e6
    browser = browser_page.context.browser
    assert browser is not None
    asked: list[str] = []
    page = browser.new_context(java_script_enabled=scripts).new_page()
    page.on("request", lambda request: asked.append(request.url))
    page.goto(file.as_uri())
    if scripts:
        expect(page.locator("figure img")).to_have_count(0)
        assert page.locator("figure .interactive").count() == _SEARCH_PICTURES
    else:
        assert_there(page.locator("figure img"))
        assert page.locator("figure img").count() == _SEARCH_PICTURES
    assert {url for url in asked if not url.startswith(("data:", "blob:"))} == {file.as_uri()}
    page.context.close()
