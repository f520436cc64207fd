"""Time of steps here and in torch, on this machine; Markdown on standard output.

    python -m benchmarks.peers [--rows=ResNet-20] [--rounds=7] [--torch=eager,channels_last,compiled]
    python -m benchmarks.peers --gpu --torch=compiled       # bfloat16, as benchmarks/peers_gpu.sh does

Every contestant is a separate process that holds its compiled step. They take turns, `--rounds` times, each for as
many steps as fill about two seconds. A ratio is the median over the rounds of torch's time over ours: above 1 we are
faster. A training step is forward, backward and update (momentum, L2). Ours is the shipped step where nothing is
logged, with augmentation, loss and errors. torch's networks are built from the same descriptions.

Each dense evaluation is a separate process, from encoded images to probabilities, compilation included. torch's is a
loop over images, each at its own size, with its mirror image. The images are Caltech-101's, under VGG_JAX_PICTURES.
Run everything on an idle machine.
"""

import io
import multiprocessing
import os
import resource
import statistics
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.torch_network import torch_lpips, torch_network
from vgg_jax.commands import cli


class Row(NamedTuple):
    """What is timed."""

    configuration: str
    crop: int
    batch_size: int
    trains: bool = True
    width: float = 1.0
    fc_width: int = 4096
    num_classes: int = 1000
    dtype: str = "float32"  # bfloat16: torch's automatic mixed precision


LPIPS = "LPIPS, a pair of 256 x 256"
ROWS = {
    **{f"{net}, training of {batch}": Row(net, 224, batch) for batch in (8, 32) for net in "AD"},
    "quickstart, training of 32": Row("A", 48, 32, width=0.25, fc_width=256, num_classes=10),
    "ResNet-20, training of 128": Row("ResNet-20", 32, 128, num_classes=10),
    "ResNet-50, training of 8": Row("ResNet-50", 224, 8),
    "D, inference of 1": Row("D", 224, 1, trains=False),
    "D, inference of 8": Row("D", 224, 8, trains=False),
    LPIPS: Row("D", 256, 1, trains=False),
}
GPU_ROWS = {
    f"{net}, bfloat16, training of {batch}": Row(net, 224, batch, dtype="bfloat16")
    for net in "DE"
    for batch in (128, 256)
}
SCALE = 256  # Q of dense evaluations
EVALUATIONS = {  # images, networks as for steps
    "narrow A, dense, 100 images": (100, Row("A", 224, 64, trains=False, width=1 / 8, fc_width=512)),
    "narrow A, dense, 1,000 images": (1000, Row("A", 224, 64, trains=False, width=1 / 8, fc_width=512)),
    "D, dense, 30 images": (30, Row("D", 224, 8, trains=False)),
}
CHANNELS = (64, 128, 256, 512, 512)  # of LPIPS's layers
PEERS = ("eager", "channels_last", "compiled")  # compiled: torch.compile, channels last

flags = cli.Flags()
_ROWS = flags.DEFINE_string("rows", "", "Part of the names of the rows to time; default: all.")
_ROUNDS = flags.DEFINE_integer("rounds", 7, "Of taking turns.", 1)
_GPU = flags.DEFINE_bool("gpu", False, "The rows of a GPU in place of a CPU's.")
_TORCH = flags.DEFINE_list("torch", ["eager", "channels_last"], f"Which of {', '.join(PEERS)}.")


def ours(row):
    """Returns the function of no arguments that takes a step."""
    import jax
    import jax.numpy as jnp

    from vgg_jax import features
    from vgg_jax.config import default_config, recipe_of
    from vgg_jax.data.colors import IMAGENET_STATISTICS
    from vgg_jax.runtime.compilation import compile_step
    from vgg_jax.runtime.sharding import make_mesh
    from vgg_jax.training.augment import normalize
    from vgg_jax.training.state import init_state, make_model, state_shapes
    from vgg_jax.training.steps import compile_steps

    config, mesh = default_config(), make_mesh()
    config.model.configuration, config.model.num_classes = row.configuration, row.num_classes
    config.model.width_multiplier, config.model.fc_width = row.width, row.fc_width
    config.image.crop, config.batch_size, config.model.dtype = row.crop, row.batch_size, row.dtype
    shapes = state_shapes(recipe_of(config), mesh)
    state, (images, labels) = init_state(recipe_of(config), shapes), data(row)
    if row.trains:
        step = compile_steps(recipe_of(config), IMAGENET_STATISTICS, mesh, shapes).train
        batch, rate = {"image": jax.device_put(images), "label": jax.device_put(labels)}, np.float32(1e-3)

        def train():
            nonlocal state
            state, metrics = step(state, batch, rate)
            jax.block_until_ready(metrics["loss"])

        return train
    model, variables, images = make_model(recipe_of(config)), state.variables, jax.device_put(images)
    if row == ROWS[LPIPS]:
        net = features.Backbone(variables["params"], jnp.zeros(3), model, recipe_of(config).model.network)
        heads = tuple(map(jnp.ones, CHANNELS))
        compiled = compile_step(features.lpips, images, images[:, ::-1], net, heads)
        return lambda: jax.block_until_ready(compiled(images, images[:, ::-1], net, heads))

    def logits(variables, images):
        return model.apply(variables, normalize(images, IMAGENET_STATISTICS))[0]

    compiled = compile_step(logits, variables, images)
    return lambda: jax.block_until_ready(compiled(variables, images))


def torchs(row, kind):
    """Returns the function of no arguments that takes torch's step."""
    import torch

    from vgg_jax.models import NetworkSpec

    torch.set_num_threads(multiprocessing.cpu_count())
    net = torch_network(torch, NetworkSpec(row.configuration).layers(row.crop), row)
    memory_format = torch.contiguous_format if kind == "eager" else torch.channels_last
    device = "cuda" if torch.cuda.is_available() else "cpu"
    net = net.to(device, memory_format=memory_format).train(row.trains)
    if kind == "compiled":
        net.compile()
    images, labels = data(row)
    images = (
        torch.tensor(images).permute(0, 3, 1, 2).float().sub(120).contiguous(memory_format=memory_format).to(device)
    )
    if row == ROWS[LPIPS]:
        heads = [torch.ones(channels) for channels in CHANNELS]
        return torch.inference_mode()(lambda: torch_lpips(net, heads, images, images.flip(2)))
    if not row.trains:
        return torch.inference_mode()(lambda: net(images))
    labels = torch.tensor(labels).long().to(device)
    optimizer = torch.optim.SGD(net.parameters(), 1e-3, momentum=0.9, weight_decay=5e-4)

    def train():
        optimizer.zero_grad()
        with torch.autocast(device, torch.bfloat16, enabled=row.dtype == "bfloat16"):
            loss = torch.nn.functional.cross_entropy(net(images), labels)
        loss.backward()
        optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()

    return train


def our_evaluation(row, count):
    """Returns the function of no arguments that evaluates so many images."""
    from benchmarks.evaluation import random_model
    from vgg_jax.data.sources import expanded, prepared_data
    from vgg_jax.data.splits import open_split
    from vgg_jax.evaluation.passes import EvalPass
    from vgg_jax.evaluation.plan import devices_of, plan_pass
    from vgg_jax.evaluation.run import CompiledSteps, EvalStats, run_jobs
    from vgg_jax.evaluation.split import Split
    from vgg_jax.runtime.console import Console
    from vgg_jax.runtime.sharding import make_mesh

    data = prepared_data("folder", expanded("~/tensorflow_datasets"), str(pictures()))
    records = open_split(data, f"val[:{count}]", "split")
    trained, stats = random_model(row.configuration, row.width, row.crop, make_mesh()), EvalStats()

    def evaluate():
        sizes = Split("", "val", records, [], Console(quiet=True)).index(os.cpu_count()).sizes
        compiled, dense = CompiledSteps(trained, stats), EvalPass("dense", SCALE, row.crop, True)
        devices = devices_of(trained.mesh)
        jobs = plan_pass(dense, compiled.network, sizes, np.arange(len(records)), row.batch_size, devices)
        for _ in run_jobs(compiled, dense, jobs, records, os.cpu_count(), stats):
            pass

    return evaluate


def torchs_evaluation(row, count):
    """Returns the function of no arguments that evaluates so many images, one after another."""
    import torch
    from PIL import Image

    from vgg_jax.data.crops import rescaled_size
    from vgg_jax.models import NetworkSpec

    torch.set_num_threads(multiprocessing.cpu_count())
    net = torch_network(torch, NetworkSpec(row.configuration).layers(row.crop), row, is_dense=True).eval()
    encoded = [file.read_bytes() for file in sorted((pictures() / "val").rglob("*.jpg"))[:count]]

    def evaluate():
        with torch.inference_mode():
            for content in encoded:
                image = Image.open(io.BytesIO(content)).convert("RGB")
                image = np.asarray(image.resize(rescaled_size(*image.size, SCALE), Image.Resampling.BILINEAR))
                x = torch.tensor(image).permute(2, 0, 1).float().sub(120)
                net(torch.stack([x, x.flip(-1)])).mean((2, 3)).softmax(1).mean(0).numpy()

    return evaluate


def pictures():
    data = Path(os.environ.get("VGG_JAX_PICTURES", Path(__file__).parents[2] / "shared" / "data"))
    return data / "caltech101-30"


def data(row):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (row.batch_size, row.crop, row.crop, 3)).astype(np.uint8)
    return images, rng.integers(0, row.num_classes, row.batch_size).astype(np.int32)


def evaluator(row, count, kind, pipe):
    """Evaluates once, and says how long it took and how much memory."""
    evaluate = our_evaluation(row, count) if kind == "ours" else torchs_evaluation(row, count)
    began = time.monotonic()
    evaluate()
    pipe.send((time.monotonic() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024))


def measure_evaluation(row, count, rounds):
    """Returns seconds by contestant, one for each round, and peak memory, MiB."""
    context = multiprocessing.get_context("spawn")
    times, memory = {"ours": [], "eager": []}, {}
    for _ in range(rounds):
        for kind, seconds_each in times.items():
            pipe, child = context.Pipe()
            process = context.Process(target=evaluator, args=(row, count, kind, child), daemon=True)
            process.start()
            seconds, memory[kind] = pipe.recv()
            seconds_each.append(seconds)
            process.join()
    return times, memory


def contestant(row, kind, pipe):
    """Makes a step, says how long its first one took, and then takes as many as it is told, again and again."""
    began = time.monotonic()
    step = ours(row) if kind == "ours" else torchs(row, kind)
    step()
    pipe.send(time.monotonic() - began)
    while count := pipe.recv():
        began = time.monotonic()
        for _ in range(count):
            step()
        pipe.send((time.monotonic() - began) / count)
    pipe.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def measure(row, kinds, rounds):
    """Returns seconds a step by contestant, one for each round, and peak memory, MiB."""
    context = multiprocessing.get_context("spawn")
    pipes, processes = {}, []
    for kind in kinds:
        pipes[kind], child = context.Pipe()
        processes.append(context.Process(target=contestant, args=(row, kind, child), daemon=True))
        processes[-1].start()
        pipes[kind].recv()  # one after another, so that compiling disturbs nobody

    def seconds(kind, count):
        pipes[kind].send(count)
        return pipes[kind].recv()

    once = seconds("ours", 1)
    count = max(1, round(2 / once))
    times = {kind: [] for kind in kinds}
    for _ in range(rounds):
        for kind in kinds:
            times[kind].append(seconds(kind, count))
    memory = {kind: seconds(kind, 0) for kind in kinds}
    return times, memory


def main(arguments):
    if arguments or set(_TORCH.value) - set(PEERS):
        cli.fail(f"--torch={','.join(_TORCH.value)}: there are {', '.join(PEERS)}; nothing else is expected.")
    kinds = ("ours", *_TORCH.value)
    print(f"a matrix product of 4,096 x 4,096: {_in_own_process(matrix_product) / 1e9:,.0f} GFLOP/s\n")
    print(
        "| step | ours, s | GFLOP/s | " + " | ".join(f"torch {kind}, s | ratio" for kind in kinds[1:]) + " | peak MiB |"
    )
    print("| --- | --- | --- |" + " --- | --- |" * len(_TORCH.value) + " --- |")
    for name, row in (GPU_ROWS if _GPU.value else ROWS).items():
        if _ROWS.value in name:
            times, memory = measure(row, kinds, _ROUNDS.value)
            rate = f"{_in_own_process(flops, row) / statistics.median(times['ours']) / 1e9:,.0f}"
            print_row(name, "" if name == LPIPS else rate, times, memory, kinds)
    for name, (count, row) in ({} if _GPU.value else EVALUATIONS).items():
        if _ROWS.value in name:
            print_row(name, "", *measure_evaluation(row, count, max(1, _ROUNDS.value // 2)), kinds)


def _in_own_process(function, *arguments):
    """Returns what it returns; this process keeps no device's memory."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def matrix_product():
    """Returns the FLOP/s of a large one, the best of five, by torch."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    x, seconds = torch.ones(4096, 4096, device=device, dtype=torch.bfloat16 if device == "cuda" else None), []
    for _ in range(5):
        began = time.monotonic()
        (x @ x)[0, 0].item()
        seconds.append(time.monotonic() - began)
    return 2 * 4096**3 / min(seconds)


def flops(row):
    """Returns those of a step's convolutions and FC layers; a gradient is two more products of each."""
    from vgg_jax.models import make_network
    from vgg_jax.models.summary import layer_rows, summary

    network = make_network(
        row.configuration, row.crop, num_classes=row.num_classes, width_multiplier=row.width, fc_width=row.fc_width
    )
    return (6 if row.trains else 2) * row.batch_size * summary(layer_rows(network))["macs"]


def print_row(name, rate, times, memory, kinds):
    cells = [f"{statistics.median(times['ours']):.4f}", rate]
    for kind in kinds[1:]:
        if kind not in times:
            cells += ["", ""]
            continue
        ratios = [theirs / own for theirs, own in zip(times[kind], times["ours"], strict=True)]
        cells += [f"{statistics.median(times[kind]):.4f}", f"{statistics.median(ratios):.2f}"]
    peaks = ", ".join(f"{memory[kind]:,.0f}" for kind in kinds if kind in memory)
    print(f"| {name} | " + " | ".join(cells) + f" | {peaks} |", flush=True)


if __name__ == "__main__":
    cli.run(main, flags, outlives_stdout=True)
