"""What the page of a run is made of: pictures, tables, texts, and lines that say what is not there."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from PIL import Image

BLUE, ORANGE, GREEN, PURPLE, GREY = "#2b6cb0", "#c05621", "#2f855a", "#6b46c1", "#a0aec0"
COLORS = (BLUE, ORANGE, GREEN, PURPLE, "#b83280", "#2c7a7b", "#975a16", "#4a5568")

_PALETTE = 256  # colours of a PNG: half the size of one with all of them, and no difference to the eye
_STYLE: Any = {
    "figure.dpi": 150,
    "font.size": 9.5,
    "axes.titlesize": 10.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#4a5568",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e2e8f0",
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "text.parse_math": False,  # names of classes and tokens may hold dollar signs
}


class MissingSourceError(Exception):
    """What a picture is drawn from is not there; the text says so in a few words."""


@dataclass(frozen=True)
class Picture:
    """A picture, which also becomes a file of its own.

    Attributes:
        name: Name of the file, without ending.
        title: What it shows, in a few words.
        png: The picture.
        caption: How to read it.
    """

    name: str
    title: str
    png: bytes
    caption: str = ""


@dataclass(frozen=True)
class Cell:
    """A cell of a shaded table.

    Attributes:
        text: What it shows.
        shade: From 0, white, to 9.
        hint: What is shown when one points at it.
    """

    text: str
    shade: int
    hint: str


@dataclass(frozen=True)
class ShadedTable:
    """Rows of shaded cells, in groups with a heading each.

    Attributes:
        title: What it shows.
        caption: How to read it.
        columns: Headings of the columns.
        groups: Heading and rows of each group; a row is its name and its cells.
    """

    title: str
    caption: str
    columns: Sequence[str]
    groups: Sequence[tuple[str, Sequence[tuple[str, Sequence[Cell]]]]]


@dataclass(frozen=True)
class ShadedText:
    """A text whose tokens are shaded.

    Attributes:
        heading: What stands above it.
        tokens: Its tokens, each with the space before it, if there is one.
    """

    heading: str
    tokens: Sequence[Cell]


@dataclass(frozen=True)
class ShadedTexts:
    """Texts whose tokens are shaded.

    Attributes:
        title: What they are.
        caption: How to read them.
        texts: The texts, the most important first.
    """

    title: str
    caption: str
    texts: Sequence[ShadedText]


@dataclass(frozen=True)
class Facts:
    """Figures by their names.

    Attributes:
        title: What they are about.
        caption: How to read them.
        rows: Name and figure.
    """

    title: str
    caption: str
    rows: Mapping[str, str]


@dataclass(frozen=True)
class Omitted:
    """A picture that is not there.

    Attributes:
        title: What it would show.
        reason: Why it is not there.
    """

    title: str
    reason: str


Part = Picture | ShadedTable | ShadedTexts | Facts | Omitted


@contextmanager
def drawing_style() -> Iterator[None]:
    """Draw as all pictures of a run are drawn, whatever the user's own settings are."""
    with mpl.rc_context(), warnings.catch_warnings():
        mpl.rcdefaults()
        mpl.rcParams.update(_STYLE)
        warnings.simplefilter("ignore")  # a name may hold letters that the font lacks
        yield


def new_axes(xlabel: str = "", ylabel: str = "", size: tuple[float, float] = (4.8, 3.1)) -> Axes:
    """Return axes in a figure of their own.

    Args:
        xlabel: What is on the x axis.
        ylabel: What is on the y axis.
        size: Width and height in inches; 4.8 wide, the letters can be read on a phone.
    """
    axes = Figure(figsize=size, layout="constrained").add_subplot()
    axes.set(xlabel=xlabel, ylabel=ylabel)
    if xlabel == "step":
        axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
    return axes


def label_log_axis(axis: Axis) -> None:
    """Write plain numbers at a logarithmic axis, after all was drawn: three in each decade where there are few."""
    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 100 * low else (1,)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axis.set_minor_formatter(NullFormatter())


def picture(name: str, title: str, drawn: Axes | Figure, caption: str = "") -> Picture:
    """Finish a picture; its file has the title in it, since there the caption is missing."""
    figure = drawn if isinstance(drawn, Figure) else drawn.get_figure(root=True)
    assert figure is not None
    if isinstance(drawn, Figure):
        figure.suptitle(title, fontsize=_STYLE["axes.titlesize"])
    else:
        drawn.set_title(title, loc="left")
    return Picture(name, title, _png(figure), caption)


def _png(figure: Figure) -> bytes:
    packed = io.BytesIO()
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[..., :3]
    Image.fromarray(pixels).quantize(_PALETTE).save(packed, format="png", optimize=True)
    return packed.getvalue()


def shade_of(share: float) -> int:
    """Return the shade, from 0 to 9, of a share between 0 and 1."""
    return int(np.clip(np.nan_to_num(share) * 10, 0, 9))


def shortened(text: str, length: int = 16) -> str:
    """Return a text that fits into a picture."""
    text = " ".join(text.split())
    return text if len(text) <= length else text[: length - 1] + "…"
