"""The page, from made-up results; pictures; the command line."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.benchmarks.__main__ import chosen, parse, public_command, sections
from tests.benchmarks.curves import greatest_difference
from tests.benchmarks.measure import Row
from tests.benchmarks.plots import plot_curves, plot_growth
from tests.benchmarks.report import write_page
from tests.benchmarks.settings import Settings
from tests.benchmarks.tables import markdown, mebibytes, seconds, times

ENVIRONMENT = {"environment": {"command": "`python -m tests.benchmarks mlm`", "processor": "an abacus"}}


def row(name: str, *rounds: float, failure: str | None = None) -> Row:
    common = {"steps": 2, "samples": 128, "tokens": 20000, "peak_bytes": 600 * 2**20, "resting_bytes": 200 * 2**20}
    return {
        "name": name,
        "failure": failure,
        "rounds": [{"seconds": s, "parameters": 1738643, **common} for s in rounds],
    }


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(results=tmp_path / "results", out=tmp_path / "docs" / "benchmarks.md")


def render(settings: Settings, **results: Any) -> str:
    for name, result in results.items():
        settings.save(name, {**result, **ENVIRONMENT})
    write_page(settings)
    return settings.out.read_text()


def test_workload_table(settings: Settings) -> None:
    rows = [
        row("ours", 1.0, 1.2, 0.8),
        row("plain", 13.0, 12.0, 20.0),
        row("transformers PerceiverForMaskedLM", 9.0, 9.6, 6.4),
        row("perceiver-pytorch PerceiverLM", failure="out of memory"),
    ]
    page = render(settings, mlm={"workload": "mlm", "batch_size": 64, "regimes": {"as run": rows, "tuned": rows[:2]}})
    ours, plain, transformers, failed = [line for line in page.splitlines() if line.startswith("| ")][2:6]
    assert "| ours | 0.500 | 128 | 20,000 | 13.0 | 1.00 | 400 | 600 | 1,738,643 |  |" in ours
    assert "| plain | 6.50 | 10 | 1,538 | 1.00 | 13.0 |" in plain
    assert "| 1.44 | 8.00 |" in transformers.replace("| 4.50 | 14 | 2,222 ", "")
    assert "attends to the inputs once" in transformers
    assert "failed: out of memory" in failed
    assert "an abacus" in page
    assert page.count("| ours |") == 2


def test_a_section_whose_raw_result_is_gone_stays(settings: Settings) -> None:
    mlm = {"workload": "mlm", "batch_size": 64, "regimes": {"as run": [row("ours", 1.0), row("plain", 8.0)]}}
    tricks = {"workload": "mlm", "regimes": {"as run": [row("all tricks", 1.0), row("like length", 1.5)]}}
    curves = {"losses": {"ours": [9.2, 8.0], "plain": [9.2, 8.0005]}}
    page = render(settings, mlm=mlm, **{"tricks-mlm": tricks}, curves=curves)
    for raw in settings.results.iterdir():
        raw.unlink()
    assert render(settings) == page
    changed = render(settings, **{"tricks-mlm": {**tricks, "regimes": {"as run": [row("all tricks", 3.0)]}}})
    assert changed != page
    assert [line for line in changed.splitlines() if line[:1] == "#"] == [
        line for line in page.splitlines() if line[:1] == "#"
    ]
    on_gpu = render(replace(settings, device="cuda"), mlm=mlm)
    assert on_gpu.startswith(changed.rstrip("\n"))
    assert on_gpu.count("### Masked language model") == 2


def test_sections_accumulate_and_say_what_they_found(settings: Settings) -> None:
    mlm = {"workload": "mlm", "batch_size": 64, "regimes": {"as run": [row("ours", 1.0), row("plain", 8.0)]}}
    tricks = {"workload": "mlm", "regimes": {"as run": [row("all tricks", 1.0), row("like length", 1.5)]}}
    floor = {"rate": 178e9, "flops": {"mlm": {"needed": 28.48e9, "executed": 30e9}}}
    curves = {"losses": {"ours": [9.2, 8.0], "plain": [9.2, 8.0005]}}
    point = {"seconds": 0.5, "bytes": 50 * 2**20}
    growth = {"growth": {"tokens": {"ours": {"128": point}, "plain": {"128": {"failure": "more than 120 s"}}}}}
    run = {"seconds": 20.0, "stage_seconds": 10.0, "epoch_seconds": 8.0, "val_loss": 0.69314, "val_accuracy": 0.5}
    slow = {**run, "seconds": 200.0, "stage_seconds": 180.0, "epoch_seconds": 170.0}
    stage = {"epochs": 15, "reviews": 5000, "with": run, "without": slow}
    render(settings, mlm=mlm)
    results = {"tricks-mlm": tricks, "frozen-stage": stage, "floor": floor, "curves": curves, "growth": growth}
    page = render(settings, **results)
    assert "### Masked language model: one training step" in page
    assert "| without: like length | batches of texts of like length" in page
    assert "| 0.750 | 1.50 | 400 |" in page
    assert "| 28.5 | 30.0 | 0.160 | 0.500 | 3.12 |" in page
    assert "**5.0e-04**" in page
    assert "| 128 | 0.500 | more than 120 s |  | 50 | more than 120 s |  |" in page
    assert "Faster by **21.2** in the epochs, by 18.0 with the test, by 10.0 in all." in page
    assert "](benchmarks/growth-cpu.png)" in page
    assert str(settings.out.parent) not in page


def test_official_size(settings: Settings) -> None:
    official = {"rows": [row("ours", 0.2)], "batch_size": 64, "flops": 44.5e12, "peak": 989e12, "source": "data sheet"}
    settings = Settings(device="cuda", results=settings.results, out=settings.out)
    page = render(settings, official=official)
    assert "**45%** (44.5 TFLOP a step, of 989 TFLOP/s, data sheet)" in page
    assert "## On a GPU" in page
    assert "## On a CPU" not in page


def test_numbers() -> None:
    assert [seconds(x) for x in (12.345, 0.4567, 0.00567)] == ["12.35", "0.457", "0.0057"]
    assert [times(x) for x in (12.345, 1.456)] == ["12.3", "1.46"]
    assert mebibytes(3000 * 2**20) == "3,000"
    assert markdown(["a", "b"], [["x", "1"]]) == "| a | b |\n| --- | ---: |\n| x | 1 |"
    assert greatest_difference({"ours": [1.0, 2.0, 3.0], "plain": [1.5, 2.0, 2.0]}) == 1.0


def test_pictures_are_drawn(settings: Settings) -> None:
    pytest.importorskip("matplotlib", reason="make bench installs it")
    plot_curves({"ours": [3.0, 2.0], "plain": [3.0, 2.001]}, settings.picture("curves"))
    point: dict[str, Any] = {"seconds": 0.5, "bytes": 50 * 2**20}
    failed: dict[str, Any] = {"failure": "out of memory"}
    results = {"ours": {"128": point, "256": point}, "plain": {"128": point, "256": failed}}
    plot_growth({"tokens": results, "pixels a side": results}, settings.picture("growth"))
    for name in ("curves", "growth"):
        assert settings.picture(name).read_bytes().startswith(b"\x89PNG")


def test_command_on_the_page_names_no_folder() -> None:
    argv = ["mlm", "--data", "/home/me/data", "--rounds", "3", "--out=/tmp/x.md", "--results", "/tmp/r"]
    assert public_command(argv, Path("/home/me/data")) == "python -m tests.benchmarks mlm --rounds 3 --data FOLDER"


def test_sections_are_chosen_by_name() -> None:
    known = list(sections())
    assert chosen([], known, "cpu") == [name for name in known if name != "official"]
    assert "official" in chosen([], known, "cuda")
    assert chosen(["tricks"], known, "cpu") == ["tricks-mlm", "tricks-frozen", "tricks-joint", "tricks-images"]
    with pytest.raises(ValueError, match="nonsense can't be measured"):
        chosen(["nonsense"], known, "cpu")


def test_options_become_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PERCEIVER_TEST_DATA", str(tmp_path))
    names, settings, only_render = parse(["mlm", "--rounds", "7", "--regime", "tuned"])
    assert (names, settings.rounds, settings.regimes, only_render) == (["mlm"], 7, ("tuned",), False)
    assert settings.data == tmp_path
    assert settings.find_data("imdb") is None
    assert settings.command == "python -m tests.benchmarks mlm --rounds 7 --regime tuned --data FOLDER"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["mlm", "--rounds", "0"], "--rounds is 0, but must be 1 or more"),
        (["mlm", "--data", "/nowhere"], "--data /nowhere is no folder"),
        pytest.param(
            ["mlm", "--device", "cuda"],
            "--device is cuda, but PyTorch finds no GPU here",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
        ),
    ],
)
def test_what_can_not_be_measured_is_refused(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        parse(arguments)
    assert end.value.code == 2
    assert message in capsys.readouterr().err


def test_table_of_what_mlflow_costs(settings: Settings) -> None:
    without, slow = row("without MLflow", 1.0, 1.2, 1.1), row("server that takes 5 s", 1.05, 1.2, 1.21)
    for done in (*without["rounds"], *slow["rounds"]):
        done |= {"mean": 0.6, "cores": 0.5}
    rows = [without, slow, row("dead server", failure="out of memory")]
    page = render(settings, mlflow={"stages": {"tiny": {"steps": 2, "rows": rows}}})
    assert "| without MLflow | 550.00 | 1.00 | 600.00 | 500.00 |" in page
    assert "| server that takes 5 s | 600.00 | 1.05 | 600.00 | 500.00 |" in page
    assert "failed: out of memory" in page


def test_table_of_what_a_death_costs(settings: Settings) -> None:
    kills = [{"seconds": 20.0, "lost": 4}, {"seconds": 10.0, "lost": 2}, {"seconds": 12.0, "lost": 9}]
    waits = {"step_seconds": 0.1, "share": 0.0123, "steps_per_checkpoint": 11.0}
    page = render(settings, recovery={"checkpoint_steps": 10, "kills": kills, "waits": waits})
    assert "| seconds until training steps again | 12.0 | 19.2 |" in page
    assert "| steps lost | 4.0 | 8.5 |" in page
    assert "one every 11 steps of 0.100 s, waited for them **1.23%** of the time" in page


def test_table_of_servers_under_load(settings: Settings) -> None:
    load = {"requests_per_second": 75.84, "p50": 0.2111, "p99": 0.31, "errors": 0, "memory": (2**29, 2**30)}
    page = render(settings, serving={"clients": 16, "seconds": 60.0, "rows": {"serve": load}})
    assert "16 clients ask for 60 s" in page
    assert "| `serve` | 75.8 | 211 | 310 | 0 | 512 | 1,024 |" in page


def test_table_of_inputs_of_any_size(settings: Settings) -> None:
    use = {"rows": 100_000, "seconds": 50.0, "driver": 2**20, "actor": 2**21, "all": 2**30}
    page = render(settings, **{"batch-predict": {"actors": 2, "rows": [use]}})
    assert "batch-predict --num_actors 2`" in page
    assert "| 100,000 | 50 | 2,000 | 1 | 2 | 1,024 |" in page
