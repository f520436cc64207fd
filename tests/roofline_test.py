"""The text of compiled TPU programs against counts by hand, and times against closed forms."""

import pytest

from benchmarks import hlo
from benchmarks.roofline import HOP_SECONDS, collective_seconds, event_seconds, roofline
from vgg_jax.tpu.chips import CHIPS, parse_slice

# Four devices: a convolution, an all-reduce of its gradient that overlaps with a matrix product, and one that does not.
PROGRAM = """\
HloModule jit_step, is_scheduled=true, num_partitions=4

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %sum = f32[] add(%x, %y)
}

%fused (a: bf16[8,16,16,4], k: bf16[3,3,4,32]) -> bf16[8,16,16,32] {
  %a = bf16[8,16,16,4]{3,0,2,1:T(8,128)(2,1)} parameter(0)
  %k = bf16[3,3,4,32]{3,2,1,0:T(8,128)(2,1)} parameter(1)
  ROOT %conv = bf16[8,16,16,32]{3,0,2,1:T(8,128)(2,1)} convolution(%a, %k), window={size=3x3 pad=1_1x1_1}, \
dim_labels=b01f_01io->b01f
}

%body (p: (s32[], bf16[64,64])) -> (s32[], bf16[64,64]) {
  %p = (s32[], bf16[64,64]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %m = bf16[64,64]{1,0} get-tuple-element(%p), index=1
  %product = bf16[64,64]{1,0} dot(%m, %m), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  ROOT %next = (s32[], bf16[64,64]{1,0}) tuple(%i, %product)
}

%until (q: (s32[], bf16[64,64])) -> pred[] {
  %q = (s32[], bf16[64,64]{1,0}) parameter(0)
  %j = s32[] get-tuple-element(%q), index=0
  %five = s32[]{:T(128)} constant(5)
  ROOT %less = pred[] compare(%j, %five), direction=LT
}

ENTRY %main.1_spmd (p0: bf16[8,16,16,4], p1: bf16[3,3,4,32], p2: f32[1024], p3: bf16[128,256], \
p4: (s32[], bf16[64,64])) -> bf16[8,16,16,32] {
  %p0 = bf16[8,16,16,4]{3,0,2,1:T(8,128)(2,1)} parameter(0)
  %p1 = bf16[3,3,4,32]{3,2,1,0:T(8,128)(2,1)S(1)} parameter(1)
  %p2 = f32[1024]{0:T(1024)} parameter(2)
  %p3 = bf16[128,256]{1,0:T(8,128)(2,1)} parameter(3)
  %p4 = (s32[], bf16[64,64]{1,0}) parameter(4)
  %fusion.1 = bf16[8,16,16,32]{3,0,2,1:T(8,128)(2,1)S(1)} fusion(%p0, %p1), kind=kOutput, calls=%fused, \
metadata={op_name="jit(step)/conv"}
  %all-reduce-start.1 = f32[1024]{0:T(1024)} all-reduce-start(%p2), channel_id=1, \
replica_groups=mesh['axis_0'=2,'axis_1'=2] {'axis_0','axis_1'}, to_apply=%add
  %copy-start.1 = (bf16[128,256]{1,0:T(8,128)S(1)}, bf16[128,256]{1,0:T(8,128)}, u32[]{:S(2)}) copy-start(%p3)
  %copy-done.1 = bf16[128,256]{1,0:T(8,128)S(1)} copy-done(%copy-start.1)
  %dot.1 = f32[128,128]{1,0:T(8,128)S(1)} dot(%copy-done.1, %copy-done.1), lhs_contracting_dims={1}, \
rhs_contracting_dims={1}
  %all-reduce-done.1 = f32[1024]{0:T(1024)} all-reduce-done(%all-reduce-start.1)
  %loop = (s32[], bf16[64,64]{1,0}) while(%p4), condition=%until, body=%body
  %all-gather.2 = (bf16[512]{0}, /*index=1*/f32[64]{0}) all-gather(%fusion.1, %dot.1), channel_id=2, \
replica_groups=[2,2]<=[4], dimensions={0}
  ROOT %done = bf16[8,16,16,32]{3,0,2,1} copy(%fusion.1)
}
"""


@pytest.fixture
def events():
    return {event.name: event for event in hlo.schedule(hlo.parse(PROGRAM), devices=4)}


def test_work_is_counted_by_hand(events):
    assert list(events) == [
        *("fusion.1", "all-reduce-start.1", "copy-start.1", "copy-done.1", "dot.1", "all-reduce-done.1", "product"),
        *("all-gather.2", "done"),
    ]
    assert events["fusion.1"].flops == 2 * (8 * 16 * 16 * 32) * (3 * 3 * 4)
    # Kernel and result lie in vector memory; four channels take the place of 128.
    assert events["fusion.1"].hbm_bytes == 2 * 8 * 16 * 16 * 128
    assert events["dot.1"].flops == 2 * 128 * 128 * 256
    assert events["dot.1"].hbm_bytes == 0
    assert events["copy-start.1"].hbm_bytes == 2 * 128 * 256  # read; written to vector memory
    assert events["copy-done.1"].hbm_bytes == 0
    assert (events["product"].flops, events["product"].times) == (2 * 64**3, 5)  # the loop's condition says five


@pytest.mark.parametrize(
    ("text", "stored"),
    [
        (
            "bf16[64,224,224,64]{3,0,2,1:T(8,128)(2,1)}",
            2 * 64 * 224 * 224 * 128,
        ),  # 64 channels fastest: half of it padding
        ("bf16[128,224,224,64]{0,3,2,1:T(8,128)(2,1)}", 2 * 128 * 224 * 224 * 64),  # 128 images fastest: none
        ("pred[10,30]{1,0:T(32,128)(4,1)}", 32 * 128),
        ("f32[130]{0:T(128)}", 4 * 256),
        ("f32[]{:T(128)}", 4),
        ("f32[7,3]{1,0}", 4 * 21),
    ],
)
def test_tiles_are_stored_whole(text, stored):
    (array,) = hlo.arrays(text)
    assert array.stored_bytes == stored


def test_an_update_in_place_moves_only_what_is_new():
    program = hlo.parse("""\
%fused (whole: bf16[7,512,4096], part: bf16[1,512,4096]) -> bf16[7,512,4096] {
  %whole = bf16[7,512,4096]{2,1,0:T(8,128)(2,1)} parameter(0)
  %part = bf16[1,512,4096]{2,1,0:T(8,128)(2,1)} parameter(1)
  %zero = s32[] constant(0)
  ROOT %put = bf16[7,512,4096]{2,1,0:T(8,128)(2,1)} dynamic-update-slice(%whole, %part, %zero, %zero, %zero)
}

ENTRY %main (a: bf16[7,512,4096], b: bf16[1,512,4096]) -> bf16[7,512,4096] {
  %a = bf16[7,512,4096]{2,1,0:T(8,128)(2,1)} parameter(0)
  %b = bf16[1,512,4096]{2,1,0:T(8,128)(2,1)} parameter(1)
  %i = s32[] constant(1)
  %first = bf16[7,512,4096]{2,1,0:T(8,128)(2,1)} fusion(%a, %b), kind=kLoop, calls=%fused
  ROOT %second = bf16[7,512,4096]{2,1,0:T(8,128)(2,1)} dynamic-update-slice(%first, %b, %i, %i, %i)
}
""")
    assert [event.hbm_bytes for event in hlo.schedule(program, 1)] == 2 * [2 * 2 * 512 * 4096]


def test_collectives_with_their_bytes_and_groups(events):
    reduce, gather = events["all-reduce-start.1"], events["all-gather.2"]
    assert (reduce.collective, reduce.collective_bytes, reduce.group, reduce.dtype) == ("all-reduce", 4096, 4, "f32")
    assert (gather.collective, gather.collective_bytes, gather.group) == ("all-gather", 2 * 512 + 4 * 64, 2)
    assert reduce.starts
    assert not gather.starts
    assert events["all-reduce-done.1"].ends == "all-reduce-start.1"


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("replica_groups={{0,1,2},{3,4,5}}", 3),
        ("replica_groups=[8,32]<=[256]", 32),
        ("replica_groups=mesh['axis_0'=16,'axis_1'=4] {'axis_1'}", 4),
        ("replica_groups=mesh['axis_0'=16,'axis_1'=4] {'axis_0':(1)2,'axis_1'}", 8),
        ("channel_id=1", 64),
    ],
)
def test_groups_in_every_spelling(text, size):
    assert hlo.group_size(hlo.Instruction("x", "all-reduce", (), "", text), 64) == size


def test_a_fused_collective_is_found():
    fused = PROGRAM.replace("ROOT %conv =", "%c =").replace(
        "dim_labels=b01f_01io->b01f\n",
        "dim_labels=b01f_01io->b01f\n  ROOT %r = bf16[8,16,16,32]{3,0,2,1} all-reduce(%c), to_apply=%add\n",
    )
    event = next(e for e in hlo.schedule(hlo.parse(fused), 4) if e.name == "fusion.1")
    assert (event.collective, event.group, event.flops > 0) == ("all-reduce", 4, True)


# As the compiler writes a collective that it has fused with what runs next to it.
CARRIED = """\
%begin (b: bf16[64,64]) -> bf16[64,64] {
  %b = bf16[64,64]{1,0} parameter(0)
  ROOT %r1 = bf16[64,64]{1,0} all-reduce(%b), channel_id=7, replica_groups=[1,4]<=[4], to_apply=%add
}

%carry (c: bf16[64,64]) -> bf16[64,64] {
  %c = bf16[64,64]{1,0} parameter(0)
  %r2 = bf16[64,64]{1,0} all-reduce(%c), channel_id=7, replica_groups=[1,4]<=[4], to_apply=%add
  ROOT %d = bf16[64,64]{1,0} dot(%c, %c), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

%end (e: bf16[64,64]) -> bf16[64,64] {
  %e = bf16[64,64]{1,0} parameter(0)
  ROOT %r3 = bf16[64,64]{1,0} all-reduce(%e), channel_id=7, replica_groups=[1,4]<=[4], to_apply=%add
}

ENTRY %main (p: bf16[64,64]) -> bf16[64,64] {
  %p = bf16[64,64]{1,0} parameter(0)
  %async-collective-start = (bf16[64,64]{1,0}, u32[]{:S(2)}) fusion(%p), kind=kCustom, calls=%begin
  %g = bf16[64,64]{1,0} get-tuple-element(%async-collective-start), index=0
  %fusion.2 = bf16[64,64]{1,0} fusion(%g), kind=kCustom, calls=%carry
  ROOT %async-collective-done = bf16[64,64]{1,0} fusion(%fusion.2), kind=kCustom, calls=%end
}
"""


def test_a_collective_that_is_fused_with_the_work_it_overlaps():
    begin, carry, end = hlo.schedule(hlo.parse(CARRIED), 4)
    assert (begin.collective, begin.collective_bytes, begin.starts) == ("all-reduce", 2 * 64 * 64, True)
    assert (carry.collective, carry.flops) == ("", 2 * 64**3)
    assert (end.collective, end.ends) == ("", "async-collective-start")
    times = roofline([begin, carry, end], parse_slice("v5e:2x2"))
    assert [each.overlapped for each in times.collectives] == [True]


def test_a_collective_on_other_cores_than_the_convolutions():
    program = """\
%called (b: bf16[64,64], t: token[]) -> bf16[64,64] {
  %t = token[] parameter(1)
  %b = bf16[64,64]{1,0} parameter(0)
  ROOT %r = bf16[64,64]{1,0} all-reduce(%b), channel_id=7, replica_groups=[1,4]<=[4], to_apply=%add
}, execution_thread="sparsecore"

ENTRY %main (p: bf16[64,64]) -> bf16[64,64] {
  %p = bf16[64,64]{1,0} parameter(0)
  %start = ((bf16[64,64]{1,0}, token[]), bf16[64,64]{1,0}) call-start(%p, %ready), \
async_execution_thread="sparsecore", to_apply=%called
  %d = bf16[64,64]{1,0} dot(%p, %p), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  ROOT %done = bf16[64,64]{1,0} call-done(%start)
}
"""
    start, _, done = hlo.schedule(hlo.parse(program), 4)
    assert (start.collective, start.collective_bytes, start.group) == ("all-reduce", 2 * 64 * 64, 4)
    assert done.ends == "start"
    (collective,) = roofline([start, _, done], parse_slice("v5e:2x2")).collectives
    assert collective.overlapped


def test_text_that_is_not_a_program():
    with pytest.raises(ValueError, match="no ENTRY"):
        hlo.parse("hello")


def test_collectives_take_what_the_closed_forms_say():
    size = 1e9
    ring = parse_slice("v5e:16x16")  # two dimensions, both closed: four links at 50 GB/s
    hops = 16 * HOP_SECONDS
    assert collective_seconds("all-reduce", size, 256, ring) == pytest.approx(2 * (size * 255 / 256 / 200e9 + hops))
    assert collective_seconds("all-gather", size, 256, ring) == pytest.approx(size * 255 / 256 / 200e9 + hops)
    line = parse_slice("v5e:4x4")  # not closed: half of that
    assert collective_seconds("reduce-scatter", size, 16, line) == pytest.approx(
        size * 15 / 16 / 100e9 + 6 * HOP_SECONDS
    )
    assert collective_seconds("all-reduce", size, 4, line) == pytest.approx(2 * (size * 3 / 4 / 50e9 + 3 * HOP_SECONDS))
    assert collective_seconds("collective-permute", size, 16, line) == pytest.approx(size / 50e9 + HOP_SECONDS)
    cube = parse_slice("v5p:4x4x4")
    assert collective_seconds("all-gather", size, 64, cube) == pytest.approx(size * 63 / 64 / 600e9 + 6 * HOP_SECONDS)
    assert collective_seconds("all-reduce", size, 1, line) == 0
    assert collective_seconds("all-reduce", size, 2, parse_slice("TPU7x:2x2x1")) == 0  # two devices of one chip


def test_only_what_the_program_shows_is_overlapped(events):
    topology = parse_slice("v5e:2x2")
    times = roofline(list(events.values()), topology)
    reduce, gather = sorted(times.collectives, key=lambda each: each.kind, reverse=True)
    assert (reduce.overlapped, gather.overlapped) == (True, False)
    alone = collective_seconds("all-reduce", 4096, 4, topology)
    hidden = event_seconds(events["dot.1"], topology.chip)
    assert hidden == 2 * 128 * 128 * 256 / 197e12
    assert reduce.exposed == pytest.approx(alone - hidden)
    assert gather.exposed == gather.seconds
    assert times.seconds == pytest.approx(times.compute_seconds + reduce.exposed + gather.exposed)
    assert times.efficiency == pytest.approx(times.compute_seconds / times.seconds)

    # With nothing but a copy between its beginning and its end it adds all of its time.
    order = ["fusion.1", "all-reduce-start.1", "copy-start.1", "copy-done.1", "all-reduce-done.1", "dot.1"]
    late = roofline([events[name] for name in order], topology)
    assert not late.collectives[0].overlapped
    assert late.collectives[0].exposed == pytest.approx(alone)


def test_two_collectives_share_the_links(events):
    topology = parse_slice("v5e:2x2")
    begin, work, end = (events[name] for name in ("all-reduce-start.1", "dot.1", "all-reduce-done.1"))
    second = begin._replace(name="second"), end._replace(ends="second")
    times = roofline([begin, second[0], work, end, second[1]], topology)
    alone = collective_seconds("all-reduce", 4096, 4, topology)
    assert times.seconds == pytest.approx(2 * alone)


def test_bytes_are_a_bound_where_multiplications_are_not():
    chip = CHIPS["TPU7x"]
    event = hlo.Event("x", "fusion", 2307e12, 0.0, "", 0.0, 0, False, "", 1)
    assert event_seconds(event, chip) == pytest.approx(2)  # a device is half a chip
    assert event_seconds(event._replace(hbm_bytes=3 * 7380e9, times=2), chip) == pytest.approx(12)
