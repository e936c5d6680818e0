"""The page: every section whose raw result is there, rendered; of the others what the page has already."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from perceiver.files import write_atomic
from tests.benchmarks import official
from tests.benchmarks.curves import greatest_difference
from tests.benchmarks.floor import Floor
from tests.benchmarks.measure import seconds_per_step
from tests.benchmarks.peers import PEERS
from tests.benchmarks.settings import Settings
from tests.benchmarks.tables import (
    batch_predict_table,
    comparison_table,
    growth_table,
    markdown,
    recovery_table,
    seconds,
    serving_table,
    times,
    tracking_table,
    trick_table,
)
from tests.benchmarks.tricks import TRICKS
from tests.benchmarks.workloads import OURS, WORKLOADS

Result = dict[str, Any]
_DEVICES = {"cpu": "On a CPU", "cuda": "On a GPU"}
_MARK = re.compile(r"^<!-- \S+ \S+ -->$", re.MULTILINE)
_REGIME_TITLES = {
    "as run": "As its users run it: nothing is set from outside.",
    "tuned": "Memory kept for everybody: glibc gives nothing back to the system (GLIBC_TUNABLES); ours, which keeps "
    "64 MB by itself, leaves that alone.",
}
_INTRODUCTION = """# Benchmarks

Written by `make bench`; do not edit. How to read it:

- Everybody does the same work interleaved, one round of each after another (A B C A B C ...), in processes of their
  own, each after one untimed batch. Seconds are medians over rounds; ratios are medians of each round's ratio.
- A round is a pass over the same reviews or images for everybody. Ours takes reviews in batches of like length, as the
  pipelines do; the others take them shuffled. Tokens are those that are not padding.
- *plain* is Perceiver IO written down with nn.MultiheadAttention and nothing else (`tests/benchmarks/plain.py`); with
  the same weights it gives our logits. It calls nn.MultiheadAttention as one does unless one knows of
  `need_weights=False`, which is a row of its own. Peers are configured as close to ours as their classes let
  one.
- *Encoder's output kept* is a step after each review was encoded once; what a whole stage gains has its own section.
- *MiB of work* is what the work adds to the memory that the process had before its first batch; *MiB in all* has the
  libraries in it, of which ours loads more (Lightning, torchmetrics).
"""


def write_page(settings: Settings) -> None:
    """Write the page from all raw results that are there, and leave its other sections as they are."""
    kept = _kept(settings.out.read_text()) if settings.out.exists() else {}
    parts = [_INTRODUCTION]
    for device, title in _DEVICES.items():
        sections = _sections(replace(settings, device=device), kept)
        if sections:
            parts += [f"## {title}\n", *sections]
    write_atomic(settings.out, "\n".join(parts).encode())


def _mark(name: str, device: str) -> str:
    """Return what stands above a section, by which it is found again."""
    return f"<!-- {name} {device} -->"


def _kept(page: str) -> dict[str, str]:
    """Return the sections of a page by their marks."""
    marks = list(_MARK.finditer(page))
    ends = [*(mark.start() for mark in marks[1:]), len(page)]
    texts = (page[mark.end() : end].partition("\n## ")[0] for mark, end in zip(marks, ends, strict=True))
    return {mark.group(): text.strip("\n") for mark, text in zip(marks, texts, strict=True)}


def _sections(settings: Settings, kept: Mapping[str, str]) -> list[str]:
    renderers: dict[str, Callable[[Result, Settings], str]] = {
        **dict.fromkeys(WORKLOADS, _render_workload),
        **{f"tricks-{name}": _render_tricks for name in WORKLOADS},
        "frozen-stage": _render_frozen_stage,
        "floor": _render_floor,
        "curves": _render_curves,
        "growth": _render_growth,
        "mlflow": _render_tracking,
        "recovery": _render_recovery,
        "serving": _render_serving,
        "batch-predict": _render_batch_predict,
        "official": _render_official,
    }
    sections = []
    for name, render in renderers.items():
        mark, result = _mark(name, settings.device), settings.load(name)
        if result is not None:
            sections.append(f"{mark}\n{render(result, settings)}\n\n{_environment(result)}\n")
        elif mark in kept:
            sections.append(f"{mark}\n{kept[mark]}\n")
    return sections


def _environment(result: Result) -> str:
    facts = "<br>".join(f"{name}: {value}" for name, value in result["environment"].items())
    return f"<sub>{facts}</sub>"


def _render_workload(result: Result, settings: Settings) -> str:
    name = result["workload"]
    differences = {peer: about.difference for peer, about in PEERS[name].items()}
    unit = "step" if name not in ("fills", "classify") else "call"
    parts = [f"### {WORKLOADS[name]}\n\nBatches of {result['batch_size']}."]
    for regime, rows in result["regimes"].items():
        parts += [_REGIME_TITLES.get(regime, regime), comparison_table(rows, differences, unit)]
    return "\n\n".join(parts)


def _render_tricks(result: Result, settings: Settings) -> str:
    descriptions = {name: trick.description for name, trick in TRICKS.items()}
    (rows,) = result["regimes"].values()
    title = f"### What each trick gains. {WORKLOADS[result['workload']]}"
    explanation = "Each is taken away in turn, the others stay; the gain is the ratio of the two times."
    return "\n\n".join([title, explanation, trick_table(rows, descriptions)])


def _render_floor(result: Result, settings: Settings) -> str:
    lines = []
    for name, flops in result["flops"].items():
        floor = Floor(**flops, rate=result["rate"])
        measured = _our_seconds(name, settings)
        lines.append(
            [
                WORKLOADS[name],
                f"{floor.needed / 1e9:,.1f}",
                f"{floor.executed / 1e9:,.1f}",
                seconds(floor.seconds),
                "" if measured is None else seconds(measured),
                "" if measured is None else times(floor.multiple(measured)),
            ]
        )
    header = ["", "GFLOP that the loss needs", "GFLOP of ours", "floor in s", "ours in s", "ours in floors"]
    explanation = (
        f"Matrix products of a step (torch.utils.flop_counter) over the {result['rate'] / 1e9:,.0f} GFLOP/s that this "
        "machine reaches with large matrices; needed is what the plain formulation does, for batches of like length "
        "and the masked positions alone. The floor takes the smaller count."
    )
    return "\n\n".join(["### The floor", explanation, markdown(header, lines)])


def _our_seconds(name: str, settings: Settings) -> float | None:
    """Return our measured seconds of a step as our users run it, if they are there."""
    result = settings.load(name)
    rows = result["regimes"].get("as run", []) if result else []
    measured = [seconds_per_step(row) for row in rows if row["name"] == OURS and not row["failure"]]
    return measured[0] if measured else None


def _render_curves(result: Result, settings: Settings) -> str:
    losses = result["losses"]
    text = (
        f"{len(losses['ours'])} steps of the masked language model with every trick on, and of the plain formulation "
        "from the same weights on the same masked batches, each with its own Adam. Greatest absolute difference of the "
        f"loss at any step: **{greatest_difference(losses):.1e}**; last losses {losses['ours'][-1]:.4f} and "
        f"{losses['plain'][-1]:.4f}."
    )
    return "\n\n".join(["### Loss curves", text, _picture("Losses by step", "curves", settings)])


def _render_growth(result: Result, settings: Settings) -> str:
    parts = ["### Growth", "One training step of 4 texts (masked language model) and of 4 images (classifier)."]
    parts += [growth_table(results, kind) for kind, results in result["growth"].items()]
    return "\n\n".join([*parts, _picture("Seconds and memory by size", "growth", settings)])


def _picture(text: str, name: str, settings: Settings) -> str:
    file = os.path.relpath(settings.picture(name), settings.out.parent)
    return f"![{text}]({file})"


def _render_frozen_stage(result: Result, settings: Settings) -> str:
    lines = [
        [
            f"{name} the encoder's output kept",
            seconds(result[name]["seconds"]),
            seconds(result[name]["stage_seconds"]),
            seconds(result[name]["epoch_seconds"]),
            f"{result[name]['val_loss']:.6f}",
            f"{result[name]['val_accuracy']:.4f}",
        ]
        for name in ("without", "with")
        if name in result
    ]
    header = ["", "s in all", "s of epochs and test", "s of epochs", "validation loss", "validation accuracy"]
    parts = [
        "### Stage with a frozen encoder",
        f"`python -m pipelines text-classifier --freeze_encoder true`, {result['epochs']} epochs of "
        f"{result['reviews']:,} reviews. The seconds of the epochs have in them what it takes to encode the reviews "
        "once; the test after them reads as many others, in both runs.",
        markdown(header, lines),
    ]
    if "with" in result:
        names = ("seconds", "stage_seconds", "epoch_seconds")
        in_all, stage, epochs = (times(result["without"][name] / result["with"][name]) for name in names)
        parts.append(f"Faster by **{epochs}** in the epochs, by {stage} with the test, by {in_all} in all.")
    return "\n\n".join(parts)


def _render_tracking(result: Result, settings: Settings) -> str:
    about = {"tiny": "A stage whose steps are very short", "quickstart": "The quickstart's pretraining"}
    explanation = (
        "Milliseconds of a training step, of stages that are trained in the process of the command, as MLflow is fed "
        "from it. What comes before the first step and after the last one is left out; the mean has validations and "
        "checkpoints in it. The server runs on the same cores."
    )
    parts = ["### What MLflow costs", explanation]
    for name, stage in result["stages"].items():
        parts += [f"{about[name]}, {stage['steps']} steps a round:", tracking_table(stage["rows"])]
    return "\n\n".join(parts)


def _render_recovery(result: Result, settings: Settings) -> str:
    waits = result["waits"]
    explanation = (
        f"Rank 0 of two Ray workers was killed (SIGKILL) {len(result['kills'])} times; the seconds end with the first "
        "step that was trained afterwards, by new processes that had to import everything. There was a checkpoint "
        f"every {result['checkpoint_steps']} steps; with the default settings at most 200 steps are lost."
    )
    share = (
        f"Checkpoints are written while training goes on. The default image classifier on digits, with one every "
        f"{waits['steps_per_checkpoint']:.0f} steps of {seconds(waits['step_seconds'])} s, waited for them "
        f"**{waits['share']:.2%}** of the time."
    )
    return "\n\n".join(["### What a death costs", explanation, recovery_table(result["kills"]), share])


def _render_serving(result: Result, settings: Settings) -> str:
    explanation = (
        f"{result['clients']} clients ask for {result['seconds']:.0f} s, each for one review of 230 words after the "
        "other, of the default text classifier. Clients and server share the cores. Memory is that of the processes "
        "that hold the model."
    )
    return "\n\n".join(["### Serving", explanation, serving_table(result["rows"])])


def _render_batch_predict(result: Result, settings: Settings) -> str:
    explanation = (
        f"`python -m pipelines batch-predict --num_actors {result['actors']}` on a Ray cluster of its own, a text "
        "classifier with 32 latents of 64 channels that reads 256 tokens. Seconds have starting in them; memory is the "
        "greatest of all moments, and that of all processes has Ray's own in it."
    )
    return "\n\n".join(["### Inputs of any size", explanation, batch_predict_table(result["rows"])])


def _render_official(result: Result, settings: Settings) -> str:
    differences = {name: difference for name, (_, difference) in official.PEERS.items()}
    parts = [
        f"### Official size: one training step\n\n{official.NUM_BYTES:,} bytes, batches of {result['batch_size']}.",
        comparison_table(result["rows"], differences, "step"),
    ]
    ours = [row for row in result["rows"] if row["name"] == OURS and not row["failure"]]
    if ours:
        share = official.utilization(result["flops"], seconds_per_step(ours[0]), result["peak"])
        parts.append(
            f"Model FLOPs utilization of ours: **{share:.0%}** ({result['flops'] / 1e12:.1f} TFLOP a step, of "
            f"{result['peak'] / 1e12:,.0f} TFLOP/s, {result['source']})."
        )
    return "\n\n".join(parts)
