"""`vgg-jax describe`: figures that others publish, and a sentence for every mistake."""

import json
import re

import numpy as np
import pytest
from PIL import Image

from tests.command import help_of, run_command
from vgg_jax.models import NetworkSpec, make_network
from vgg_jax.models.summary import layer_rows, summary


def run(*arguments):
    status, out, err = run_command("describe", *arguments)
    assert "Traceback" not in err
    return status, out, err


# 10^9 multiply-adds: torchvision's documentation of its models, and Paper Table 2's networks. Field of view: Araujo
# et al. 2019 (vgg_16 212, resnet_v1_50 483).
@pytest.mark.parametrize(
    ("configuration", "description", "giga", "field"),
    [
        ("A", {}, 7.61, None),
        ("D", {"batch_norm": True}, 15.47, 212),
        ("E", {}, 19.63, None),
        ("ResNet-18", {}, 1.81, None),
        ("ResNet-34", {}, 3.66, None),
        ("ResNet-50", {}, 4.09, None),
        ("ResNet-50", {"bottleneck_stride": "1x1"}, 3.86, 483),
        ("ResNet-101", {}, 7.80, None),
        ("ResNet-152", {}, 11.51, None),
    ],
)
def test_figures_are_those_that_others_publish(configuration, description, giga, field):
    rows = layer_rows(make_network(NetworkSpec(configuration, **description)))
    figures = summary(rows)
    assert figures["macs"] / 1e9 == pytest.approx(giga, abs=0.006)
    assert field is None or figures["receptive_field"] == field
    depth = {"A": 11, "D": 16, "E": 19}.get(configuration) or int(configuration.split("-")[1])
    assert figures["weight_layers"] == depth


@pytest.mark.parametrize("configuration", ["ResNet-18", "ResNet-50"])
def test_the_pooling_of_a_resnet_is_not_a_projection(configuration):
    rows = layer_rows(make_network(configuration))
    assert {row.kind for row in rows if row.is_projection} == {"conv"}
    assert "pool1 3x3/2" in summary(rows)["shrinks_by"]


def test_a_sum_needs_both_branches_in_memory():
    held = {name: summary(layer_rows(make_network(name)))["activation_bytes_forward"] for name in ("ResNet-50", "D")}
    # At the projection's normalisation: its input and output, and the other branch. In D conv1_1 and relu1_1.
    assert held == {"ResNet-50": 3 * 4 * 56 * 56 * 256, "D": 2 * 4 * 224 * 224 * 64}


def test_networks_side_by_side_and_one_layer_by_layer():
    status, out, _ = run("D", "D-BN-GAP", "ResNet-50")
    assert status == 0
    assert re.search(r"138,357,544 +15,236,136 +25,557,032", out)
    assert re.search(r"7 x 7 x 512 +7 x 7 x 512 +7 x 7 x 2048", out)
    assert "three 3x3 see 7x7 with 27 C^2 weights; one 7x7 has 49 C^2 (81% more than the stack)" in out
    status, out, _ = run("AlexNet", "ResNet-20")  # of images of 227 and 32 pixels
    assert re.search(r"60,965,224 +", out)
    assert re.search(r"6 x 6 x 256 +8 x 8 x 64", out)
    status, out, _ = run("D")
    assert re.search(r"conv1_1 +3x3/1 +224 x 224 x 64", out)
    assert re.search(r"fc6 +7x7/1 +1 x 1 x 4096 +102,764,544", out)


def test_tables_for_a_page_and_for_a_paper():
    status, out, _ = run("A", "D-BN", "--format=markdown")
    assert status == 0
    lines = out.splitlines()
    assert lines[:2] == ["|  | A | D-BN |", "| --- | --- | --- |"]
    assert {line.count("|") for line in lines} == {4}
    status, out, _ = run("D", "--format=latex")
    assert status == 0
    assert (out.count(r"\begin{tabular}"), out.count(r"\end{tabular}")) == (2, 2)  # its layers, its figures
    assert r"conv1\_1 & 3x3/1 & 224 x 224 x 64 & 1,792 &" in out


def test_json_and_a_drawing(tmp_path):
    path = tmp_path / "network.png"
    status, out, _ = run("ResNet-20", "--crop=32", "--num_classes=10", "--json", f"--draw={path}")
    figures = json.loads(out)["ResNet-20"]
    assert (status, figures["parameters"]) == (0, 269_722)
    assert sum(layer["parameters"] for layer in figures["layers"]) == 269_722
    pixels = np.asarray(Image.open(path))
    colors = {tuple(color) for color in pixels.reshape(-1, 3)}
    assert {(0x7A, 0xA6, 0xDA), (0xB5, 0x47, 0x5B), (0x5F, 0x9E, 0x6E)} <= colors  # convolutions, shortcuts, the head


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((), "say which networks, as in: vgg-jax describe A D ResNet-50"),
        (("ResNet-51",), "'ResNet-51' is no network. Did you mean 'ResNet-56'?"),
        (("ResNet-50-BN",), "'ResNet-50-BN' is no network."),
        (("D", f"--crop={10**26}"), "is not an integer in the range [8, 16384]"),
        (("D", f"--num_classes={10**26}"), "is not an integer in the range [2, 1048576]"),
        (("D", "--crop=31"), "--crop=31: a crop of 31 pixels is too small: nothing would be left of it at pool5 of D."),
        (("A", "D", "--draw=x.png"), "--draw=x.png is for one network, and 2 are named."),
        (("A", "--json", "--format=latex"), "--json and --format=latex both choose the output; give one of them."),
        (("A", "--draw=/dev/null/x.png"), "cannot write to /dev/null/x.png"),
    ],
)
def test_a_mistake_gets_a_sentence(arguments, sentence):
    status, _, err = run(*arguments)
    assert status == 2
    assert sentence in " ".join(err.split())
    assert len(err.splitlines()) == 1


def test_help_answers_without_loading_jax():
    assert "--draw" in help_of("describe")
