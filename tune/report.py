"""What a search looks like: tune.html, and the same pictures as PNG files.

Optuna draws the pictures, with plotly for the page and with matplotlib for the files.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import optuna
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, PercentFormatter
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial
from plotly import graph_objects as go

from pipelines.report.parts import BLUE, GREY, drawing_style, new_axes
from tune.config import Goal
from tune.page import DrawnTwice, render
from tune.record import TrialRecord, ranked
from tune.search import Search
from tune.space import shown
from tune.trial import EPOCH

REPORT, PICTURES = "tune.html", "pictures"
_FEWEST = 4  # trials from which it can be told which fields matter
_TELLING = 0.1  # importance that is worth a word
_MOST_FIELDS, _MOST_LABELS = 6, 20
_SIZE = (11.0, 6.0)
_SHARE = "share of the differences"
_LABEL = "label"  # attribute of a trial in a study


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
    # The style is silent, too: Optuna's pictures may change, and all trials may be alike in a field.
    with drawing_style(), mpl.rc_context({"text.parse_math": True}):  # powers of ten at the axes
        drawn = [_drawn(picture) for picture in pictures]
    for picture, twice in zip(pictures, drawn, strict=True):
        (search.folder / PICTURES / f"{picture.name}.png").write_bytes(twice.png)
    page = render(search.run.run_name, _lesson(search, records, importances), drawn)
    (search.folder / REPORT).write_bytes(page.encode())


def _drawn(picture: _Picture) -> DrawnTwice:
    figure = picture.interactive().update_layout(title=None, margin={"t": 30}, template="plotly_white")
    return DrawnTwice(picture.name, picture.title, picture.caption, _png(picture), figure)


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
                user_attrs={_LABEL: record.label},
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
    metric = search.goal.metric
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
            f"Each line is a trial: the darker, the better the {metric} that it reached.",
            lambda: optuna.visualization.plot_parallel_coordinate(study, params=fields, target_name=metric),
            lambda: _printed_parallel(study, fields, metric),
        ),
    ]
    if importances:
        pictures.append(
            _Picture(
                "importances",
                "Which fields mattered",
                f"The share of the differences in {metric} that a field accounts for (fANOVA).",
                lambda: _importance_bars(importances),
                lambda: _printed_importances(importances),
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
        lambda: _interactive_front(study, names),
        lambda: _printed_front(study, names),
    )


def _sides(study: optuna.Study) -> Iterator[tuple[str, str, list[FrozenTrial]]]:
    """Yield the trials that others beat and those on the front, each with what they are called and their colour."""
    best = {trial.number for trial in study.best_trials}
    for label, color, on_front in (("other trials", GREY, False), ("on the front", BLUE, True)):
        trials = [trial for trial in study.trials if (trial.number in best) == on_front]
        if trials:
            yield label, color, trials


def _interactive_front(study: optuna.Study, names: Sequence[str]) -> go.Figure:
    figure = go.Figure()
    for label, color, trials in _sides(study):
        x, y = zip(*[trial.values for trial in trials], strict=True)
        hints = [_hint(f"trial {trial.user_attrs[_LABEL]}", trial.params) for trial in trials]
        figure.add_scatter(x=x, y=y, name=label, mode="markers", marker={"color": color, "size": 9}, hovertext=hints)
    return figure.update_layout(xaxis_title=names[0], yaxis_title=names[1])


def _printed_front(study: optuna.Study, names: Sequence[str]) -> Axes:
    axes = new_axes(names[0], names[1], _SIZE)
    for label, color, trials in _sides(study):
        axes.scatter(*zip(*[trial.values for trial in trials], strict=True), color=color, label=label)
    axes.legend()
    return axes


def _printed_parallel(study: optuna.Study, fields: list[str] | None, metric: str) -> Axes:
    with mpl.rc_context({"axes.grid": False}):  # each field would bring a grid of its own
        return optuna.visualization.matplotlib.plot_parallel_coordinate(study, params=fields, target_name=metric)


def _importance_bars(importances: Mapping[str, float]) -> go.Figure:
    fields, shares = list(importances)[::-1], list(importances.values())[::-1]
    figure = go.Figure(go.Bar(x=shares, y=fields, orientation="h", texttemplate="%{x:.0%}", marker_color=BLUE))
    return figure.update_layout(xaxis={"title": _SHARE, "tickformat": ".0%"})


def _printed_importances(importances: Mapping[str, float]) -> Axes:
    axes = new_axes(_SHARE, size=_SIZE)
    fields, shares = list(importances)[::-1], list(importances.values())[::-1]
    axes.bar_label(axes.barh(fields, shares, color=BLUE), fmt="{:.0%}", padding=3)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    axes.grid(visible=False, axis="y")
    return axes


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
        hint = _hint(f"trial {record.label}", record.values)
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
    most = max(len(record.epochs) for record in records)
    return figure.update_layout(xaxis={"title": "epoch", "dtick": math.ceil(most / 10)}, yaxis_title=goal.metric)


def _hint(title: str, values: Mapping[str, Any]) -> str:
    """Return what is shown when one points at a trial."""
    return "<br>".join([title, *(f"{field} {shown(value)}" for field, value in values.items())])


def _printed_curves(goal: Goal, records: Sequence[TrialRecord]) -> Axes:
    axes = new_axes("epoch", goal.metric, _SIZE)
    for record, epochs, values in _lines(goal, records):
        style: dict[str, Any] = {"linestyle": "--", "color": "black"} if record.number == 0 else {}
        (line,) = axes.plot(epochs, values, marker=".", label=str(record.number), **style)
        if record.state == "stopped":
            axes.plot(epochs[-1], values[-1], marker="x", color=line.get_color(), markersize=9)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
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
    axes = new_axes("minutes", f"best {goal.metric}", _SIZE)
    axes.step(*_steps(goal, records), where="post", marker=".")
    return axes


def _png(picture: _Picture) -> bytes:
    axes = picture.printed()
    axes.set_title("")  # Optuna's own
    axes.set_title(picture.title, loc="left")
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.set_size_inches(*_SIZE)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120, bbox_inches="tight")
    return buffer.getvalue()
