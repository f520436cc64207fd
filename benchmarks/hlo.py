"""Reads the text of a compiled program (scheduled HLO): order of instructions, work, and traffic between chips.

Pure functions on text. The format is that of `jax.stages.Compiled.as_text()` for TPU; layouts say where an array lies:
`S(1)` is on the chip's vector memory, none is HBM.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

# Bits of an element; what is not here (token, opaque) has none.
_BITS = dict(pred=8, s4=4, u4=4, s8=8, u8=8, s16=16, u16=16, s32=32, u32=32, s64=64, u64=64)  # noqa: C408
_BITS |= dict(f16=16, bf16=16, f32=32, f64=64, c64=64, f8e4m3fn=8, f8e5m2=8)  # noqa: C408
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "collective-permute", "all-to-all")
# Instructions that move and compute nothing.
_FREE = frozenset(
    ("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id")
)

_ARRAY = re.compile(r"([a-z]+[0-9a-z]*)\[([0-9,<=]*)\](\{[^}]*\})?")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
_NAME = re.compile(r"%([\w.\-]+)")


class Array(NamedTuple):
    dtype: str
    shape: tuple[int, ...]
    space: int  # 0: HBM; 1: vector memory
    layout: tuple[int, ...] = ()  # dimensions, the one that changes fastest first
    tile: tuple[int, ...] = ()  # of the fastest dimensions, in the order of `shape`

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * _BITS.get(self.dtype, 0) // 8

    @property
    def stored_bytes(self) -> int:
        """Returns the bytes with padding to whole tiles: 64 channels in tiles of 8 x 128 take the space of 128."""
        sides = list(self.shape)
        for dimension, side in zip(self.layout, reversed(self.tile), strict=False):
            sides[dimension] = -(-sides[dimension] // side) * side
        return math.prod(sides) * _BITS.get(self.dtype, 0) // 8


class Instruction(NamedTuple):
    name: str
    opcode: str
    results: tuple[Array, ...]
    arguments: str  # between the parentheses
    text: str  # what follows them: attributes

    @property
    def operands(self) -> tuple[str, ...]:
        """Names of instructions."""
        return tuple(_NAME.findall(self.arguments))

    def attribute(self, name: str) -> str:
        """Returns "fused_computation.1" for `calls=%fused_computation.1`; "" where there is none."""
        match = re.search(rf"(?:^|[ ,]){name}=(\{{[^}}]*\}}|[^,\s]+)", self.text)
        return match[1].lstrip("%") if match else ""


class Program(NamedTuple):
    computations: dict[str, dict[str, Instruction]]  # in the order of the schedule
    entry: str


class Event(NamedTuple):
    """One entry of the schedule, with the work of all that it calls."""

    name: str
    opcode: str
    flops: float  # of convolutions and matrix products
    hbm_bytes: float  # read and written, operands and results that lie in HBM
    collective: str  # one of COLLECTIVES, or ""
    collective_bytes: float  # of the collective's result (reduce-scatter: of its operand), what a chip holds of it
    group: int  # devices that take part; 0: none
    starts: bool  # begins something that runs next to what follows
    ends: str  # the name of the event that began what ends here, or ""
    times: int  # how often it runs (in loops)
    dtype: str = ""  # of a collective's largest array


def parse(text: str) -> Program:
    """Parses the computations of a program.

    Raises:
      ValueError: text that has no entry computation.
    """
    computations: dict[str, dict[str, Instruction]] = {}
    entry, current = "", None
    for line in text.splitlines():
        line = re.sub(r"/\*.*?\*/", "", line)
        if current is None:
            if match := _COMPUTATION.match(line):
                current = computations.setdefault(match[2], {})
                entry = match[2] if match[1] else entry
        elif line.startswith("}"):
            current = None
        elif instruction := _instruction(line):
            current[instruction.name] = instruction
    if not entry:
        raise ValueError("this is no compiled program: it has no ENTRY computation")
    return Program(computations, entry)


def arrays(text: str) -> tuple[Array, ...]:
    """Returns the arrays of a type: two of "(f32[8,128]{1,0:T(8,128)S(1)}, s32[])"."""
    parsed = []
    for dtype, shape, layout in _ARRAY.findall(text):
        sides = tuple(int(side.lstrip("<=")) for side in shape.split(",") if side)
        space = re.search(r"S\((\d+)\)", layout)
        order, tile = re.match(r"\{([\d,]*)", layout), re.search(r":T\(([\d,]+)\)", layout)
        parsed.append(
            Array(
                dtype,
                sides,
                int(space[1]) if space else 0,
                *(tuple(map(int, part[1].split(","))) if part and part[1] else () for part in (order, tile)),
            )
        )
    return tuple(parsed)


def _instruction(line: str) -> Instruction | None:
    match = re.match(r"\s+(?:ROOT )?%?([\w.\-]+) = ", line)
    if not match:
        return None
    rest = line[match.end() :]
    at = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    called = re.match(r"\s*([\w\-]+)\(", rest[at:])
    if not called:
        return None
    opens = at + called.end() - 1
    closes = _closing(rest, opens)
    return Instruction(
        match[1], called[1], arrays(rest[:at]), rest[opens + 1 : closes], rest[closes + 1 :].lstrip(", ")
    )


def _closing(text: str, opens: int) -> int:
    """Returns the position of the parenthesis that closes the one at `opens`."""
    depth = 0
    for at in range(opens, len(text)):
        depth += (text[at] == "(") - (text[at] == ")")
        if not depth:
            return at
    raise ValueError(f"a parenthesis is not closed in {text[:100]!r}")


def flops(program: Program, instruction: Instruction, of: dict[str, Instruction]) -> float:
    """Multiplications and additions of the convolutions and matrix products of an instruction and what it calls.

    A padded border and the zeros of a dilated operand count as work; XLA's own count leaves them out.
    """
    if instruction.opcode == "convolution":
        kernel = of[instruction.operands[1]].results[0].shape
        labels = instruction.attribute("dim_labels").split("_")[1].split("->")[0]
        return 2.0 * math.prod(instruction.results[0].shape) * math.prod(kernel) / kernel[labels.index("o")]
    if instruction.opcode == "dot":
        left = of[instruction.operands[0]].results[0].shape
        inner = instruction.attribute("lhs_contracting_dims").strip("{}").split(",")
        return 2.0 * math.prod(instruction.results[0].shape) * math.prod(left[int(i)] for i in inner if i)
    called = program.computations.get(instruction.attribute("calls"), {})
    return sum(flops(program, inner, called) for inner in called.values())


def collective_of(program: Program, instruction: Instruction) -> tuple[str, Instruction] | None:
    """Returns the collective that an instruction is or has fused into it, and the instruction that names its group."""
    kind = instruction.opcode.removesuffix("-start")
    if kind in COLLECTIVES:
        return kind, instruction
    # TPU7x's SparseCores are given theirs by calls.
    called = instruction.attribute("to_apply" if instruction.opcode.startswith("call") else "calls")
    for inner in program.computations.get(called, {}).values():
        if collective := collective_of(program, inner):
            return collective
    return None


def group_size(instruction: Instruction, devices: int) -> int:
    """Returns the number of devices in one group of a collective.

    Reads replica_groups={{0,1},{2,3}}, [2,2]<=[4], or a mesh with some of its axes. Without groups all devices take
    part.
    """
    text = instruction.text
    if match := re.search(r"replica_groups=mesh\[([^\]]*)\] ?\{([^}]*)\}", text):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", match[1]))
        # 'axis_0' is a whole axis of the compiler's mesh, 'axis_0':(1)2 a part of it of size 2.
        return math.prod(int(part or sizes[axis]) for axis, part in re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", match[2]))
    if match := re.search(r"replica_groups=\[\d+,(\d+)\]", text):
        return int(match[1])
    if match := re.search(r"replica_groups=\{\{([\d,]*)\}", text):
        return len(match[1].split(","))
    return devices


def schedule(program: Program, devices: int) -> list[Event]:
    """Returns the events of the entry computation in order; bodies take the place of their loops, with trip counts."""
    return list(_events(program, program.entry, devices, 1, {}))


def _events(program: Program, computation: str, devices: int, times: int, running: dict[str, str]) -> Iterator[Event]:
    """Returns the events; `running` maps the channel of a collective that has begun to the event that began it."""
    of = program.computations[computation]
    for instruction in of.values():
        if instruction.opcode in _FREE:
            continue
        if instruction.opcode == "while":
            inner_times = times * _trips(program, instruction)
            yield from _events(program, instruction.attribute("body"), devices, inner_times, running)
            continue
        event = _event(program, instruction, of, devices, times)
        # A collective that is fused with other work: its start, the fusions that compute meanwhile, and its end share a
        # channel.
        collective = collective_of(program, instruction)
        channel = collective[1].attribute("channel_id") if collective and collective[1] is not instruction else ""
        if channel and event.starts:
            running[channel] = event.name
        elif channel in running:
            ends = running.pop(channel) if _is_done(instruction) else ""
            event = event._replace(collective="", collective_bytes=0.0, group=0, dtype="", ends=ends)
        yield event


def _event(program: Program, instruction: Instruction, of: dict[str, Instruction], devices: int, times: int) -> Event:
    starts, ends = _is_start(instruction), _is_done(instruction)
    begun = _begun(instruction, of) if ends else None
    collective = None if ends else collective_of(program, instruction)
    kind, size, group, dtype = "", 0.0, 0, ""
    if collective:
        kind, inner = collective
        operands = [array for name in instruction.operands if name in of for array in of[name].results]
        moved = operands if kind in ("reduce-scatter", "all-reduce") and inner is instruction else inner.results
        if kind == "all-gather" and inner.opcode.endswith("-start"):  # its result: the operand, and what is gathered
            moved = inner.results[-1:]
        size = float(sum(array.bytes for array in moved))
        group = group_size(inner, devices)
        if kind == "reduce-scatter" and inner is not instruction:
            size *= group
        dtype = max(moved, key=lambda array: array.bytes).dtype if moved else ""
    read = [array for name in instruction.operands if name in of for array in of[name].results]
    written = instruction.results
    if ends or 'custom_call_target="ConcatBitcast"' in instruction.text:
        read, written = [], ()
    hbm = float(sum(array.stored_bytes for array in (*read, *written) if not array.space))
    if updated := _update_in_place(program, instruction, of):
        hbm = 2.0 * updated.stored_bytes  # of the array that it is written into only that part is touched
    if starts and not collective:  # a copy alongside other work: the smaller of source and destination is what moves
        places = [array for array in instruction.results if array.shape][:2]
        hbm = float(min((p.stored_bytes for p in places), default=0) * sum(not p.space for p in places))
    work = 0.0 if ends else flops(program, instruction, of)
    return Event(
        *(instruction.name, instruction.opcode, work, hbm, kind, size, group, starts, begun.name if begun else ""),
        times,
        dtype,
    )


def _update_in_place(program: Program, instruction: Instruction, of: dict[str, Instruction]) -> Array | None:
    """Returns the written part, where an instruction or the end of a fusion updates an existing array."""
    of = program.computations.get(instruction.attribute("calls")) or of
    last = instruction if instruction.name in of else next(reversed(of.values()))
    while last.opcode == "bitcast" and last.operands[0] in of:
        last = of[last.operands[0]]
    return of[last.operands[1]].results[0] if last.opcode == "dynamic-update-slice" else None


def _begun(instruction: Instruction, of: dict[str, Instruction]) -> Instruction | None:
    """Returns the instruction that this one ends, looked for through the tuples between."""
    for name in instruction.operands:
        source = of.get(name)
        while source and source.opcode in _FREE and not _is_start(source) and source.operands:
            source = of.get(source.operands[0])
        if source and _is_start(source):
            return source
    return None


def _is_start(instruction: Instruction) -> bool:
    return instruction.opcode.endswith("-start") or bool(re.search(r"async[\w\-]*start", instruction.name))


def _is_done(instruction: Instruction) -> bool:
    return instruction.opcode.endswith("-done") or bool(re.search(r"async[\w\-]*done", instruction.name))


def _trips(program: Program, loop: Instruction) -> int:
    """Returns a loop's trip count: the compiler's own, or the constant that its condition compares with."""
    if match := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.text):
        return int(match[1])
    condition = program.computations.get(loop.attribute("condition"), {})
    bounds = [int(i.arguments) for i in condition.values() if i.opcode == "constant" and i.arguments.isdigit()]
    return max(bounds, default=1)
