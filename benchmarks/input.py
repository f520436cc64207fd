"""Measures training crops a second of the input pipeline, against common alternatives; Markdown on standard output.

Jitter S in [256, 512], crop 224 (Paper §3.1). Every method draws S and the crop's position in the same way, from the
same files in memory. Each is measured in a separate process, on one core and on all, in turns; the best of the rounds
counts. The last rows are the whole pipeline: records from disk, shuffle, decode, crop, batch, and the transfer to the
device.

    python -m benchmarks.input [--folder=DIR] [--seconds=5] [--rounds=3] > benchmarks/input.md

tf.data is measured where TensorFlow is installed. Default folder: imagenet-sample-120 under VGG_JAX_PICTURES.
"""

import argparse
import collections
import contextlib
import importlib.util
import io
import itertools
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

S_MIN, S_MAX, CROP = 256, 512, 224
PICTURES = Path(os.environ.get("VGG_JAX_PICTURES", Path(__file__).parents[2] / "shared" / "data"))


def files(folder):
    return [path.read_bytes() for path in sorted(Path(folder).rglob("*")) if path.suffix.lower() in (".jpeg", ".jpg")]


def pillow(content, rng, draft=False):
    """torchvision's reference decoding and resizing, with VGG's S and crop in place of RandomResizedCrop."""
    from PIL import Image

    from vgg_jax.data.crops import rescaled_size

    image = Image.open(io.BytesIO(content))
    size = rescaled_size(*image.size, int(rng.integers(S_MIN, S_MAX + 1)))
    if draft:
        image.draft("RGB", size)
    left, top = (int(rng.integers(side - CROP + 1)) for side in size)
    image = image.convert("RGB").resize(size, Image.Resampling.BILINEAR)
    return np.asarray(image.crop((left, top, left + CROP, top + CROP)))


def ours(content, rng):
    from vgg_jax.data.crops import random_crop

    return random_crop(content, rng, S_MIN, S_MAX, CROP)


def per_second(folder, cores, seconds, cut):
    """Crops a second of a function of bytes and a generator, on so many threads."""
    contents = files(folder)

    def some(worker):
        rng = np.random.default_rng(worker)
        began = time.perf_counter()
        for i in itertools.count(1):
            cut(contents[(i + 37 * worker) % len(contents)], rng)
            if time.perf_counter() - began > seconds:
                return i / (time.perf_counter() - began)

    for content in contents[:20]:
        cut(content, np.random.default_rng(0))
    with ThreadPoolExecutor(cores) as pool:
        return sum(pool.map(some, range(cores)))


def tf_data(folder, cores, seconds):
    """tf.data with decode_and_crop_jpeg: decodes only the crop, and resizes it without antialiasing."""
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(cores)
    tf.config.threading.set_inter_op_parallelism_threads(cores)

    def cut(content):
        shape = tf.cast(tf.io.extract_jpeg_shape(content)[:2], tf.float32)
        s = tf.cast(tf.random.uniform([], S_MIN, S_MAX + 1, tf.int32), tf.float32)
        size = tf.round(shape * s / tf.reduce_min(shape))
        offset = tf.random.uniform([2]) * (size - CROP)
        factor = shape / size
        window = tf.cast(tf.concat([offset * factor, CROP * factor], 0), tf.int32)
        pixels = tf.image.decode_and_crop_jpeg(content, window, channels=3)
        return tf.cast(tf.round(tf.image.resize(pixels, [CROP, CROP])), tf.uint8)

    data = tf.data.Dataset.from_tensor_slices(files(folder)).repeat().map(cut, num_parallel_calls=cores)
    options = tf.data.Options()
    options.threading.private_threadpool_size = cores
    options.threading.max_intra_op_parallelism = 1
    iterator = iter(data.batch(64).prefetch(1).with_options(options))
    next(iterator)
    began, done = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        done += len(next(iterator))
    return done / (time.perf_counter() - began)


def whole_pipeline(folder, cores, seconds, processes=0):
    """Returns images a second of `pipeline.batches`, and their shares of the rates of decode and crop alone.

    Both are measured in turns. Also returns the peak memory, and its growth in the second half, in MiB.
    """
    import jax

    from vgg_jax.config import default_config, recipe_of
    from vgg_jax.data.pipeline import batches, train_examples
    from vgg_jax.data.sources import prepared_data
    from vgg_jax.data.splits import open_split
    from vgg_jax.runtime.sharding import make_mesh

    config = default_config()
    config.image.scale_min, config.image.scale_max = S_MIN, S_MAX
    config.batch_size = 64
    config.data.threads, config.data.processes = (1 if processes else cores), processes
    with tempfile.TemporaryDirectory() as directory, contextlib.redirect_stdout(sys.stderr):
        kind = Path(directory, "images", "train", "all")
        kind.mkdir(parents=True)
        contents = files(folder)
        # Enough records for a data set: Grain's shuffle works on at least 65,536 indices, and skips missing ones.
        for i in range(max(len(contents), 4000)):
            (kind / f"{i:05d}.jpg").write_bytes(contents[i % len(contents)])
        records = open_split(prepared_data("folder", Path(directory), str(Path(directory, "images"))), "train", "split")
        stream = batches(recipe_of(config), train_examples(recipe_of(config), records), make_mesh())
        with contextlib.closing(stream):
            for _ in range(2 + cores):
                jax.block_until_ready(next(stream))
            speeds, shares, peaks = [], [], []
            # In turns with decode and crop alone, so that both see the machine at the same speed.
            while len(speeds) < 5 or len(peaks) < len(records) / config.batch_size:
                for _ in range(4 + cores):  # decoded ahead meanwhile
                    jax.block_until_ready(next(stream))
                began, first = time.perf_counter(), len(peaks)
                while time.perf_counter() - began < seconds / 2:
                    jax.block_until_ready(next(stream))
                    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
                speeds.append((len(peaks) - first) * config.batch_size / (time.perf_counter() - began))
                time.sleep(0.5)  # until nothing is decoded ahead any more
                shares.append(speeds[-1] / per_second(folder, cores, seconds / 2, ours))
    return max(speeds), shares, peaks[-1], peaks[-1] - peaks[len(peaks) // 2]


def share_of_the_decoder(folder, seconds):
    """Returns the JPEG library's share of our crops' time, and entropy decoding's share of whole images' time.

    At an eighth of its size a grey image needs no inverse DCT, no upsampling and no conversion of colours.
    """
    import simplejpeg

    inside, real = [0.0], simplejpeg.decode_jpeg

    def timed(*args, **kwargs):
        began = time.perf_counter()
        result = real(*args, **kwargs)
        inside[0] += time.perf_counter() - began
        return result

    simplejpeg.decode_jpeg = timed
    contents, began = files(folder), time.perf_counter()
    while time.perf_counter() - began < seconds:
        for i, content in enumerate(contents):
            ours(content, np.random.default_rng(i))
    share = inside[0] / (time.perf_counter() - began)
    simplejpeg.decode_jpeg = real
    eighth = {"colorspace": "GRAY", "min_width": 1, "min_height": 1, "min_factor": 8}
    entropy, whole = (
        per_second(folder, 1, seconds, lambda content, rng, options=options: real(content, strict=False, **options))
        for options in (eighth, {})
    )
    return share, whole / entropy


METHODS = {
    "Pillow: decode, resize, crop": lambda f, c, s: per_second(f, c, s, pillow),
    "Pillow with draft mode": lambda f, c, s: per_second(f, c, s, lambda b, rng: pillow(b, rng, draft=True)),
    "tf.data: decode_and_crop_jpeg, no antialiasing": tf_data,
    "vgg_jax: decode and crop": lambda f, c, s: per_second(f, c, s, ours),
    "vgg_jax: the whole pipeline": lambda f, c, s: whole_pipeline(f, c, s),
    "vgg_jax: the whole pipeline, in processes": lambda f, c, s: whole_pipeline(f, c, s, processes=c),
    "share of the decoder": lambda f, c, s: share_of_the_decoder(f, s),
}


def measure(method, folder, cores, seconds):
    """One method in a process of its own, bound to so many cores."""
    command = [sys.executable, "-m", "benchmarks.input", f"--folder={folder}", f"--seconds={seconds}"]
    command += [f"--only={method}", f"--cores={cores}"]
    quiet = {"TF_CPP_MIN_LOG_LEVEL": "3", "JAX_PLATFORMS": "cpu"}
    out = subprocess.run(command, capture_output=True, text=True, env=os.environ | quiet)
    if out.returncode:
        sys.exit(f"{method}: {out.stderr[-2000:]}")
    return json.loads(out.stdout.splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--folder", default=str(PICTURES / "imagenet-sample-120"), help="a folder of JPEGs, of any depth"
    )
    parser.add_argument("--seconds", type=float, default=5, help="for each measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=METHODS, help=argparse.SUPPRESS)
    parser.add_argument("--cores", type=int, default=1, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if not Path(args.folder).is_dir() or not files(args.folder):
        sys.exit(f"--folder={args.folder}: there is no JPEG; name a folder of them.")
    usable = sorted(os.sched_getaffinity(0))
    if args.only:
        os.sched_setaffinity(0, usable[-args.cores :])
        print(json.dumps(METHODS[args.only](args.folder, args.cores, args.seconds)))
        return

    methods = [m for m in METHODS if m != "share of the decoder"]
    if importlib.util.find_spec("tensorflow") is None:
        methods.remove("tf.data: decode_and_crop_jpeg, no antialiasing")
    best, shares, memory = {}, collections.defaultdict(list), {}
    for _ in range(args.rounds):
        for method, cores in itertools.product(methods, (1, len(usable))):
            result = measure(method, args.folder, cores, args.seconds)
            if isinstance(result, list):
                result, rates, *memory[method, cores] = result
                shares[method, cores] += rates
            best[method, cores] = max(best.get((method, cores), 0), result)
    decoder, entropy = measure("share of the decoder", args.folder, 1, args.seconds)

    contents = files(args.folder)
    model = next((line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), "")
    print(
        f"`python -m benchmarks.input --folder={Path(args.folder).name} --seconds={args.seconds:g} "
        f"--rounds={args.rounds}`\n"
    )
    print(
        f"{len(contents)} JPEGs of {sum(map(len, contents)) / len(contents) / 1000:.0f} kB on average; "
        f"S {S_MIN} to {S_MAX}, crop {CROP}; {model}, {len(usable)} cores, Python {platform.python_version()}. "
        f"Images a second, the best of {args.rounds} round{'s'[: args.rounds > 1]}.\n"
    )
    print(f"| method | 1 core | against Pillow | {len(usable)} cores |\n| --- | --- | --- | --- |")
    for method in methods:
        one_core, all_cores = best[method, 1], best[method, len(usable)]
        print(f"| {method} | {one_core:.0f} | {one_core / best[methods[0], 1]:.2f}x | {all_cores:.0f} |")
    pipeline = "vgg_jax: the whole pipeline"
    print(
        f"\nInside the JPEG library: {decoder:.0%} of the time of decode and crop. "
        f"Entropy decoding: {entropy:.0%} of decoding a whole image.\n"
    )
    for cores in (1, len(usable)):
        peak, growth = memory[pipeline, cores]
        low, share, high = np.percentile(shares[pipeline, cores], (25, 50, 75))
        print(
            f"On {cores} core{'s'[: cores > 1]} the whole pipeline reaches {share:.0%} of decode and crop alone "
            f"(median of {len(shares[pipeline, cores])} in turns, quartiles {low:.0%} and {high:.0%}); "
            f"peak memory {peak:,.0f} MiB, {growth:+.0f} MiB in the second half of at least an epoch."
        )


if __name__ == "__main__":
    main()
