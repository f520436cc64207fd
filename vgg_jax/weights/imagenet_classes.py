"""The 1,000 classes of ILSVRC-2012: their WNIDs and names, from `imagenet_classes.txt`."""

from __future__ import annotations

import functools
from pathlib import Path


def listing() -> str:
    """Returns lines of a WNID and a name, as "n01440764 tench", in the order of the labels."""
    text = Path(__file__).with_suffix(".txt").read_text(encoding="utf-8")
    return "".join(line for line in text.splitlines(keepends=True) if not line.startswith("#"))


@functools.cache
def titles() -> dict[str, str]:
    """Returns {WNID: name} in the order of the labels; WNIDs are sorted."""
    return dict(line.split(" ", 1) for line in listing().splitlines())
