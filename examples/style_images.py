"""Draws images for examples/style_transfer.py, free to publish: content.png and style.png.

python examples/style_images.py --output=DIR
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from vgg_jax.commands import cli
from vgg_jax.runtime.exceptions import writing_to

flags = cli.Flags()
_OUTPUT = flags.DEFINE_string("output", ".", "Directory for content.png and style.png.")

SIZE = 512
PAINTS = ("#12355b", "#1d5f8a", "#3fa7d6", "#f5c518", "#f28f3b", "#fdf0d5")


def main(arguments: list[str]) -> None:
    cli.no_arguments(arguments, "--output=DIR")
    directory = Path(_OUTPUT.value).expanduser()
    with writing_to(directory, "choose another --output"):
        directory.mkdir(parents=True, exist_ok=True)
        landscape().save(directory / "content.png")
        strokes(np.random.default_rng(0)).save(directory / "style.png")
    print(f"written: {directory / 'content.png'}, {directory / 'style.png'}")


def landscape() -> Image.Image:
    """Draws a house and a tree in front of hills, under a sun."""
    rows = np.linspace(0, 1, SIZE)[:, None, None]
    sky = np.array([90, 150, 220]) * (1 - rows) + np.array([250, 225, 190]) * rows
    image = Image.fromarray(np.broadcast_to(sky, (SIZE, SIZE, 3)).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    draw.ellipse((370, 50, 450, 130), fill="#fff3b0")
    for height, amplitude, color in ((300, 60, "#6b8fb3"), (350, 35, "#5d8a5a"), (410, 15, "#7fae5c")):
        ridge = [
            (x, height + amplitude * math.sin(x / 97 + height) + amplitude / 3 * math.sin(x / 31)) for x in range(SIZE)
        ]
        draw.polygon([*ridge, (SIZE, SIZE), (0, SIZE)], fill=color)
    draw.polygon([(300, 320), (380, 250), (460, 320)], fill="#9c3b2e")
    draw.rectangle((315, 320, 445, 430), fill="#e8dcc4")
    draw.rectangle((362, 370, 398, 430), fill="#5b3a29")
    for x in (330, 408):
        draw.rectangle((x, 340, x + 24, 366), fill="#46627f")
    draw.rectangle((118, 300, 142, 440), fill="#5b4028")
    for x, y, r in ((130, 230, 70), (85, 275, 48), (175, 280, 50)):
        draw.ellipse((x - r, y - r, x + r, y + r), fill="#2f6b3a")
    return image


def strokes(rng: np.random.Generator) -> Image.Image:
    """Draws thick strokes around four centres, in six paints."""
    image = Image.new("RGB", (SIZE, SIZE), PAINTS[0])
    draw = ImageDraw.Draw(image)
    centers = np.array([(130, 140), (390, 110), (250, 330), (440, 430)])
    for _ in range(4000):
        x, y = rng.uniform(0, SIZE, 2)
        distances = np.hypot(*(centers - (x, y)).T)
        nearest = distances.argmin()
        angle = math.atan2(y - centers[nearest][1], x - centers[nearest][0]) + math.pi / 2
        paint = PAINTS[int(distances[nearest] / 28 + rng.uniform(0, 1.5)) % len(PAINTS)]
        dx, dy = 15 * math.cos(angle), 15 * math.sin(angle)
        draw.line((x - dx, y - dy, x + dx, y + dy), fill=paint, width=6)
    return image


if __name__ == "__main__":
    cli.run(main, flags)
