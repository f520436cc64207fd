"""How long a compiled step takes at the chip's published figures: pure arithmetic on `hlo.Event`s.

An instruction takes the longer of two times: its multiplications at peak rate, and its bytes at HBM's bandwidth. A
collective overlaps with other work only where the program says so: it begins before a convolution or a matrix product
and ends after it. Any other collective adds its whole time. A real chip is slower than its published figures; the
model tells what bounds a step.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

from benchmarks.hlo import Event
from vgg_jax.tpu.chips import Chip, Slice

# Seconds for a message from a chip to its neighbour, about one microsecond: jax-ml.github.io/scaling-book, "TPUs".
HOP_SECONDS = 1e-6


class Collective(NamedTuple):
    """Communication between chips at one point of the step."""

    name: str
    kind: str
    dtype: str
    bytes: float  # of the array that is reduced or gathered, all times together
    devices: int  # that take part together
    seconds: float  # alone
    exposed: float  # seconds of them that nothing hides
    overlapped: bool  # whether a convolution or matrix product stands between its beginning and its end


@dataclasses.dataclass(frozen=True)
class Roofline:
    """A step's time at the published figures."""

    seconds: float
    compute_seconds: float  # of everything but collectives
    flops: float  # a device's, of convolutions and matrix products
    hbm_bytes: float  # a device's, read and written
    collectives: tuple[Collective, ...]

    @property
    def collective_seconds(self) -> float:
        return sum(each.seconds for each in self.collectives)

    @property
    def exposed_seconds(self) -> float:
        return self.seconds - self.compute_seconds

    @property
    def efficiency(self) -> float:
        """Returns the slice's efficiency against as many single chips with as many images each, which send nothing."""
        return self.compute_seconds / self.seconds


def event_seconds(event: Event, chip: Chip) -> float:
    """Returns the time of all runs of an event on one device, without communication."""
    return event.times * max(
        event.flops / (chip.flops / chip.devices), event.hbm_bytes / (chip.hbm_bandwidth / chip.devices)
    )


def collective_seconds(kind: str, size: float, devices: int, topology: Slice) -> float:
    """Returns the time of one collective alone.

    Over the whole slice every dimension takes its share: a ring sends both ways at once, a line (a dimension too
    short to be closed) at half that rate. A part of the slice counts as one line.

    Args:
      kind: one of `hlo.COLLECTIVES`.
      size: bytes that are reduced, gathered in all, or sent.
      devices: that take part together. Devices of one chip share its links, and nothing counts between them.
      topology: the slice.
    """
    chips = max(1, devices // topology.chip.devices)
    if chips == 1:
        return 0.0
    link = topology.chip.link_bandwidth
    if chips == topology.chips:
        long = [side for side in topology.shape if side > 1]
        bandwidth = link * sum(2 if _is_ring(topology, side) else 1 for side in long)
        hops = sum(side // 2 if _is_ring(topology, side) else side - 1 for side in long)
    else:
        bandwidth, hops = link, chips - 1
    if kind == "collective-permute":
        return size / link + HOP_SECONDS
    rounds = 2 if kind == "all-reduce" else 1
    return rounds * (size * (chips - 1) / chips / bandwidth + hops * HOP_SECONDS)


def _is_ring(topology: Slice, side: int) -> bool:
    """Returns whether a dimension of `side` chips is a ring."""
    if topology.chip.links == 6 and any(length % topology.chip.wrap for length in topology.shape):
        return False
    return side % topology.chip.wrap == 0


def roofline(events: list[Event], topology: Slice) -> Roofline:
    """Walks the schedule with a clock for the device and one for its links."""
    clock = links_free = compute = 0.0
    # A start's name -> (the event, its seconds, when its links are done, whether work stood after it).
    running: dict[str, tuple[Event, float, float, bool]] = {}
    collectives: list[Collective] = []

    def finish(event: Event, alone: float, exposed: float, overlapped: bool) -> None:
        size = event.collective_bytes * event.times
        collectives.append(
            Collective(event.name, event.collective, event.dtype, size, event.group, alone, exposed, overlapped)
        )

    for event in events:
        alone = 0.0
        if event.collective:
            alone = event.times * collective_seconds(event.collective, event.collective_bytes, event.group, topology)
        if event.ends in running:
            begun, took, done, worked = running.pop(event.ends)
            exposed = max(0.0, done - clock) if worked else took
            clock += exposed
            finish(begun, took, exposed, worked)
        # A collective reads and writes HBM while it sends; a copy in the background shows in the sum of bytes below.
        hidden = not event.flops and (event.collective or event.starts)
        own = 0.0 if hidden else event_seconds(event, topology.chip)
        clock, compute = clock + own, compute + own
        if event.flops:
            running = {name: (*state[:3], True) for name, state in running.items()}
        if event.collective and event.starts:
            links_free = max(clock, links_free) + alone
            running[event.name] = (event, alone, links_free, False)
        elif event.collective:
            clock += alone
            links_free = clock
            finish(event, alone, alone, False)
    for begun, took, _, _ in running.values():  # a program that never waits for what it began
        clock += took
        finish(begun, took, took, False)

    hbm_bytes = sum(event.times * event.hbm_bytes for event in events)
    short = max(0.0, hbm_bytes / (topology.chip.hbm_bandwidth / topology.chip.devices) - clock)
    clock, compute = clock + short, compute + short
    return Roofline(clock, compute, sum(event.times * event.flops for event in events), hbm_bytes, tuple(collectives))
