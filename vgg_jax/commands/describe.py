"""`vgg-jax describe NETWORK...`: what networks are made of, side by side, or one of them layer by layer.

    vgg-jax describe A D E D-BN D-GAP ResNet-50
    vgg-jax describe ResNet-18 --draw=resnet18.png
    vgg-jax describe ResNet-20 --crop=32 --num_classes=10 --json

A VGG may have -BN (batch normalisation) and -GAP (global average pooling in place of its FC layers) behind its name. Nothing is
computed and nothing is downloaded.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vgg_jax.commands import cli

if TYPE_CHECKING:
    from vgg_jax.models.summary import LayerRow

flags = cli.Flags()
_CROP = flags.DEFINE_integer(
    "crop", None, "Height and width of the image, pixels. Default: what each network was published for.",
    lower_bound=8, upper_bound=2**14
)  # fmt: skip
_NUM_CLASSES = flags.DEFINE_integer("num_classes", 1000, "Classes.", lower_bound=2, upper_bound=2**20)
_JSON = flags.DEFINE_bool("json", False, "Print JSON.")
_DRAW = flags.DEFINE_string("draw", "", "A PNG to draw one network into.")

_STACKS = """Stacks of convolutions with C channels (Paper 2.3):
  two 3x3 see 5x5 with {two} C^2 weights; one 5x5 has {five} C^2 ({less:.0%} fewer in the stack)
  three 3x3 see 7x7 with {three} C^2 weights; one 7x7 has {seven} C^2 ({more:.0%} more than the stack)"""


def main(arguments: list[str]) -> None:
    if not arguments:
        cli.fail("say which networks, as in: vgg-jax describe A D ResNet-50")
    if _DRAW.value and len(arguments) > 1:
        cli.fail(f"--draw={_DRAW.value} is for one network, and {len(arguments)} are named.")
    os.environ["JAX_PLATFORMS"] = "cpu"  # nothing is computed
    from vgg_jax.models.summary import layer_rows, summary
    from vgg_jax.runtime.console import aligned  # here, so that --help answers at once

    rows = {name: layer_rows(_network(name)) for name in arguments}
    figures = {name: summary(its) for name, its in rows.items()}
    if _DRAW.value:
        from vgg_jax.reporting.network_drawing import draw
        from vgg_jax.runtime.files import write_atomically

        path = Path(_DRAW.value).expanduser()
        with write_atomically(path, "name another file with --draw") as unfinished:
            draw(arguments[0], rows[arguments[0]]).save(unfinished, "PNG")
    if _JSON.value:
        print(
            json.dumps(
                {name: figures[name] | {"layers": [row._asdict() for row in rows[name]]} for name in rows}, indent=1
            )
        )
    elif len(arguments) == 1:
        print(aligned(_layers(rows[arguments[0]]), range(3, 7)), "", aligned(_columns(figures)), sep="\n")
    else:
        stacks = {"two": 2 * 9, "five": 25, "three": 3 * 9, "seven": 49, "less": 1 - 18 / 25, "more": 49 / 27 - 1}
        print(aligned(_columns(figures)), "", _STACKS.format(**stacks), sep="\n")


def _network(name: str) -> Any:
    from vgg_jax.models import CONFIGURATIONS, is_vgg, make_network
    from vgg_jax.runtime.exceptions import UserError, did_you_mean

    configuration, description = name, dict[str, Any]()
    if name.endswith("-GAP"):
        configuration, description = name.removesuffix("-GAP"), {"head": "gap"}
    if configuration.endswith("-BN"):
        configuration, description = configuration.removesuffix("-BN"), description | {"batch_norm": True}
    if configuration not in CONFIGURATIONS or (description and not is_vgg(configuration)):
        raise UserError(
            f"{name!r} is no network.{did_you_mean(configuration, CONFIGURATIONS)} There are {', '.join(CONFIGURATIONS)}; "
            "a VGG may have -BN and -GAP behind its name."
        )
    try:
        return make_network(configuration, _CROP.value, description, num_classes=_NUM_CLASSES.value)
    except ValueError as error:
        raise UserError(f"--crop={_CROP.value}: {error} of {name}.") from error


def _layers(rows: list[LayerRow]) -> Sequence[tuple[str, ...]]:
    head = ("layer", "kernel", "output", "parameters", "10^6 multiply-adds", "sees", "activations, KiB")
    return [head] + [
        (
            row.name,
            f"{row.kernel}x{row.kernel}/{row.stride}" if row.kind in ("conv", "pool", "fc", "head") else "",
            " x ".join(map(str, row.output)),
            f"{row.parameters:,}" if row.parameters else "",
            f"{row.macs / 1e6:,.1f}" if row.macs else "",
            f"{row.receptive_field}",
            f"{row.activation_bytes / 1024:,.0f}",
        )
        for row in rows
    ]


def _columns(figures: dict[str, dict[str, Any]]) -> list[tuple[str, ...]]:
    def line(title: str, text: Any) -> tuple[str, ...]:
        return (title, *(text(its) for its in figures.values()))

    return [
        ("", *figures),
        line("weight layers", lambda f: f"{f['weight_layers']}"),
        line("parameters", lambda f: f"{f['parameters']:,}"),
        line("parameters, MiB", lambda f: f"{f['parameter_bytes'] / 2**20:,.1f}"),
        line("10^9 multiply-adds", lambda f: f"{f['macs'] / 1e9:.2f}"),
        line("field of view of the last map, pixels", lambda f: f"{f['receptive_field']}"),
        line("last map", lambda f: " x ".join(map(str, f["last_map"]))),
        line("activations, forward, MiB", lambda f: f"{f['activation_bytes_forward'] / 2**20:.1f}"),
        line("activations, training, MiB", lambda f: f"{f['activation_bytes_training'] / 2**20:.1f}"),
        line("convolution kernels", lambda f: ", ".join(f"{k}x{k}" for k in f["kernels"])),
        line("maps shrink by", lambda f: _shrinking(f["shrinks_by"])),
        line("classifier", lambda f: f["classifier"]),
    ]


def _shrinking(steps: list[str]) -> str:
    """Returns "5 poolings", "4 strided convolutions, 1 pooling"."""
    kinds = {"pooling": sum(step.startswith("pool") for step in steps)}
    kinds["strided convolution"] = len(steps) - kinds["pooling"]
    return ", ".join(f"{count} {kind}{'s' * (count > 1)}" for kind, count in kinds.items() if count)


if __name__ == "__main__":
    cli.run(main, flags)
