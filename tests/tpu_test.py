"""Compilation for TPU slices: collectives against counts by hand, the search of a batch against straight lines.

The slow test asks the TPU compiler itself, where libtpu is installed; no TPU is needed.
"""

import importlib.util
import itertools
import json

import pytest

from tests.command import help_of, run_command
from tests.refusals import assert_refused, refused
from vgg_jax.tpu.chips import CHIPS, SLICES, parse_slice
from vgg_jax.tpu.collectives import parse_collectives
from vgg_jax.tpu.compiled import CompileResult, largest, over

# Four devices: reductions that are fused with what they run next to and on other cores, and a loop of five turns.
PROGRAM = """\
HloModule jit_step, is_scheduled=true, num_partitions=4

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %sum = f32[] add(%x, %y)
}

%begin (b: bf16[64,64]) -> bf16[64,64] {
  %b = bf16[64,64]{1,0} parameter(0)
  ROOT %r1 = bf16[64,64]{1,0:T(8,128)(2,1)} all-reduce(%b), channel_id=7, replica_groups=[1,4]<=[4], to_apply=%add
}

%end (e: bf16[64,64]) -> bf16[64,64] {
  %e = bf16[64,64]{1,0} parameter(0)
  ROOT %r2 = bf16[64,64]{1,0:T(8,128)(2,1)} all-reduce(%e), channel_id=7, replica_groups=[1,4]<=[4], to_apply=%add
}

%called (c: f32[32], t: token[]) -> f32[32] {
  %c = f32[32]{0} parameter(0)
  ROOT %r3 = f32[32]{0} all-reduce(%c), channel_id=7, replica_groups={{0,1},{2,3}}, to_apply=%add
}, execution_thread="sparsecore"

%body (p: (s32[], bf16[16,64])) -> (s32[], bf16[16,64]) {
  %p = (s32[], bf16[16,64]{1,0}) parameter(0)
  %m = bf16[16,64]{1,0} get-tuple-element(%p), index=1
  %scattered = bf16[4,64]{1,0} reduce-scatter(%m), channel_id=9, dimensions={0}, to_apply=%add
  %sent = (bf16[4,64]{1,0}, bf16[4,64]{1,0}, u32[], u32[]) collective-permute-start(%scattered), channel_id=10
  ROOT %next = (s32[], bf16[16,64]{1,0}) tuple(%i, %done)
}

%until (q: (s32[], bf16[16,64])) -> pred[] {
  %j = s32[] get-tuple-element(%q), index=0
  %five = s32[]{:T(128)} constant(5)
  ROOT %less = pred[] compare(%j, %five), direction=LT
}

ENTRY %main.1_spmd (p0: bf16[64,64], p1: f32[32], p2: (s32[], bf16[16,64])) -> f32[] {
  %p0 = bf16[64,64]{1,0} parameter(0)
  %async-collective-start = (bf16[64,64]{1,0}, u32[]{:S(2)}) fusion(%p0), kind=kCustom, calls=%begin
  %async-collective-done = bf16[64,64]{1,0} fusion(%async-collective-start), kind=kCustom, calls=%end
  %start = ((f32[32]{0}, token[]), f32[32]{0}) call-start(%p1), async_execution_thread="sparsecore", to_apply=%called
  %loop = (s32[], bf16[16,64]{1,0}) while(%p2), condition=%until, body=%body
  %gathered = ((bf16[8]{0}, f32[2]{0}), (bf16[32]{0}, /*index=1*/f32[8]{0})) all-gather-start(%u, %v), \
channel_id=11, replica_groups=mesh['axis_0'=2,'axis_1'=2] {'axis_0','axis_1'}
  ROOT %loss = f32[] all-reduce(%w), channel_id=12, \
replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_1':(1)2}, to_apply=%add
}
"""


def test_collectives_with_their_bytes_and_devices():
    assert parse_collectives(PROGRAM, devices=4) == [
        ("r1", "all-reduce", "bf16", 2 * 64 * 64, 4),
        ("r3", "all-reduce", "f32", 4 * 32, 2),
        ("scattered", "reduce-scatter", "bf16", 5 * 2 * 4 * 64 * 4, 4),
        ("sent", "collective-permute", "bf16", 5 * 2 * 4 * 64, 4),
        ("gathered", "all-gather", "bf16", 2 * 32 + 4 * 8, 4),
        ("loss", "all-reduce", "f32", 4, 2),
    ]


def test_a_program_of_one_device_has_no_collectives():
    assert parse_collectives("ENTRY %main (p: f32[4]) -> f32[4] {\n  ROOT %p = f32[4]{0} parameter(0)\n}", 1) == []


def test_every_listed_slice_is_read_back():
    for kind, shapes in SLICES.items():
        for shape in shapes:
            topology = parse_slice(f"{kind}:{shape}")
            assert topology.chips <= CHIPS[kind].most_chips
            assert all(side % host == 0 for side, host in zip((*topology.shape, 1), topology.host, strict=False))
    assert parse_slice("tpu7X:2x2x2").devices == 16
    assert parse_slice("v5p:12x12x12").chips == 1728


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("v5e:3x3", r"v5e has no slice '3x3'; there are v5e:1x1, .*v5e:16x16\."),
        ("v5e:32x16", "no slice '32x16'"),
        ("v5p:4x4", "multiples of 4 in all three dimensions up to 6,144 chips"),
        ("v4:64x64x64", "v4 has no slice"),
        ("v9:4x4", "no TPU 'v9' here; there are v4, v5e, v5p, v6e, TPU7x"),
        ("v5e", "no slice ''"),
        ("v5e:0x4", "no slice '0x4'"),
        ("", "no TPU ''"),
    ],
)
def test_a_slice_that_does_not_exist(text, message):
    with refused(message):
        parse_slice(text)


@pytest.mark.parametrize("first", [8, 64, 800])
@pytest.mark.parametrize("state", [0.0, 3.0, 13.0])
def test_the_largest_batch_of_a_straight_line(first, state):
    tried = []

    def answer_at(batch):
        tried.append(batch)
        memory = state + batch / 50
        return CompileResult(memory <= 16, memory, 16)

    fits, fails, count = largest(answer_at, first, 8)
    assert answer_at(fits).fits
    assert not answer_at(fails).fits
    assert fails - fits <= max(8, fits // 8)
    assert count == len(tried) - 2 <= 6
    assert len(set(tried[:-2])) == count  # none compiled twice


def test_the_largest_batch_where_none_fits_and_where_memory_jumps():
    assert largest(lambda batch: CompileResult(False, 20 + batch, 16), 64, 8)[:2] == (0, 8)

    def jumps(batch):  # the compiler computes things again where memory is short
        memory = min(batch / 10, 15) if batch <= 400 else batch / 10
        return CompileResult(memory <= 16, memory, 16)

    fits, fails, _ = largest(jumps, 64, 8)
    assert 350 < fits <= 400 < fails


def test_the_compilers_refusal_is_read():
    message = (
        "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. "
        "Used 26.28G of 15.75G hbm. Exceeded"
    )
    assert over(message) == (26.28 * 2**30, 15.75 * 2**30)
    message = (
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (20.43G) "
        "exceeds available HBM (15.75G)."
    )
    assert over(message) == (20.43 * 2**30, 15.75 * 2**30)
    assert over("INTERNAL: something else") is None


def test_help_answers_at_once():
    assert "--topology" in help_of("compile-check")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--topology=v5e:3x3"], "v5e has no slice"),
        (["--topology=v5e:4x4", "--config.batch_size=100"], "16 devices do not divide; 96 or 112 would do"),
        (
            ["--topology=v5e:4x4", "--sharding=fdsp"],
            "one of replicated, fsdp, fc_model_parallel, or all. Did you mean 'fsdp'",
        ),
        (["--topology=v5e:4x4", "--json=/nowhere/x.json"], "there is no directory /nowhere"),
        (["--topology=v4:2x2x2", "--config.model.fc_width=1002", "--sharding=fc_model_parallel"], "1002"),
        ([], "say for which slice"),
    ],
)
def test_mistakes_are_answered_in_a_sentence(flags, message):
    assert_refused(run_command("compile-check", "--config=configs/vgg19.py", *flags), message)


def test_a_missing_compiler_says_how_to_get_it(monkeypatch):
    from vgg_jax.tpu.compiled import topology_devices

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with refused(r"libtpu, is not installed.*'\.\[tpu\]'"):
        topology_devices(parse_slice("v5e:2x2"))


@pytest.mark.slow
def test_the_compiler_itself(tmp_path):
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("libtpu is not installed: pip install -c constraints.txt -e '.[tpu]'")
    tiny = {
        "model.width_multiplier": 1 / 8,
        "model.fc_width": 128,
        "model.num_classes": 10,
        "model.dtype": "bfloat16",
        "image.crop": 32,
        "image.scale_min": 32,
        "image.scale_max": 32,
        "batch_size": 32,
    }
    flags = [f"--config.{key}={value}" for key, value in tiny.items()]
    status, out, err = run_command(
        "compile-check",
        "--config=configs/vgg11.py",
        "--topology=v5e:2x2",
        f"--json={tmp_path / 'a.json'}",
        *flags,
    )
    assert status == 0, err
    report = json.loads((tmp_path / "a.json").read_text())
    step = report["shardings"][0]["train_step"]
    assert step["fits"]
    assert "fits: " in out
    # Every gradient is reduced over four devices: at least the parameters in bfloat16, at most in float32.
    parameters = _parameters()
    reduced = sum(each["bytes"] for each in step["collectives"] if each["devices"] == 4)
    assert 2 * parameters <= reduced <= 4 * parameters + 4096
    assert step["flops_a_chip"] == step["flops_a_device"] > 0
    assert step["bytes_accessed_a_device"] > 2 * parameters


def _parameters() -> int:
    """Of net A, an eighth as wide, with FC layers of 128 and 10 classes over one place, counted by hand."""
    channels = [3, 8, 16, 32, 32, 64, 64, 64, 64]
    convolutions = sum(9 * a * b + b for a, b in itertools.pairwise(channels))
    return convolutions + (64 * 128 + 128) + (128 * 128 + 128) + (128 * 10 + 10)
