"""What a search looks like: tune.html, which needs no network, and the same pictures as PNG files.

Optuna draws the pictures, with plotly for the page and with matplotlib for the files.
"""

from __future__ import annotations

import html
import io
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.study import StudyDirection
from optuna.trial import TrialState, create_trial
from plotly import graph_objects as go

from tune.config import Goal
from tune.record import TrialRecord, ranked
from tune.search import Search
from tune.space import shown
from tune.trial import EPOCH

REPORT, PICTURES = "tune.html", "pictures"
_FEWEST = 4  # trials from which it can be told which fields matter
_TELLING = 0.1  # importance that is worth a word
_MOST_FIELDS, _MOST_LABELS = 6, 20
_SIZE = (11.0, 6.0)
_STYLE = (
    "body{font-family:sans-serif;max-width:1000px;margin:2em auto;padding:0 1em}h2{margin-top:2em}p{line-height:1.5}"
)


@dataclass(frozen=True)
class _Picture:
    """A picture in its two forms."""

    name: str
    title: str
    caption: str
    interactive: Callable[[], go.Figure]
    printed: Callable[[], Axes]


def write_report(search: Search, records: Sequence[TrialRecord]) -> None:
    """Write tune.html and the pictures into the search's folder; nothing if no trial reported the metric."""
    best = ranked(records, search.goal)
    if not best:
        return
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = _make_study(search.space, search.goal, records)
    importances = _importances(study)
    pictures = _pictures(search, records, study, importances)
    with warnings.catch_warnings():
        # Optuna's pictures may change, it says, and all trials may be alike in a field.
        warnings.simplefilter("ignore")
        for picture in pictures:
            (search.folder / PICTURES / f"{picture.name}.png").write_bytes(_png(picture))
        page = _page(search, _lesson(search, records, importances), pictures)
    (search.folder / REPORT).write_bytes(page.encode())


def _page(search: Search, lesson: str, pictures: Sequence[_Picture]) -> str:
    parts = [f"<h1>{html.escape(search.run.run_name)}</h1>", f"<p><b>{html.escape(lesson)}</b></p>"]
    for number, picture in enumerate(pictures):
        figure = picture.interactive().update_layout(title=None, margin={"t": 30}, template="plotly_white")
        # The first figure brings the library that draws them all.
        drawn = figure.to_html(full_html=False, include_plotlyjs=number == 0)
        parts.append(f"<h2>{html.escape(picture.title)}</h2><p>{html.escape(picture.caption)}</p>{drawn}")
    head = f'<meta charset="utf-8"><title>{html.escape(search.run.run_name)}</title><style>{_STYLE}</style>'
    return f"<!doctype html><html><head>{head}</head><body>{''.join(parts)}</body></html>"


def _lesson(search: Search, records: Sequence[TrialRecord], importances: Mapping[str, float]) -> str:
    """Say in a sentence what the search found, and which fields mattered."""
    goal = search.goal
    found = ranked(records, goal)
    best = found[0]
    base = next((record.best(goal) for record in records if record.number == 0), None)
    against = "" if base is None else f", against {base:.4f} of the base configuration (trial 0)"
    told = f"Trial {best.number} is the best of {len(found)} with {goal.metric} {best.best(goal):.4f}{against}."
    if best.number == 0:
        told = f"The base configuration is the best of {len(found)} trials with {goal.metric} {best.best(goal):.4f}."
    telling = [(field, share) for field, share in importances.items() if share >= _TELLING][:3]
    if not telling:
        return f"{told} There are too few trials to tell which fields mattered."
    shares = ", ".join(f"{field} ({share:.0%}; best {shown(best.values[field])})" for field, share in telling)
    return f"{told} What mattered most: {shares}."


def _make_study(
    space: Mapping[str, BaseDistribution], goal: Goal, records: Sequence[TrialRecord], second: str | None = None
) -> optuna.Study:
    """Return the trials that reported the metric as a study, those that were stopped with what they had reached.

    Args:
        space: Fields that were searched.
        goal: Metric that was optimized.
        records: All trials.
        second: Attribute of a trial that is to be small, beside the metric.
    """
    directions = [StudyDirection.MINIMIZE if goal.mode == "min" else StudyDirection.MAXIMIZE]
    study = optuna.create_study(directions=[*directions, *([StudyDirection.MINIMIZE] if second else [])])
    found = sorted(ranked(records, goal), key=lambda record: record.number)
    distributions = {
        field: _including(distribution, [record.values[field] for record in found])
        for field, distribution in space.items()
    }
    for record in found:
        values = [record.best(goal), *([getattr(record, second)] if second else [])]
        if None not in values:
            trial = create_trial(
                state=TrialState.COMPLETE,
                values=values,
                params=record.values,
                distributions=distributions,
                intermediate_values={int(epoch[EPOCH]): epoch[goal.metric] for epoch in record.epochs},
            )
            study.add_trial(trial)
    return study


def _including(distribution: BaseDistribution, values: Sequence[Any]) -> BaseDistribution:
    """Return a distribution that also holds other values, such as those of the base configuration."""
    match distribution:
        case CategoricalDistribution(choices=choices):
            return CategoricalDistribution([*choices, *dict.fromkeys(v for v in values if v not in choices)])
        case FloatDistribution(low=low, high=high, log=log) | IntDistribution(low=low, high=high, log=log):
            low, high = min([low, *values]), max([high, *values])
            return type(distribution)(low, high, log=log and low > 0)
        case _:
            return distribution


def _importances(study: optuna.Study) -> dict[str, float]:
    if len(study.trials) < _FEWEST or len({trial.value for trial in study.trials}) < 2:
        return {}
    try:
        return optuna.importance.get_param_importances(study, evaluator=_evaluator())
    except RuntimeError:  # the trials are too much alike
        return {}


def _evaluator() -> optuna.importance.BaseImportanceEvaluator:
    return optuna.importance.FanovaImportanceEvaluator(seed=0)


def _pictures(
    search: Search, records: Sequence[TrialRecord], study: optuna.Study, importances: Mapping[str, float]
) -> list[_Picture]:
    plots, prints, metric = optuna.visualization, optuna.visualization.matplotlib, search.goal.metric
    fields = list(importances)[:_MOST_FIELDS] or None
    pictures = [
        _Picture(
            "learning-curves",
            "Learning curves",
            "Each line is a trial; a cross is where the scheduler stopped it. Dashed is the base configuration.",
            lambda: _curves(search.goal, records),
            lambda: _printed_curves(search.goal, records),
        ),
        _Picture(
            "best-so-far",
            "Best so far",
            "The best trial up to each minute of the search.",
            lambda: _best_so_far(search.goal, records),
            lambda: _printed_best_so_far(search.goal, records),
        ),
        _Picture(
            "parallel-coordinates",
            "Values and what they led to",
            f"Each line is a trial, its colour the {metric} that it reached.",
            lambda: plots.plot_parallel_coordinate(study, params=fields, target_name=metric),
            lambda: prints.plot_parallel_coordinate(study, params=fields, target_name=metric),
        ),
    ]
    if importances:
        pictures.append(
            _Picture(
                "importances",
                "Which fields mattered",
                f"The share of the differences in {metric} that a field accounts for (fANOVA).",
                lambda: plots.plot_param_importances(study, evaluator=_evaluator(), target_name=metric),
                lambda: prints.plot_param_importances(study, evaluator=_evaluator(), target_name=metric),
            )
        )
    return [*pictures, *(_front(search, records, cost) for cost in ("parameters", "seconds"))]


def _front(search: Search, records: Sequence[TrialRecord], cost: str) -> _Picture:
    """Return the picture of what the metric costs."""
    study = _make_study(search.space, search.goal, records, cost)
    names = [search.goal.metric, f"{cost} of training" if cost == "seconds" else cost]
    return _Picture(
        f"front-{cost}",
        f"{search.goal.metric} against {cost}",
        f"Trials on the front are those that no other trial beats in both {search.goal.metric} and {cost}.",
        lambda: optuna.visualization.plot_pareto_front(study, target_names=names),
        lambda: optuna.visualization.matplotlib.plot_pareto_front(study, target_names=names),
    )


def _lines(goal: Goal, records: Sequence[TrialRecord]) -> Iterator[tuple[TrialRecord, list[int], list[float]]]:
    """Yield each trial with its epochs and the metric after each of them."""
    for record in records:
        points = [(int(epoch[EPOCH]), epoch[goal.metric]) for epoch in record.epochs if goal.metric in epoch]
        if points:
            epochs, values = zip(*points, strict=True)
            yield record, list(epochs), list(values)


def _curves(goal: Goal, records: Sequence[TrialRecord]) -> go.Figure:
    figure = go.Figure()
    for record, epochs, values in _lines(goal, records):
        symbols = ["circle"] * (len(epochs) - 1) + ["x" if record.state == "stopped" else "circle"]
        style = {"line": {"dash": "dash", "color": "black"}} if record.number == 0 else {}
        hint = "<br>".join(f"{field} {shown(value)}" for field, value in record.values.items())
        marker = {"symbol": symbols}
        figure.add_scatter(
            x=epochs,
            y=values,
            name=f"trial {record.label}",
            mode="lines+markers",
            marker=marker,
            hovertext=hint,
            **style,
        )
    return figure.update_layout(xaxis={"title": "epoch", "tickformat": "d"}, yaxis_title=goal.metric)


def _printed_curves(goal: Goal, records: Sequence[TrialRecord]) -> Axes:
    axes = Figure().add_subplot()
    for record, epochs, values in _lines(goal, records):
        style: dict[str, Any] = {"linestyle": "--", "color": "black"} if record.number == 0 else {}
        (line,) = axes.plot(epochs, values, marker=".", label=str(record.number), **style)
        if record.state == "stopped":
            axes.plot(epochs[-1], values[-1], marker="x", color=line.get_color(), markersize=9)
    axes.set(xlabel="epoch", ylabel=goal.metric)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if len(axes.lines) <= _MOST_LABELS:
        axes.legend(title="trial", ncols=2, fontsize="small")
    return axes


def _steps(goal: Goal, records: Sequence[TrialRecord]) -> tuple[list[float], list[float]]:
    """Return the minutes at which a trial was better than all before it, and its metric."""
    points = sorted((epoch["time"], epoch[goal.metric]) for record in records for epoch in record.epochs)
    start = min(record.start_time for record in records)
    minutes: list[float] = []
    best: list[float] = []
    for when, value in points:
        if not best or goal.better(value, best[-1]):
            minutes.append((when - start) / 60)
            best.append(value)
    return [*minutes, (points[-1][0] - start) / 60], [*best, best[-1]]


def _best_so_far(goal: Goal, records: Sequence[TrialRecord]) -> go.Figure:
    minutes, best = _steps(goal, records)
    figure = go.Figure(go.Scatter(x=minutes, y=best, mode="lines+markers", line={"shape": "hv"}))
    return figure.update_layout(xaxis_title="minutes", yaxis_title=f"best {goal.metric}")


def _printed_best_so_far(goal: Goal, records: Sequence[TrialRecord]) -> Axes:
    axes = Figure().add_subplot()
    axes.step(*_steps(goal, records), where="post", marker=".")
    axes.set(xlabel="minutes", ylabel=f"best {goal.metric}")
    return axes


def _png(picture: _Picture) -> bytes:
    axes = picture.printed()
    axes.set_title("", loc="left")  # where Optuna puts its own
    axes.set_title(picture.title)
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.set_size_inches(*_SIZE)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120, bbox_inches="tight")
    return buffer.getvalue()
