"""Mutated weights files, 500 of each kind: each gives one sentence or the weights, with bounded time and memory."""

import json
import random
import resource
import struct
import subprocess
import sys
import time

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.conftest import REPOSITORY
from tests.random_weights import some_weights
from tests.weights_files import (
    as_laid_out,
    pickled,
    random_params,
    write_caffemodel,
    write_h5,
    write_old_pth,
    write_pth,
)
from vgg_jax.runtime.exceptions import UserError
from vgg_jax.weights.file import save_weights
from vgg_jax.weights.imports import Digests, FileHints, import_weights
from vgg_jax.weights.layouts import Size

FILES = 500
MEMORY = 2**30  # bytes, more than reading the sound file takes
SECONDS = 10  # for one file
SIZE = Size(width_multiplier=1 / 8, fc_width=64, num_classes=10, side=2)  # a megabyte
NUMBERS = [0, 1, 127, 128, 255, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**63, 2**64 - 1]


def write_timm(path, tensors):
    save_file(tensors, path)
    return path


def write_npz(path, tensors):
    with open(path, "wb") as file:  # or NumPy would add an ending
        np.savez(file, **tensors)
    return path


def write_own(path, _):
    save_weights(path, some_weights("D"))
    return path


KINDS = {
    "pth": ("torchvision", write_pth),
    "old pth": ("torchvision", write_old_pth),
    "safetensors": ("timm", write_timm),
    "own": ("vgg_jax", write_own),
    "caffemodel": ("Caffe", write_caffemodel),
    "h5": ("Keras", write_h5),
    "npz": ("NumPy", write_npz),
}


def mutated(whole, rng):
    """Returns (mutation, bytes): a cut, flipped bytes, another number, a part twice or exchanged, zeros, noise.

    Three of four mutations fall where structure is: in the first or last few thousand bytes.
    """
    content = bytearray(whole)

    def place():
        edge = min(6000, len(content) - 16)
        return rng.choice(
            [rng.randrange(edge), len(content) - 16 - rng.randrange(edge), rng.randrange(len(content) - 16)]
        )

    mutation = rng.choice(["cut", "flip", "flip", "number", "number", "twice", "exchange", "zeros", "noise", "insert"])
    if mutation == "cut":
        del content[place() :]
    elif mutation == "flip":
        for _ in range(rng.choice([1, 1, 3, 30])):
            content[place()] ^= 1 << rng.randrange(8)
    elif mutation == "number":
        number, form = rng.choice(NUMBERS), rng.choice(["<Q", "<I", "<H", "B"])
        packed = struct.pack(form, number % 2 ** (8 * struct.calcsize(form)))
        at = place()
        content[at : at + len(packed)] = packed
    elif mutation in ("twice", "exchange"):
        a, b, n = place(), place(), rng.randrange(1, 200)
        part = content[a : a + n]
        if mutation == "twice":
            content[b:b] = part
        else:
            content[a : a + n], content[b : b + n] = content[b : b + n], part
    elif mutation == "zeros":
        at, n = place(), rng.randrange(1, 2000)
        content[at : at + n] = bytes(len(content[at : at + n]))
    elif mutation == "noise":
        at, n = place(), rng.randrange(1, 200)
        content[at : at + n] = rng.randbytes(len(content[at : at + n]))
    else:
        at = place()
        content[at:at] = rng.randbytes(rng.randrange(1, 50))
    return mutation, bytes(content)


READER = """
import json, resource, sys, time
from pathlib import Path
import warnings
warnings.simplefilter("ignore")
from vgg_jax.runtime.exceptions import UserError
from vgg_jax.runtime.digests import params_sha256
from vgg_jax.weights.imports import Digests, FileHints, import_weights
own = sys.argv[1] == "own"

for line in sys.stdin:
    began, sentence, digest = time.monotonic(), None, None
    try:
        hints = FileHints(preprocessing="" if own else "caffe")
        weights, _ = import_weights(Path(line.strip()), Digests("0" * 64, ""), hints)
        digest = params_sha256(weights.params)
    except UserError as error:
        sentence = str(error)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps([sentence, digest, time.monotonic() - began, peak]), flush=True)
"""


def reader(kind):
    """Starts a process that reads a file per line and answers [sentence, digest (or nulls), seconds, peak bytes]."""
    return subprocess.Popen(
        [sys.executable, "-c", READER, kind],
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ask(process, path, seconds):
    process.stdin.write(f"{path}\n")
    process.stdin.flush()
    began = time.monotonic()
    line = process.stdout.readline()
    assert line, f"{path}: the reader died with {process.wait(10)}: {process.stderr.read()[-2000:]}"
    assert time.monotonic() - began < seconds, path
    return json.loads(line)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_mutated_files_end_in_a_sentence(kind, tmp_path):
    layout, writer = KINDS[kind]
    sound = writer(tmp_path / "sound", as_laid_out(random_params("D", SIZE), layout))
    whole, rng = sound.read_bytes(), random.Random(kind)
    process = reader(kind)
    refused = 0
    try:
        sentence, sound_digest, _, first_peak = ask(process, sound, 60)  # JAX is imported on the way
        assert sentence is None
        for number in range(FILES):
            mutation, content = mutated(whole, rng)
            path = tmp_path / f"{number}-{mutation}"
            path.write_bytes(content)
            sentence, digest, seconds, peak = ask(process, path, SECONDS)
            assert peak - first_peak < MEMORY, path
            assert seconds < SECONDS, path
            if sentence is not None:
                refused += 1
                assert sentence.startswith(str(path)), sentence
                assert sentence.endswith("."), sentence
                assert "\n" not in sentence, sentence
                assert len(sentence) < 600, sentence
            elif kind in ("pth", "own"):  # which carry checksums: what is accepted has the sound file's numbers
                assert digest == sound_digest, path
            if mutation == "cut" and len(content) < len(whole) and kind != "h5":
                assert sentence is not None, path
            path.unlink()
    finally:
        process.kill()
    print(f"{kind}: {refused} of {FILES} refused")
    assert refused > FILES / 4


def structural(kind):
    """Damage made on purpose: files whose structure is wrong in one place."""
    layout, writer = KINDS[kind]
    tensors = as_laid_out(random_params("D"), layout)
    names = list(tensors)
    yield "swapped shapes", writer, tensors | {names[2]: tensors[names[2]].swapaxes(0, -1).copy().reshape(-1)}
    yield "another's tensor", writer, tensors | {names[0]: tensors[names[2]]}
    yield "missing", writer, {name: a for name, a in tensors.items() if name != names[5]}
    yield "too many", writer, tensors | {f"extra{names[5]}": tensors[names[5]]}
    yield "NaN", writer, tensors | {names[5]: np.full_like(tensors[names[5]], np.nan)}
    yield "infinity", writer, tensors | {names[4]: np.full_like(tensors[names[4]], np.inf)}
    if kind == "pth":
        shapes = {name: a.shape for name, a in tensors.items()}
        huge = shapes | {names[0]: (2**15, 2**15)}
        yield "a huge shape", lambda path, t: write_pth(path, t, pickled(huge)), tensors
        yield "wrong dtype", lambda path, t: write_pth(path, t, pickled(shapes, "IntStorage")), tensors
    if kind in ("safetensors", "h5"):
        yield "wrong dtype", writer, tensors | {names[0]: tensors[names[0]].astype(np.int32)}
        yield "wrong dtype", writer, tensors | {names[0]: tensors[names[0]].astype(np.float64)}


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "own"])
def test_structural_damage_is_always_refused(kind, tmp_path):
    count = 0
    for damage, writer, tensors in structural(kind):
        path = writer(tmp_path / f"{damage}-{count}", tensors)
        with pytest.raises(UserError):
            import_weights(path, Digests("0" * 64, ""), FileHints(preprocessing="caffe"))
        count += 1
    assert count >= 6
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 8 * 2**20  # kilobytes: nothing took what it claimed
