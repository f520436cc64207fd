"""docs/images/degradation.png: test error by epoch, from the table of seed 0 in comparators.md. Needs Chromium.

python -m benchmarks.degradation_image
"""

import base64
import io
import re
import tempfile
from pathlib import Path

from PIL import Image

from tests.browser import browser
from vgg_jax import reporting
from vgg_jax.reporting.charts import Line, YAxis, chart
from vgg_jax.reporting.curves import chance_of

_ROOT = Path(__file__).parents[1]
_WIDTH = 520  # pixels


def errors_by_epoch(text):
    """Returns {network: [(epoch, test error)]} of the table, fractions."""
    section = text.partition("## Degradation")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (.*?) \| training \|.*\n\| \| test \| (.*) \|$", section, re.MULTILINE)
    return {
        name: [(epoch, float(error) / 100) for epoch, error in enumerate(errors.split(" | "), start=1)]
        for name, errors in rows
    }


def page(networks):
    """Returns a page that holds the chart alone, as a report draws it."""
    lines = [Line(name, points, i, dots=True) for i, (name, points) in enumerate(networks.items())]
    chance = chance_of(10)
    drawn = chart("Test top-1 error", [*lines, *chance.lines(lines)], "epoch", y_axis=YAxis(percent=True))
    legend = "".join(
        f'<li><svg viewBox="0 0 22 10"><path class="line {kind}" d="M1 5H21"/></svg>{label}</li>'
        for kind, label in drawn.legend
    )
    style = (Path(reporting.__file__).parent / "style.css").read_text()
    return (
        f'<!doctype html><meta charset="utf-8"><style>{style}</style><body><figure class="chart" '
        f'style="width:{_WIDTH}px"><h4>{drawn.title}</h4><ul class="legend">{legend}</ul>{drawn.svg}'
        f"<figcaption>A fifth of CIFAR-10, seed 0. {chance.sentence}</figcaption></figure>"
    )


def main():
    networks = errors_by_epoch((_ROOT / "benchmarks" / "comparators.md").read_text())
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as directory, browser(Path(directory)) as tab:
        file = Path(directory) / "page.html"
        file.write_text(page(networks))
        tab.open(file, width=_WIDTH + 80, dark=False)
        box = tab.evaluate("document.querySelector('figure').getBoundingClientRect().toJSON()")
        clip = {key: box[key] for key in ("x", "y", "width", "height")} | {"scale": 1}
        data = tab.ask("Page.captureScreenshot", clip=clip, captureBeyondViewport=True)["data"]
    image = Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB").quantize(256)
    image.save(_ROOT / "docs" / "images" / "degradation.png", optimize=True)


if __name__ == "__main__":
    main()
