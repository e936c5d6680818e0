"""The page of a run: one file with everything in it, for a browser without network and without scripts."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import groupby
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from pipelines.past_run import PastRun, PastStage
from pipelines.progress import duration
from pipelines.report.parts import Facts, Omitted, Part, Picture

_TEMPLATE = "page.html.j2"
_TEXTS_SHOWN = 3  # the others are folded away
_CHAIN = "sentiment"


@dataclass(frozen=True)
class StageSection:
    """A stage on the page.

    Attributes:
        stage: The stage.
        parts: What was drawn of it.
    """

    stage: PastStage
    parts: Sequence[Part]


def render(past: PastRun, overview: Sequence[Part], sections: Sequence[StageSection]) -> str:
    """Return the page.

    Args:
        past: The run.
        overview: Pictures of the run as a whole.
        sections: Its stages, in order.
    """
    return (
        page_environment()
        .get_template(_TEMPLATE)
        .render(
            name=past.run.name,
            facts=_facts(past),
            synthetic=any(stage.synthetic for stage in past.stages),
            rows=_rows(past.stages),
            events=_events(past.stages),
            overview=_blocks(overview),
            sections=[(section.stage.run.name, _blocks(section.parts)) for section in sections],
            texts_shown=_TEXTS_SHOWN,
        )
    )


def page_environment() -> Environment:
    """Return what turns templates into pages: it escapes all texts, finds `style.css.j2`, and has `data_uri`."""
    environment = Environment(
        loader=PackageLoader("pipelines", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["data_uri"] = _data_uri
    return environment


def _facts(past: PastRun) -> dict[str, str]:
    names = [stage.run.name for stage in past.stages]
    verb = _CHAIN if past.run.parameters.keys() >= {"mlm", "frozen", "finetune"} else "".join(names[:1])
    began = past.run.start_time
    facts = {"Verb": verb, "Status": past.status.lower()}
    if began is not None:
        seconds = max(0.0, past.end_time - began)
        facts |= {"Began": _moment(began), "Ended": f"{_moment(past.end_time)} ({duration(seconds)} later)"}
    facts["Data"] = str(past.run.parameters.get("data", {}).get("path", ""))
    return {name: value for name, value in facts.items() if value}


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%d %B %Y, %H:%M UTC")


_COLUMNS: Mapping[str, tuple[str, str]] = {
    "epochs": ("epochs", "d"),
    "best epoch": ("best_epoch", "d"),
    "val loss": ("val_loss", ".4f"),
    "val accuracy": ("val_accuracy", ".2%"),
    "test loss": ("test_loss", ".4f"),
    "test accuracy": ("test_accuracy", ".2%"),
    "parameters": ("parameters", ",d"),
}


def _rows(stages: Sequence[PastStage]) -> list[dict[str, str]]:
    """Return the table of stages: a row for each, with its cells by their headings."""
    return [
        {
            "stage": stage.run.name,
            "status": (stage.run.status or "").lower(),
            **{heading: _cell(stage.result.get(field), form) for heading, (field, form) in _COLUMNS.items()},
            "time": duration(stage.result["seconds"]) if "seconds" in stage.result else "",
        }
        for stage in stages
    ]


def _cell(value: Any, form: str) -> str:
    return "" if value is None else format(int(value) if form.endswith("d") else value, form)


def _events(stages: Sequence[PastStage]) -> list[dict[str, str]]:
    return [
        {
            "when": _moment(record["time"]),
            "stage": stage.run.name,
            "event": str(record.get("event", "")),
            "step": f"{record['step']:,}",
            "reason": str(record.get("reason", "")),
        }
        for stage in stages
        for record in stage.records
        if record["kind"] == "event"
    ]


def _blocks(parts: Sequence[Part]) -> list[tuple[str, list[Any]]]:
    """Return parts as the template takes them: neighbours of one kind together, and what is missing at the end."""
    there = [part for part in parts if not isinstance(part, Omitted)]
    blocks = [(kind, list(of_kind)) for kind, of_kind in groupby(there, _kind)]
    omitted = [part for part in parts if isinstance(part, Omitted)]
    return [*blocks, *([("omitted", omitted)] if omitted else [])]


def _kind(part: Part) -> str:
    return "figures" if isinstance(part, Picture | Facts) else type(part).__name__


def _data_uri(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
