"""`vgg-jax describe NETWORK... [flags]`: what networks are made of, side by side, or one of them layer by layer.

    vgg-jax describe A D E D-BN D-GAP ResNet-50
    vgg-jax describe vgg16_bn resnet50 'ResNet-50 (shortcut C)'
    vgg-jax describe ResNet-18 --draw=resnet18.png
    vgg-jax describe ResNet-20 --crop=32 --num_classes=10 --json
    vgg-jax describe A D E --format=latex

A VGG may have -BN (batch normalisation) and -GAP (global average pooling in place of its FC layers) behind its name.
Names of other libraries, such as vgg16_bn and resnet50, are known too. Nothing is computed and nothing is downloaded.
"""

from __future__ import annotations

from pathlib import Path

from vgg_jax.commands import cli

flags = cli.Flags()
flags.DEFINE_integer(
    "crop",
    None,
    "Height and width of the image, pixels. Default: the crop that each network was published for.",
    lower_bound=8,
    upper_bound=2**14,
)
flags.DEFINE_integer("num_classes", 1000, "Number of classes that the network tells apart.", 2, 2**20)
_JSON = flags.DEFINE_bool("json", False, "Print JSON in place of a table.")
_FORMAT = cli.define_format(flags)
_DRAW = flags.DEFINE_string("draw", "", "A PNG to draw one network into.")


def main(arguments: list[str]) -> None:
    if not arguments:
        cli.fail("say which networks, as in: vgg-jax describe A D ResNet-50")
    if _DRAW.value and len(arguments) > 1:
        cli.fail(f"--draw={_DRAW.value} is for one network, and {len(arguments)} are named.")
    if _JSON.value and _FORMAT.value != "plain":
        cli.fail(f"--json and --format={_FORMAT.value} both choose the output; give one of them.")
    cli.use_cpu()
    from vgg_jax.models import comparison

    rows = comparison.compare(flags.request(comparison.ComparisonRequest, networks=tuple(arguments)))
    if _DRAW.value:
        from vgg_jax.models.drawing import draw_network
        from vgg_jax.runtime.files import write_atomically

        path = Path(_DRAW.value).expanduser()
        with write_atomically(path, "name another file with --draw") as unfinished:
            draw_network(arguments[0], rows[arguments[0]]).save(unfinished, "PNG")
    print(comparison.as_json(rows) if _JSON.value else comparison.as_text(rows, _FORMAT.value))
