"""Networks side by side, or one of them layer by layer, as text and as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from vgg_jax.models import Network, make_network
from vgg_jax.models.summary import LayerRow, layer_rows, summary
from vgg_jax.runtime.exceptions import UserError
from vgg_jax.runtime.text_tables import table_text

_STACKS = """Stacks of convolutions with C channels (Paper 2.3):
  two 3x3 see 5x5 with {two} C^2 weights; one 5x5 has {five} C^2 ({less:.0%} fewer in the stack)
  three 3x3 see 7x7 with {three} C^2 weights; one 7x7 has {seven} C^2 ({more:.0%} more than the stack)"""


class ComparisonRequest(NamedTuple):
    """Networks to compare."""

    networks: tuple[str, ...]  # names that `NetworkSpec.parse` knows
    crop: int | None = None  # pixels; None: what each network was published for
    num_classes: int = 1000


def compare(request: ComparisonRequest) -> dict[str, list[LayerRow]]:
    """Returns the layers of each network by its name.

    Raises:
      UserError: an unknown network, or a crop that it cannot take.
    """
    return {name: layer_rows(_network(name, request.crop, request.num_classes)) for name in request.networks}


def as_json(rows: dict[str, list[LayerRow]]) -> str:
    """Returns figures and layers of each network as JSON."""
    return json.dumps(
        {name: summary(layers) | {"layers": [row._asdict() for row in layers]} for name, layers in rows.items()},
        indent=1,
    )


def as_text(rows: dict[str, list[LayerRow]], table_format: str = "plain") -> str:
    """Returns tables of one network's layers and figures, or of several networks' figures.

    Plain text of several ends with the figures of Paper 2.3.
    """
    columns = _columns({name: summary(layers) for name, layers in rows.items()})
    figures = table_text(columns, table_format=table_format)
    if len(rows) == 1:
        (layers,) = rows.values()
        return f"{table_text(_layers(layers), range(3, 7), table_format)}\n\n{figures}"
    if table_format != "plain":
        return figures
    stacks = {"two": 2 * 9, "five": 25, "three": 3 * 9, "seven": 49, "less": 1 - 18 / 25, "more": 49 / 27 - 1}
    return f"{figures}\n\n{_STACKS.format(**stacks)}"


def _network(name: str, crop: int | None, num_classes: int) -> Network:
    try:
        return make_network(name, crop, num_classes=num_classes)
    except ValueError as error:
        raise UserError(f"--crop={crop}: {error} of {name}.") from error


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
        return (title, *(text(summary) for summary in figures.values()))

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
