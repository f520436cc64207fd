"""From posteriors to figures: averages over scales, parts and nets, errors, the table, the challenge's form."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from vgg_jax.evaluation.paper import Errors
from vgg_jax.exceptions import UserError


class Row(NamedTuple):
    """One line of the table."""

    nets: str
    protocol: str
    scales: str
    images: int
    top1_error: float  # fractions
    top5_error: float | None  # None with five classes or fewer, where it is always 0
    paper: Errors | None


def average(parts: Iterable[np.ndarray]) -> np.ndarray:
    """The mean of several posteriors [N, K], in float64 so that the order does not matter: [N, K]."""
    return np.mean([np.asarray(part, np.float64) for part in parts], 0)


def errors(posteriors_NxK: np.ndarray, labels_N: np.ndarray, refused_N: np.ndarray) -> tuple[float, float]:
    """Top-1 and top-5 error, fractions; a refused picture counts as wrong in both. As `steps.errors` in all else."""
    sound_N = np.isfinite(posteriors_NxK).all(-1) & ~refused_N
    hit_Nx5 = (best(posteriors_NxK) == labels_N[:, None]) & sound_N[:, None]
    return 1 - float(hit_Nx5[:, 0].mean()), 1 - float(hit_Nx5.any(-1).mean())


def best(posteriors_NxK: np.ndarray) -> np.ndarray:
    """The five likeliest classes (all, where there are fewer), [N, 5] int64; of equals the lower number comes first."""
    return np.argsort(-posteriors_NxK, axis=-1, kind="stable")[:, :5]


def table(rows: Sequence[Row]) -> str:
    """The rows for a person, errors in per cent."""
    lines: list[tuple[str, ...]] = [
        ("nets", "protocol", "Q", "images", "top-1 error", "top-5 error", "paper (ImageNet)")
    ]
    for row in rows:
        paper = f"{row.paper.top1}/{row.paper.top5} %" if row.paper else ""
        lines.append(
            (
                *(row.nets, row.protocol, row.scales, f"{row.images:,}"),
                *(f"{row.top1_error:.2%}", "" if row.top5_error is None else f"{row.top5_error:.2%}", paper),
            )
        )
    empty = {i for i, column in enumerate(zip(*lines[1:], strict=True)) if not any(column)}
    lines = [tuple("" if i in empty else text for i, text in enumerate(line)) for line in lines]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    numbers = {3, 4, 5}
    return "\n".join(
        "  ".join(
            text.rjust(width) if i in numbers else text.ljust(width)
            for i, (text, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def submission(posteriors_NxK: np.ndarray, keys_N: np.ndarray, numbers_K: np.ndarray) -> str:
    """The classification challenge's form: a line a picture in the order of file names, five class numbers, best first.

    Args:
      posteriors_NxK: of pictures in any order.
      keys_N: their file names.
      numbers_K: the number that stands for each class, see `class_numbers`.
    """
    order = np.argsort(keys_N, kind="stable")
    return "".join(" ".join(map(str, line)) + "\n" for line in numbers_K[best(posteriors_NxK[order])])


def class_numbers(class_names: Sequence[str], listing: str, place: str) -> np.ndarray:
    """The challenge's own numbers of classes, [K] int64.

    Args:
      class_names: of the net, sorted.
      listing: the challenge's classes in the order of its numbers, one a line, which begins with the name. "": none;
        the numbers are then 1 to K by sorted name, which are not those of ILSVRC's development kit.
      place: where the listing came from, for the message.

    Raises:
      UserError: a listing of other classes.
    """
    if not listing:
        return np.arange(1, len(class_names) + 1)
    names = [line.split()[0] for line in listing.splitlines() if line.strip()]
    numbers = {name: i for i, name in enumerate(names, start=1)}
    if missing := [name for name in class_names if name not in numbers]:
        raise UserError(
            f"--class_numbers={place} lacks {len(missing)} of the net's {len(class_names)} classes, among them "
            f"{missing[0]!r}; it must name each class once, one a line, in the order of the challenge's numbers."
        )
    return np.array([numbers[name] for name in class_names])
