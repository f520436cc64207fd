"""TPU chips as published, and the slices that are made of them."""

from __future__ import annotations

import math
import re
from typing import NamedTuple

from vgg_jax.runtime.exceptions import UserError


class Chip(NamedTuple):
    """One chip; what JAX calls a device is a part of it where `devices` is 2."""

    devices: int  # that JAX shows of a chip, in the form that is compiled for
    hbm_gib: float
    flops: float  # peak bfloat16 FLOP/s
    hbm_bandwidth: float  # bytes/s
    link_bandwidth: float  # bytes/s of one ICI link, in one direction
    links: int  # ICI links: two for each dimension of the torus
    wrap: int  # a dimension of a slice is a ring where this divides it, else a line
    most_chips: int  # of a slice
    config: str | None  # the compiler's name for the form of the chip that is meant; None: its only one


# Cloud TPU's pages docs.cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e,tpu7x}: peak bf16, HBM capacity and bandwidth, ICI.
# They give ICI for a whole chip, for v5p and TPU7x 1,200 GB/s in both directions, for v5e and v6e 1,600 and 3,200
# Gbit/s in one: here divided by links and directions. v4's links: Jouppi et al. 2023 (arXiv 2304.01433), Table 4.
# Rings: v5e and v6e in a dimension of 16 (their whole pod); the others in cubes of 4 x 4 x 4, from one cube up.
CHIPS: dict[str, Chip] = {
    # megacore: JAX shows both cores as one device.
    "v4": Chip(1, 32, 275e12, 1200e9, 50e9, 6, 4, 4096, "megacore"),
    "v5e": Chip(1, 16, 197e12, 800e9, 50e9, 4, 16, 256, None),
    "v5p": Chip(1, 95, 459e12, 2765e9, 100e9, 6, 4, 6144, None),
    "v6e": Chip(1, 32, 918e12, 1600e9, 100e9, 4, 16, 256, None),
    "TPU7x": Chip(2, 192, 2307e12, 7380e9, 100e9, 6, 4, 9216, None),
}

# The slices that Cloud TPU offers, from one chip up; 3-D ones beyond those are multiples of 4 in every dimension.
_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16", "8x16x16")
SLICES: dict[str, tuple[str, ...]] = {name: _FLAT if chip.links == 4 else _CUBES for name, chip in CHIPS.items()}


class Slice(NamedTuple):
    """Chips with links between them, as v5e:4x4."""

    name: str
    chip: Chip
    shape: tuple[int, ...]  # chips along each dimension

    @property
    def chips(self) -> int:
        return math.prod(self.shape)

    @property
    def devices(self) -> int:
        return self.chips * self.chip.devices

    @property
    def host(self) -> tuple[int, int, int]:
        """Chips of one host along x, y, z, as the compiler needs them: 2x2, or fewer where the slice is smaller."""
        x, y = self.shape[:2]
        return min(x, 2), min(y, 2), 1


def parse_slice(text: str) -> Slice:
    """Returns the slice of "v5e:4x4".

    Raises:
      UserError: a chip or a shape that does not exist; lists those that do.
    """
    kind, _, shape = text.partition(":")
    name = next((known for known in CHIPS if known.lower() == kind.lower()), None)
    if name is None:
        raise UserError(
            f"--topology={text}: there is no TPU {kind!r} here; there are {', '.join(CHIPS)}, "
            "and a slice is chip:shape, as v5e:4x4 or v5p:2x2x2."
        )
    chip = CHIPS[name]
    sides = tuple(map(int, shape.split("x"))) if re.fullmatch(r"\d{1,4}(x\d{1,4}){1,2}", shape) else ()
    cube = len(sides) == 3 and chip.links == 6 and all(side and side % 4 == 0 for side in sides)
    if shape not in SLICES[name] and not (cube and math.prod(sides) <= chip.most_chips):
        larger = (
            f", and multiples of 4 in all three dimensions up to {chip.most_chips:,} chips" if chip.links == 6 else ""
        )
        raise UserError(
            f"--topology={text}: {name} has no slice {shape!r}; there are "
            f"{', '.join(f'{name}:{known}' for known in SLICES[name])}{larger}."
        )
    return Slice(f"{name}:{shape}", chip, sides)
