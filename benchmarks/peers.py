"""Time of steps here and in torch, on this machine; Markdown on standard output.

    python -m benchmarks.peers [--rows=ResNet-20] [--rounds=7] [--torch=eager,channels_last]

Every contestant is a process of its own that holds its compiled step. They take turns, `--rounds` times, each for as many steps as
fill about two seconds; a ratio is the median over the rounds of torch's time over ours, so above 1 we are faster. A training step
is forward, backward and update (momentum, L2); ours is the step as shipped where nothing is logged, with augmentation, loss and
errors. torch's networks
are built from the same descriptions. Run it on a machine that does nothing else.
"""

import multiprocessing
import resource
import statistics
import time
from typing import NamedTuple

import numpy as np

from vgg_jax import cli


class Row(NamedTuple):
    """What is timed."""

    configuration: str
    crop: int
    batch_size: int
    trains: bool = True
    width: float = 1.0
    fc_width: int = 4096
    num_classes: int = 1000


ROWS = {
    "A, training": Row("A", 224, 8),
    "D, training": Row("D", 224, 8),
    "quickstart, training": Row("A", 48, 32, width=0.25, fc_width=256, num_classes=10),
    "ResNet-20, training": Row("ResNet-20", 32, 128, num_classes=10),
    "ResNet-50, training": Row("ResNet-50", 224, 8),
    "D, inference of 1": Row("D", 224, 1, trains=False),
    "D, inference of 8": Row("D", 224, 8, trains=False),
}
PEERS = ("eager", "channels_last", "compiled")  # compiled: torch.compile, channels last

flags = cli.Flags()
_ROWS = flags.DEFINE_string("rows", "", "Part of the names of the rows to time; default: all.")
_ROUNDS = flags.DEFINE_integer("rounds", 7, "Of taking turns.", 1)
_TORCH = flags.DEFINE_list("torch", ["eager", "channels_last"], f"Which of {', '.join(PEERS)}.")


def ours(row):
    """Returns the function of no arguments that takes a step."""
    import jax

    from vgg_jax.augment import IMAGENET_STATISTICS, normalize
    from vgg_jax.compilation import compile_step
    from vgg_jax.config import default_config
    from vgg_jax.sharding import make_mesh
    from vgg_jax.state import init_state, make_model, state_shapes
    from vgg_jax.steps import compile_steps

    config, mesh = default_config(), make_mesh()
    config.model.configuration, config.model.num_classes = row.configuration, row.num_classes
    config.model.width_multiplier, config.model.fc_width = row.width, row.fc_width
    config.image.crop, config.batch_size = row.crop, row.batch_size
    shapes = state_shapes(config, mesh)
    state, (images, labels) = init_state(config, shapes), data(row)
    if row.trains:
        step = compile_steps(config, IMAGENET_STATISTICS, mesh, shapes).train
        batch, rate = {"image": jax.device_put(images), "label": jax.device_put(labels)}, np.float32(1e-3)

        def train():
            nonlocal state
            state, metrics = step(state, batch, rate)
            jax.block_until_ready(metrics["loss"])

        return train
    model, variables, images = make_model(config), state.variables, jax.device_put(images)

    def logits(variables, images):
        return model.apply(variables, normalize(images, IMAGENET_STATISTICS))[0]

    compiled = compile_step(logits, variables, images)
    return lambda: jax.block_until_ready(compiled(variables, images))


def torchs(row, kind):
    """Returns the function of no arguments that takes torch's step."""
    import torch

    from vgg_jax.models import describe

    torch.set_num_threads(multiprocessing.cpu_count())
    net = torch_network(torch, describe(row.configuration, row.crop), row)
    memory_format = torch.contiguous_format if kind == "eager" else torch.channels_last
    net = net.to(memory_format=memory_format).train(row.trains)
    if kind == "compiled":
        net.compile()
    images, labels = data(row)
    images = torch.tensor(images).permute(0, 3, 1, 2).float().sub(120).contiguous(memory_format=memory_format)
    if not row.trains:
        with torch.inference_mode():
            return lambda: net(images)
    labels = torch.tensor(labels).long()
    optimizer = torch.optim.SGD(net.parameters(), 1e-3, momentum=0.9, weight_decay=5e-4)

    def train():
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(net(images), labels).backward()
        optimizer.step()

    return train


def torch_network(torch, layers, row):
    """Returns the torch module of a described network."""
    from vgg_jax.models.description import with_inputs

    class Described(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.parts = torch.nn.ModuleDict()
            channels = {"images": 3}
            for layer, (first, *_) in with_inputs(layers):
                c = channels[first]
                channels[layer.name] = outputs = layer.scaled_channels(row.width) if layer.channels else c
                if layer.kind == "conv":
                    part = torch.nn.Conv2d(
                        c, outputs, layer.kernel, layer.stride, layer.padding, groups=layer.groups, bias=layer.has_bias
                    )
                elif layer.kind == "batch_norm":
                    part = torch.nn.BatchNorm2d(c)
                elif layer.kind == "pool":
                    part = torch.nn.MaxPool2d(layer.kernel, layer.stride, layer.padding, ceil_mode=layer.is_ceil)
                elif layer.kind in ("fc", "head"):
                    channels[layer.name] = row.num_classes if layer.kind == "head" else row.fc_width
                    part = torch.nn.Linear(c * layer.kernel**2, channels[layer.name])
                else:
                    continue
                self.parts[layer.name] = part

        def forward(self, images):
            outputs = {"images": images}
            for layer, (first, *others) in with_inputs(layers):
                x = outputs[first]
                if layer.name in self.parts:
                    x = self.parts[layer.name](x.flatten(1) if layer.is_fully_connected else x)
                elif layer.kind == "relu":
                    x = torch.relu(x)
                elif layer.kind == "mean":
                    x = x.mean((2, 3))
                elif layer.kind == "dropout":
                    x = torch.nn.functional.dropout(x, training=self.training)
                elif layer.kind == "add":
                    x = x + outputs[others[0]]
                elif layer.kind == "zero_pad":
                    added = layer.scaled_channels(row.width) - x.shape[1]
                    x = torch.nn.functional.pad(x[:, :, :: layer.stride, :: layer.stride], (0, 0, 0, 0, 0, added))
                outputs[layer.name] = x
            return x

    return Described()


def data(row):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (row.batch_size, row.crop, row.crop, 3)).astype(np.uint8)
    return images, rng.integers(0, row.num_classes, row.batch_size).astype(np.int32)


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
    print("| step | ours, s | " + " | ".join(f"torch {kind}, s | ratio" for kind in _TORCH.value) + " | peak MiB |")
    print("| --- | --- |" + " --- | --- |" * len(_TORCH.value) + " --- |")
    for name, row in ROWS.items():
        if _ROWS.value not in name:
            continue
        times, memory = measure(row, kinds, _ROUNDS.value)
        cells = [f"{statistics.median(times['ours']):.4f}"]
        for kind in _TORCH.value:
            ratios = [theirs / own for theirs, own in zip(times[kind], times["ours"], strict=True)]
            cells += [f"{statistics.median(times[kind]):.4f}", f"{statistics.median(ratios):.2f}"]
        peaks = ", ".join(f"{memory[kind]:,.0f}" for kind in kinds)
        print(f"| {name}, batch {row.batch_size} | " + " | ".join(cells) + f" | {peaks} |", flush=True)


if __name__ == "__main__":
    cli.run(main, flags, outlives_stdout=True)
