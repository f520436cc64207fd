"""Dense evaluation in frames, against one compilation a shape and against 150 crops: Caltech-101's photographs at three
scales with mirror images, net A.

    python -m benchmarks.evaluation                        # narrow, for a CPU; minutes
    python -m benchmarks.evaluation --width=1 --batch=256  # the paper's net, for a GPU

Frames are compiled and run in full. Compiling every shape, and running it unpadded, is measured on a random sample of
pictures (each in a batch as large as its frame's would be, so that the comparison is at equal use of the machine) and
extrapolated to all of them; so are the 150 crops. The pictures are found through VGG_JAX_PICTURES.
"""

import argparse
import json
import os
import time
from pathlib import Path

import jax
import numpy as np

from vgg_jax.augment import IMAGENET_STATISTICS, normalize
from vgg_jax.config import default_config
from vgg_jax.data.sources import expanded, open_split, prepared_data
from vgg_jax.evaluation.compute import Computer, Costs, rescaled_sizes, survey
from vgg_jax.evaluation.forward import make_crops, make_dense
from vgg_jax.evaluation.nets import Net
from vgg_jax.evaluation.views import View
from vgg_jax.sharding import make_mesh, replicated
from vgg_jax.state import make_model
from vgg_jax.steps import compile_step


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--configuration", default="A")
    parser.add_argument("--width", type=float, default=0.125, help="factor on channels and FC features")
    parser.add_argument("--crop", type=int, default=224)
    parser.add_argument("--scales", default="256,384,512", help="Q, pixels")
    parser.add_argument("--batch", type=int, default=64, help="as evaluate's --batch_size")
    parser.add_argument("--sample", type=int, default=24, help="pictures a scale that extrapolations rest on")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--data_dir", default="~/tensorflow_datasets")
    parser.add_argument("--json", default="", help="file for the figures")
    return parser.parse_args()


def random_net(args, mesh):
    config = default_config()
    config.model.configuration, config.model.width_multiplier = args.configuration, args.width
    config.model.fc_width, config.image.crop = round(4096 * args.width), args.crop
    model = make_model(config)
    params = jax.jit(model.init)(jax.random.key(0), np.zeros((1, args.crop, args.crop, 3), np.float32))["params"]
    params = jax.device_put(params, replicated(mesh))
    names = [str(i) for i in range(config.model.num_classes)]
    return Net(Path(), Path(), config, model, params, "", names, IMAGENET_STATISTICS, mesh)


def seconds_of(function, *inputs, least=0.5):
    """Of one call, the first left out."""
    jax.block_until_ready(function(*inputs))
    began, calls = time.perf_counter(), 0
    while calls < 2 or time.perf_counter() - began < least:
        jax.block_until_ready(function(*inputs))
        calls += 1
    return (time.perf_counter() - began) / calls


def unpadded(net, shape, slots):
    """Dense evaluation of whole pictures of one shape, without frame or mask: (function, shapes of its arguments)."""

    def dense(params, images):
        pair = jax.numpy.stack([images, images[:, :, ::-1]], 1).reshape(-1, *images.shape[1:])
        scores = net.model.apply(params, normalize(pair, net.statistics))
        return jax.nn.softmax(scores).reshape(slots, 2, -1).mean(1)

    return dense, (net.variables, np.zeros((slots, *shape, 3), np.uint8))


def in_frame(net, computer, batch):
    frames, sizes = computer._frames(batch.frame, batch.slots, [])
    return make_dense(net.model, net.statistics), (net.variables, frames, sizes, computer._flag(False))


def timed(function, inputs):
    """(seconds to compile, seconds of one call)."""
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), inputs)
    began = time.perf_counter()
    compiled = compile_step(function, *shapes)
    compiling = time.perf_counter() - began
    return compiling, seconds_of(compiled, *jax.tree.map(jax.numpy.asarray, inputs))


def main():
    args = arguments()
    place = Path(os.environ.get("VGG_JAX_PICTURES", Path(__file__).parents[2] / "shared" / "data")) / "caltech101-30"
    records = open_split(prepared_data("folder", expanded(args.data_dir), str(place)), "val", "split")
    net = random_net(args, make_mesh())
    looked = survey(records, args.threads, lambda _: None)
    everything, rng = np.arange(len(records)), np.random.default_rng(0)
    views = [View("dense", int(q), args.crop, True) for q in args.scales.split(",")]
    figures = {"arguments": vars(args), "device": jax.devices()[0].device_kind, "pictures": len(records)}
    print(
        f"{len(records)} photographs, Q {args.scales}, net {args.configuration} x {args.width:g}, crop {args.crop}; {figures['device']}"
    )

    # In frames: everything.
    ours = {"compile": 0.0, "run": 0.0, "frames": 0}
    costs = Costs()
    computer = Computer(net, args.batch, args.threads, costs)
    padding = [0, 0]
    for view in views:
        sizes = rescaled_sizes(looked.sizes, view.scale)
        batches, long = computer.planned(view, sizes, everything)
        cost = {
            n: computer._cost(view.scale, int(n)) for n in np.unique([*sizes.max(1), *(b.frame[1] for b in batches)])
        }
        padding[0] += sum(cost[int(n)] for n in sizes.max(1))
        padding[1] += sum(len(b.indices) * cost[b.frame[1]] for b in batches) + sum(
            computer._long_work(view, size) // 2 for _, size in long
        )
        began, compiling = time.perf_counter(), costs.compile_seconds
        for _ in computer.posteriors(view, records, looked.sizes, everything):
            pass
        ours["run"] += time.perf_counter() - began - (costs.compile_seconds - compiling)
    ours["compile"], ours["frames"] = costs.compile_seconds, costs.frames
    figures["padding"], figures["padding_and_empty_slots"] = (
        padding[1] / padding[0] - 1,
        costs.computed / costs.needed - 1,
    )
    print(
        f"frames: {ours['frames']} compilations in {ours['compile']:.1f} s; padding {figures['padding']:.1%} more "
        f"multiplications, with empty slots {figures['padding_and_empty_slots']:.1%}; everything computed (decoding "
        f"too) in {ours['run']:.1f} s"
    )

    # The devices' part, in frames and unpadded and by crops, one right after the other so that they share conditions.
    crops = View("multi_crop", views[0].scale, args.crop, True)
    slots = computer._crop_slots(crops)
    crop_inputs = (net.variables, np.zeros((slots, 25, args.crop, args.crop, 3), np.uint8))
    timed(*unpadded(net, (args.crop, args.crop), 1))  # what is slow the first time only
    shapes, compiled = 0, {"frame": [], "shape": []}
    ran = {"frame": 0.0, "shape": 0.0, "crops": 0.0}  # seconds for all pictures
    for view in views:
        sizes = rescaled_sizes(looked.sizes, view.scale)
        shapes += len(np.unique(sizes, axis=0))
        batches, _ = computer.planned(view, sizes, everything)
        batch_of = {int(i): batch for batch in batches for i in batch.indices}
        seconds = {"frame": [], "shape": []}
        for index in rng.choice(list(batch_of), args.sample, replace=False):
            batch = batch_of[int(index)]
            for kind, work in (
                ("frame", in_frame(net, computer, batch)),
                ("shape", unpadded(net, tuple(map(int, sizes[index])), batch.slots)),
            ):
                compiling, running = timed(*work)
                compiled[kind].append(compiling)
                seconds[kind].append(running / batch.slots)
        for kind, its in seconds.items():
            ran[kind] += float(np.mean(its)) * len(records)
        crop_step = make_crops(net.model, net.statistics, mirror=True)
        ran["crops"] += timed(crop_step, crop_inputs)[1] / slots * len(records)
    ran["frame"] *= (1 + figures["padding_and_empty_slots"]) / (1 + figures["padding"])  # empty slots
    each = {kind: float(np.mean(its)) for kind, its in compiled.items()}
    compile_all = {"frame": each["frame"] * costs.frames, "shape": each["shape"] * shapes}
    promised = 50 * len(views) * len(records) * computer._cost(args.crop, args.crop) / costs.computed
    print(
        f"measured side by side on {len(compiled['shape'])} sampled pictures, extrapolated to all:\n"
        f"compiling: {each['frame']:.2f} s a frame, {each['shape']:.2f} s a shape; {costs.frames} frames "
        f"{compile_all['frame']:.1f} s, {shapes} shapes {compile_all['shape']:.0f} s: "
        f"{compile_all['shape'] / compile_all['frame']:.0f} x as much\n"
        f"running: in frames {ran['frame']:.1f} s, unpadded in batches as large {ran['shape']:.1f} s "
        f"({ran['frame'] / ran['shape']:.2f} x), {50 * len(views)} crops {ran['crops']:.0f} s "
        f"({ran['crops'] / ran['frame']:.1f} x frames; multiplications promise {promised:.1f} x)\n"
        f"from a cold start: frames {compile_all['frame'] + ran['frame']:.0f} s, a compilation a shape "
        f"{compile_all['shape'] + ran['shape']:.0f} s, {50 * len(views)} crops {each['shape'] + ran['crops']:.0f} s"
    )
    figures |= {
        "frames": costs.frames, "frames_compile_seconds": costs.compile_seconds, "frames_end_to_end_seconds": ours["run"],
        "shapes": shapes, "compile_seconds_each": each, "compile_seconds": compile_all, "run_seconds": ran,
        "crops_promised_ratio": promised,
    }  # fmt: skip
    if args.json:
        Path(args.json).write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
