"""Collectives of a compiled program: kind, bytes and devices, from the lines of its text (HLO) that name one."""

from __future__ import annotations

import math
import re
from typing import NamedTuple

_BITS = {"pred": 8, "f8e4m3fn": 8, "f8e5m2": 8, "bf16": 16} | {f"{c}{n}": n for c in "fsuc" for n in (4, 8, 16, 32, 64)}
_COMPUTATION = re.compile(r"(?:ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
_COLLECTIVE = re.compile(
    r"\s+(?:ROOT )?%?([\w.\-]+) = (.*?) (all-reduce|all-gather|reduce-scatter|collective-permute|all-to-all)(-start)?\("
)


class Collective(NamedTuple):
    """Communication between devices at one point of a step."""

    name: str
    kind: str
    dtype: str  # of the largest array
    bytes: int  # of the whole arrays that are reduced, gathered or sent, in all runs of a loop
    devices: int  # that take part together


def parse_collectives(hlo: str, devices: int) -> list[Collective]:
    """Returns the collectives of a program for `devices`; a loop runs as often as the constant in its condition."""
    computations: dict[str, list[str]] = {}
    name = ""
    for line in hlo.splitlines():
        match = _COMPUTATION.match(line)
        name = match[1] if match else name
        computations.setdefault(name, []).append(re.sub(r"/\*.*?\*/", "", line))
    # A computation stands before those that call it, and the entry is the last.
    runs = dict.fromkeys(computations, 0) | {name: 1}
    for caller in reversed(computations):
        for line in computations[caller]:
            condition = computations[match[1]] if (match := re.search(r"condition=%?([\w.\-]+)", line)) else []
            trips = max(map(int, re.findall(r" constant\((\d+)\)", "\n".join(condition))), default=1)
            for called in re.findall(r"(?:body|calls|to_apply)=%?([\w.\-]+)", line):
                runs[called] += runs[caller] * trips
    # A collective that is fused with several instructions is written in each of them: the same arrays on one channel.
    distinct: dict[tuple, Collective] = {}
    for computation, lines in computations.items():
        for line in lines:
            if match := _COLLECTIVE.match(line):
                channel = re.search(r"channel_id=\d+", line)
                name, result, kind, start = match.groups()
                collective = _collective(name, result, kind + (start or ""), _group_size(line, devices))
                collective = collective._replace(bytes=collective.bytes * runs[computation])
                distinct.setdefault((channel[0] if channel else name, *collective[1:]), collective)
    return list(distinct.values())


def _collective(name: str, result: str, opcode: str, group: int) -> Collective:
    arrays = [
        (math.prod(int(side.lstrip("<=")) for side in shape.split(",") if side) * _BITS.get(dtype, 0) // 8, dtype)
        for dtype, shape in re.findall(r"\b([a-z]+[0-9a-z]*)\[([0-9,<=]*)\]", result)
    ]
    # The results of these two begin with the operands.
    if opcode == "all-gather-start":
        arrays = arrays[len(arrays) // 2 :]
    if opcode == "collective-permute-start":
        arrays = arrays[1:2]
    size = sum(size for size, _ in arrays) * (group if opcode.startswith("reduce-scatter") else 1)
    return Collective(name, opcode.removesuffix("-start"), max(arrays)[1], size, group)


def _group_size(line: str, devices: int) -> int:
    """Returns the devices of replica_groups={{0,1},{2,3}}, [2,2]<=[4] or a mesh with some of its axes; all for none."""
    if match := re.search(r"replica_groups=mesh\[([^\]]*)\] ?\{([^}]*)\}", line):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", match[1]))
        # 'axis_0' is a whole axis of the compiler's mesh, 'axis_0':(1)2 a part of it of size 2.
        return math.prod(int(part or sizes[axis]) for axis, part in re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", match[2]))
    if match := re.search(r"replica_groups=\[\d+,(\d+)\]", line):
        return int(match[1])
    match = re.search(r"replica_groups=\{\{([\d,]*)\}", line)
    return len(match[1].split(",")) if match else devices
