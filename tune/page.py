"""The page of a search: one file for a browser without network.

Without scripts, or where the browser can't draw it, a picture is shown as it was printed; plotly takes its place
otherwise, and then answers to the mouse.
"""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from plotly import graph_objects as go
from plotly.offline import get_plotlyjs

from pipelines.report.page import page_environment

_TEMPLATE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ name }}</title>
<style>
{% include "style.css.j2" %}
figure img { max-width: none }
.interactive { height: 30rem }
</style>
</head>
<body>
<h1>{{ name }}</h1>
<p>{{ lesson }}</p>
<nav>{% for picture in pictures %}<a href="#{{ picture.name }}">{{ picture.title }}</a>{% endfor %}</nav>
{% for picture in pictures %}
<h2 id="{{ picture.name }}">{{ picture.title }}</h2>
<p>{{ picture.caption }}</p>
<figure><img src="{{ picture.png | data_uri }}" alt="{{ picture.title }}">
<script type="application/json">{{ picture.plotly | tojson }}</script></figure>
{% endfor %}
<script type="text/plain" id="plotly">{{ plotly }}</script>
<script>
async function unpacked(text) {
  const bytes = Uint8Array.from(atob(text), letter => letter.charCodeAt(0));
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
}
async function draw(figure) {
  const {data, layout} = JSON.parse(figure.querySelector("script").textContent);
  const place = document.createElement("div");
  place.className = "interactive";
  figure.append(place);
  try {
    await Plotly.newPlot(place, data, layout, {responsive: true, displaylogo: false});
    if (place.querySelector(".no-webgl")) throw new Error("the browser has no WebGL");
    figure.querySelector("img").remove();
  } catch (error) {
    console.warn(error);
    place.remove();
  }
}
(async () => {
  const library = document.createElement("script");
  library.textContent = await unpacked(document.getElementById("plotly").textContent);
  document.head.append(library);
  for (const figure of document.querySelectorAll("figure")) await draw(figure);
})();
</script>
</body>
</html>
"""


@dataclass(frozen=True)
class DrawnTwice:
    """A picture in its two forms.

    Attributes:
        name: Name of its file, without ending.
        title: What it shows, in a few words.
        caption: How to read it.
        png: The picture as it is printed.
        interactive: The picture as plotly draws it.
    """

    name: str
    title: str
    caption: str
    png: bytes
    interactive: go.Figure

    @property
    def plotly(self) -> dict[str, Any]:
        """The interactive picture as JSON knows it."""
        content: dict[str, Any] = json.loads(self.interactive.to_json())
        return content


def render(name: str, lesson: str, pictures: Sequence[DrawnTwice]) -> str:
    """Return the page.

    Args:
        name: The search's name.
        lesson: What it found, in a sentence.
        pictures: Its pictures, in order.
    """
    packed = base64.b64encode(gzip.compress(get_plotlyjs().encode(), mtime=0)).decode()  # less than half of it
    template = page_environment().from_string(_TEMPLATE)
    return template.render(name=name, lesson=lesson, pictures=pictures, plotly=packed)
