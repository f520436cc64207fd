"""Measures dense evaluation in buckets, against one compilation per shape and against 150 crops.

The images are Caltech-101's photographs at three scales, with mirror images; the network is A.

    python -m benchmarks.evaluation                        # narrow, for a CPU; minutes
    python -m benchmarks.evaluation --width=1 --batch=256  # the paper's model, for a GPU

Buckets are compiled and run in full. Compiling every shape, and running it unpadded, is measured on a random sample of
images (each in a batch as large as its bucket's would be, so that the comparison is at equal use of the machine) and
extrapolated to all of them; so are the 150 crops. The images are found through VGG_JAX_PICTURES.
"""

import argparse
import json
import os
import time
from pathlib import Path

import jax
import numpy as np

from vgg_jax.config import default_config, recipe_of
from vgg_jax.data.colors import IMAGENET_STATISTICS
from vgg_jax.data.sources import expanded, prepared_data
from vgg_jax.data.splits import open_split
from vgg_jax.evaluation.dense_steps import make_crops, make_dense
from vgg_jax.evaluation.passes import EvalPass
from vgg_jax.evaluation.plan import devices_of, macs, plan_pass, rescaled_sizes
from vgg_jax.evaluation.run import CompiledSteps, EvalStats, run_jobs
from vgg_jax.evaluation.split import Split
from vgg_jax.evaluation.trained_model import TrainedModel
from vgg_jax.runtime.compilation import compile_step
from vgg_jax.runtime.console import Console
from vgg_jax.runtime.sharding import make_mesh, replicated
from vgg_jax.training.augment import normalize
from vgg_jax.training.state import make_model


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--configuration", default="A")
    parser.add_argument("--width", type=float, default=0.125, help="factor on channels and FC features")
    parser.add_argument("--crop", type=int, default=224)
    parser.add_argument("--scales", default="256,384,512", help="Q, pixels")
    parser.add_argument("--batch", type=int, default=64, help="as evaluate's --batch_size")
    parser.add_argument("--sample", type=int, default=24, help="images a scale that extrapolations rest on")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--data_dir", default="~/tensorflow_datasets")
    parser.add_argument("--json", default="", help="file for the figures")
    return parser.parse_args()


def random_model(configuration, width, crop, mesh):
    config = default_config()
    config.model.configuration, config.model.width_multiplier = configuration, width
    config.model.fc_width, config.image.crop = round(4096 * width), crop
    model = make_model(recipe_of(config))
    variables = jax.jit(model.init)(jax.random.key(0), np.zeros((1, crop, crop, 3), np.float32))
    variables = jax.device_put(variables, replicated(mesh))
    names = [str(i) for i in range(config.model.num_classes)]
    return TrainedModel(Path(), Path(), config, model, variables, "", names, names, IMAGENET_STATISTICS, mesh)


def seconds_of(function, *inputs, least=0.5):
    """Of one call, the first left out."""
    jax.block_until_ready(function(*inputs))
    began, calls = time.perf_counter(), 0
    while calls < 2 or time.perf_counter() - began < least:
        jax.block_until_ready(function(*inputs))
        calls += 1
    return (time.perf_counter() - began) / calls


def unpadded(trained, shape, batch_size):
    """Dense evaluation of whole images of one shape, without bucket or mask: (function, shapes of its arguments)."""

    def dense(variables, images):
        pair = jax.numpy.stack([images, images[:, :, ::-1]], 1).reshape(-1, *images.shape[1:])
        logits, _ = trained.model.apply(variables, normalize(pair, trained.statistics))
        return jax.nn.softmax(logits).reshape(batch_size, 2, -1).mean(1)

    return dense, (trained.variables, np.zeros((batch_size, *shape, 3), np.uint8))


def in_bucket(trained, bucket):
    images = np.zeros((bucket.batch_size, *bucket.shape, 3), np.uint8)
    sizes = np.full((bucket.batch_size, 2), bucket.shape, np.int32)
    return make_dense(trained.model, trained.statistics), (trained.variables, images, sizes, np.bool_(False))


def timed(function, inputs):
    """(seconds to compile, seconds of one call)."""
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), inputs)
    began = time.perf_counter()
    compiled = compile_step(function, *shapes)
    compiling = time.perf_counter() - began
    return compiling, seconds_of(compiled, *jax.tree.map(jax.numpy.asarray, inputs))


def main():
    args = arguments()
    root = Path(os.environ.get("VGG_JAX_PICTURES", Path(__file__).parents[2] / "shared" / "data")) / "caltech101-30"
    records = open_split(prepared_data("folder", expanded(args.data_dir), str(root)), "val", "split")
    trained, stats = random_model(args.configuration, args.width, args.crop, make_mesh()), EvalStats()
    sizes = Split("", "val", records, [], Console(quiet=True)).index(args.threads).sizes
    everything, rng = np.arange(len(records)), np.random.default_rng(0)
    compiled = CompiledSteps(trained, stats)
    network, devices = compiled.network, devices_of(trained.mesh)
    passes = [EvalPass("dense", int(q), args.crop, True) for q in args.scales.split(",")]
    plans = {item: plan_pass(item, network, sizes, everything, args.batch, devices) for item in passes}
    figures = {"arguments": vars(args), "device": jax.devices()[0].device_kind, "images": len(records)}
    print(
        f"{len(records)} photographs, Q {args.scales}, {args.configuration} x {args.width:g}, crop {args.crop}; "
        f"{figures['device']}"
    )

    # In buckets: everything.
    seconds, padded = 0.0, 0
    for eval_pass, jobs in plans.items():
        for job in jobs:
            full = len(job.bucket.indices) / job.bucket.batch_size
            padded += job.macs if job.is_long else round(job.macs * full)
        began, compiling = time.perf_counter(), stats.compile_seconds
        for _ in run_jobs(compiled, eval_pass, jobs, records, args.threads, stats):
            pass
        seconds += time.perf_counter() - began - (stats.compile_seconds - compiling)
    figures["padding"], figures["padding_and_empty_slots"] = (
        padded / stats.needed - 1,
        stats.computed / stats.needed - 1,
    )
    print(
        f"buckets: {stats.shapes} compilations in {stats.compile_seconds:.1f} s; padding {figures['padding']:.1%} more "
        f"multiply-adds, with empty slots {figures['padding_and_empty_slots']:.1%}; everything computed (decoding "
        f"too) in {seconds:.1f} s",
        flush=True,
    )

    # The devices' part, in buckets and unpadded and by crops, one right after the other so that they share conditions.
    slots = max(1, args.batch // 50)
    crop_inputs = (trained.variables, np.zeros((slots, 25, args.crop, args.crop, 3), np.uint8))
    timed(*unpadded(trained, (args.crop, args.crop), 1))  # what is slow the first time only
    shapes, compile_seconds = 0, {"bucket": [], "shape": []}
    ran = {"bucket": 0.0, "shape": 0.0, "crops": 0.0}  # seconds for all images
    for eval_pass, jobs in plans.items():
        rescaled = rescaled_sizes(sizes, eval_pass.scale)
        shapes += len(np.unique(rescaled, axis=0))
        bucket_of = {int(i): job.bucket for job in jobs if not job.is_long for i in job.bucket.indices}
        each = {"bucket": [], "shape": []}
        for index in rng.choice(list(bucket_of), args.sample, replace=False):
            bucket = bucket_of[int(index)]
            for kind, work in (
                ("bucket", in_bucket(trained, bucket)),
                ("shape", unpadded(trained, tuple(map(int, rescaled[index])), bucket.batch_size)),
            ):
                compiling, running = timed(*work)
                compile_seconds[kind].append(compiling)
                each[kind].append(running / bucket.batch_size)
        for kind, seconds_each in each.items():
            ran[kind] += float(np.mean(seconds_each)) * len(records)
        crop_step = make_crops(trained.model, trained.statistics, mirror=True)
        ran["crops"] += timed(crop_step, crop_inputs)[1] / slots * len(records)
    ran["bucket"] *= (1 + figures["padding_and_empty_slots"]) / (1 + figures["padding"])  # empty slots
    mean = {kind: float(np.mean(seconds_each)) for kind, seconds_each in compile_seconds.items()}
    compile_all = {"bucket": mean["bucket"] * stats.shapes, "shape": mean["shape"] * shapes}
    promised = 50 * len(passes) * len(records) * macs(network, args.crop, args.crop) / stats.computed
    print(
        f"measured side by side on {len(compile_seconds['shape'])} sampled images, extrapolated to all:\n"
        f"compiling: {mean['bucket']:.2f} s a bucket, {mean['shape']:.2f} s a shape; {stats.shapes} buckets "
        f"{compile_all['bucket']:.1f} s, {shapes} shapes {compile_all['shape']:.0f} s: "
        f"{compile_all['shape'] / compile_all['bucket']:.0f} x as much\n"
        f"running: in buckets {ran['bucket']:.1f} s, unpadded in batches as large {ran['shape']:.1f} s "
        f"({ran['bucket'] / ran['shape']:.2f} x), {50 * len(passes)} crops {ran['crops']:.0f} s "
        f"({ran['crops'] / ran['bucket']:.1f} x buckets; multiply-adds promise {promised:.1f} x)\n"
        f"from a cold start: buckets {compile_all['bucket'] + ran['bucket']:.0f} s, a compilation a shape "
        f"{compile_all['shape'] + ran['shape']:.0f} s, {50 * len(passes)} crops {mean['shape'] + ran['crops']:.0f} s"
    )
    figures |= {
        "buckets": stats.shapes,
        "buckets_compile_seconds": stats.compile_seconds,
        "buckets_end_to_end_seconds": seconds,
        "shapes": shapes,
        "compile_seconds_each": mean,
        "compile_seconds": compile_all,
        "run_seconds": ran,
        "crops_promised_ratio": promised,
    }
    if args.json:
        Path(args.json).write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
