"""Figures from probabilities: errors, averages, the table, the challenge's form, the paper's own."""

import importlib
import re

import jax.numpy as jnp
import numpy as np
import pytest

from vgg_jax.config import default_config, paper_config, recipe_of
from vgg_jax.evaluation import paper, results
from vgg_jax.evaluation.passes import EvalPass, eval_passes
from vgg_jax.evaluation.passes import test_scales as scales_of
from vgg_jax.runtime.exceptions import UserError
from vgg_jax.training.steps import topk_errors as errors_in_training


def config_of(file):
    name, _, argument = file.partition(":")
    return importlib.import_module(f"configs.{name}").get_config(*filter(None, [argument]))


def random_posteriors(n, k, seed=0):
    values = np.random.default_rng(seed).random((n, k)).round(1)  # rounded, so that there are ties
    return (values / values.sum(1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("classes", [3, 5, 50])
def test_errors_are_those_of_training(classes):
    probs = random_posteriors(200, classes)
    labels = np.random.default_rng(1).integers(0, classes, 200)
    expected = errors_in_training(jnp.asarray(probs), jnp.asarray(labels))
    none = np.zeros(200, bool)
    assert results.topk_errors(probs, labels, none) == pytest.approx(
        (float(expected["top1_error"].mean()), float(expected["top5_error"].mean()))
    )
    right = results.top5_classes(probs)[:, 0]
    assert results.topk_errors(probs, right, none) == (0, 0)
    assert results.topk_errors(probs, right, np.arange(200) < 20) == pytest.approx((0.1, 0.1))  # refused is wrong


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_scores_that_are_not_finite_are_wrong_for_every_class(value):
    scores = np.full((7, 7), 0.1, np.float32)
    scores[np.arange(7), np.arange(7)[::-1]] = value
    labels = np.arange(7)
    assert results.topk_errors(scores, labels, np.zeros(7, bool)) == (1, 1)
    errors = errors_in_training(jnp.asarray(scores), jnp.asarray(labels))
    assert [float(errors[name].min()) for name in ("top1_error", "top5_error")] == [1, 1]


def test_the_mean_does_not_depend_on_the_order():
    parts = [random_posteriors(50, 9, seed) for seed in range(5)]
    forth, back = results.average(parts), results.average(parts[::-1])
    np.testing.assert_allclose(forth, back, rtol=1e-15)
    np.testing.assert_allclose(forth.sum(1), 1, rtol=1e-6)
    assert np.abs(forth - parts[0]).max() > 0.01


def test_the_submission_is_five_numbers_a_line_in_the_order_of_file_names():
    probs = np.eye(8, dtype=np.float32)[[2, 7, 0]] + np.linspace(0.1, 0, 8, dtype=np.float32)
    keys = np.array(["test_03.JPEG", "test_01.JPEG", "test_02.JPEG"])
    names = [f"n{i}" for i in range(8)]
    text = results.submission(probs, keys, results.class_numbers(names, "", ""))
    assert text == "8 1 2 3 4\n1 2 3 4 5\n3 1 2 4 5\n"
    listing = "".join(f"n{i} words of it\n" for i in reversed(range(8)))
    text = results.submission(probs, keys, results.class_numbers(names, listing, "f"))
    assert text == "1 8 7 6 5\n8 7 6 5 4\n6 8 7 5 4\n"
    lines = "n01440764 tench\nn01443537 goldfish bowl\n"
    for classes in (
        ["n01443537", "n01440764"],
        ["goldfish bowl", "tench"],
        ["n01443537 goldfish bowl", "n01440764 tench"],
    ):
        assert results.class_numbers(classes, lines, "f").tolist() == [2, 1]
    with pytest.raises(UserError, match="--class_numbers=f names a class twice"):
        results.class_numbers(["n01440764"], "n01440764 tench\nn01440764 tench\n", "f")
    with pytest.raises(UserError, match="--class_numbers=f lacks 1 of the model's 9 classes, among them 'other'"):
        results.class_numbers([*names, "other"], listing, "f")


def test_the_table_shows_the_paper_where_it_has_a_figure():
    ours = results.Row("D run", "dense", "256", 50_000, 0.271, 0.0882, paper.TopKError(27.0, 8.8))
    other = ours._replace(models="D other", paper=None)
    with_paper = results.table([ours, other]).splitlines()
    assert with_paper[0].split() == [
        "models",
        "protocol",
        "Q",
        "images",
        "top-1",
        "error",
        "top-5",
        "error",
        "paper",
        "(ImageNet)",
    ]
    assert re.fullmatch(r"D run +dense +256 +50,000 +27.10% +8.82% +27.0/8.8 %", with_paper[1])
    assert "paper" not in results.table([other])
    head, _, row, _ = results.table([ours, other], "markdown").splitlines()
    assert head == "| models | protocol | Q | images | top-1 error | top-5 error | paper (ImageNet) |"
    assert row == "| D run | dense | 256 | 50,000 | 27.10% | 8.82% | 27.0/8.8 % |"
    assert results.table([other], "markdown").splitlines()[-1] == r"| D other | dense | 256 | 50,000 | 27.10% | 8.82% |"


# Paper Tables 3 to 6, written out once more.
TABLE_3 = """A 29.6/10.4 - -
A-LRN 29.7/10.5 - -
B 28.7/9.9 - -
C 28.1/9.4 28.1/9.3 27.3/8.8
D 27.0/8.8 26.8/8.7 25.6/8.1
E 27.3/9.0 26.9/8.7 25.5/8.0"""
TABLE_4 = """A - - -
A-LRN - - -
B 28.2/9.6 - -
C 27.7/9.2 27.8/9.2 26.3/8.2
D 26.6/8.6 26.5/8.6 24.8/7.5
E 26.9/8.7 26.7/8.6 24.8/7.5"""


def published(configuration, scale, protocol, scales, data="imagenet2012/5.1.0", split="validation"):
    figures = paper.published([(configuration, scale)], protocol, scales, data, split)
    return f"{figures.top1}/{figures.top5}" if figures else "-"


@pytest.mark.parametrize(("table", "scales"), [(TABLE_3, "single"), (TABLE_4, "multi")])
def test_dense_figures_are_those_of_tables_3_and_4(table, scales):
    for line in table.splitlines():
        configuration, *cells = line.split()
        for scale, cell in zip(("S=256", "S=384", "jitter"), cells, strict=True):
            assert published(configuration, scale, "dense", scales) == cell


def test_crops_and_fusion_are_those_of_tables_5_and_6():
    parts = ("dense", "multi_crop", "dense+multi_crop")
    assert [published("D", "jitter", part, "multi") for part in parts] == ["24.8/7.5", "24.6/7.5", "24.4/7.2"]
    assert [published("E", "jitter", part, "multi") for part in parts] == ["24.8/7.5", "24.6/7.4", "24.4/7.1"]
    both = [("E", "jitter"), ("D", "jitter")]
    fused = [paper.published(both, part, "multi", "imagenet2012/5.1.0", "validation") for part in parts]
    assert fused == [(24.0, 7.1), (23.9, 7.2), (23.7, 6.8)]


def test_where_anything_differs_the_paper_has_no_figure():
    assert published("D", "S=256", "dense", "single") == "27.0/8.8"
    assert published("D", "S=256", "dense", "") == "-"
    assert published("D", "S=256", "multi_crop", "multi") == "-"
    assert published("D", "S=256", "center_crop", "single") == "-"
    assert published("D", "S=256", "dense", "single", data="imagenet2012_subset/1.0.0") == "-"
    assert published("D", "S=256", "dense", "single", split="train") == "-"
    config = paper_config("D", "S=384")
    assert paper.training_scales(recipe_of(config)) == "S=384"
    assert paper.training_scales(recipe_of(paper_config("D", "S=jitter"))) == "jitter"
    for key, value in (("width_multiplier", 0.5), ("fc_width", 2048), ("num_classes", 10)):
        changed = config.copy_and_resolve_references()
        changed.model[key] = value
        assert paper.training_scales(recipe_of(changed)) is None
    for key, value in (("scale_max", 400), ("area_min", 0.08), ("padding", 30)):
        changed = config.copy_and_resolve_references()
        changed.image[key] = value
        assert paper.training_scales(recipe_of(changed)) is None


# He et al. 2015, Tables 2 to 4 and 6; Krizhevsky et al. 2012, Table 1; Szegedy et al. 2014, Table 3.
@pytest.mark.parametrize(
    ("file", "options", "protocol", "figure"),
    [
        ("resnet50:18", {"model.shortcut": "A"}, "ten_crop", "27.88"),
        ("resnet50:34", {}, "ten_crop", "24.52/7.46"),
        ("resnet50:34", {"model.shortcut": "C"}, "dense", "21.53/5.6"),
        ("resnet50:152", {"model.bottleneck_stride": "1x1"}, "dense", "19.38/4.49"),
        ("resnet50:152", {}, "dense", "-"),  # the stride is not the paper's
        ("resnet_cifar:56", {"model.num_classes": 10}, "center_crop", "6.97"),
        ("resnet_cifar:110", {"model.num_classes": 10}, "center_crop", "6.43"),
        ("resnet_cifar:plain-56", {}, "center_crop", "-"),
        ("alexnet", {}, "ten_crop", "40.7/18.2"),
        ("googlenet", {}, "center_crop", "-/10.07"),
        ("googlenet", {}, "square_crop", "-/7.89"),
        ("vgg16_bn", {}, "ten_crop", "-"),
    ],
)
def test_figures_of_the_other_papers_stand_next_to_their_own_recipes(file, options, protocol, figure):
    config = config_of(file)
    for key, value in options.items():
        config[key.partition(".")[0]][key.partition(".")[2]] = value
    kind = "multi" if protocol in ("dense", "square_crop") else "single"
    data, split = ("cifar10/3.0.2", "test") if "cifar" in file else ("imagenet2012/5.1.0", "validation")
    model = recipe_of(config).model.network.name, paper.training_scales(recipe_of(config))
    figures = paper.published([model], protocol, kind, data, split)
    assert (figures.text("/") if figures else "-") == figure
    assert paper.published([model], protocol, kind, data, "train") is None


def test_several_nets_of_a_kind_fused_have_their_figures():
    """Krizhevsky et al. 2012, Table 1; Szegedy et al. 2014, Table 3."""
    for model, count, protocol, scales, figure in (
        (("GoogLeNet", "area"), 7, "square_crop", "multi", "-/6.67"),
        (("GoogLeNet", "area"), 7, "ten_crop", "single", "-/7.62"),
        (("AlexNet", "S=256"), 5, "ten_crop", "single", "38.1/16.4"),
    ):
        assert paper.published([model] * count, protocol, scales, "imagenet2012", "validation").text("/") == figure
        assert paper.published([model] * (count - 1), protocol, scales, "imagenet2012", "validation") is None


def test_test_scales_are_the_other_papers():
    """He et al. 2015, §3.4: sides 224 to 640, and ten crops at 256; AlexNet at 256; Szegedy et al. §7."""
    config = config_of("resnet50")
    assert scales_of(recipe_of(config), "dense", "multi") == [224, 256, 384, 480, 640]
    assert eval_passes(recipe_of(config), "ten_crop", "") == [EvalPass("ten_crop", 256, 224, True)]
    assert eval_passes(recipe_of(config), "ten_crop", "")[0].images_seen() == 10
    assert eval_passes(recipe_of(config_of("alexnet")), "ten_crop", "") == [EvalPass("ten_crop", 256, 227, True)]
    assert scales_of(recipe_of(config_of("alexnet")), "dense", "multi") == [227, 256, 288]
    assert scales_of(recipe_of(config_of("resnet_cifar")), "multi_crop", "multi") == [32, 37]
    squares = eval_passes(recipe_of(config_of("googlenet")), "square_crop", "")
    assert [item.scale for item in squares] == [256, 288, 320, 352]
    assert sum(item.images_seen() for item in squares) == 144


@pytest.mark.parametrize(
    ("crop", "low", "high", "single", "multi"),
    [
        (224, 256, 256, [256], [224, 256, 288]),
        (224, 384, 384, [384], [352, 384, 416]),
        (224, 256, 512, [384], [256, 384, 512]),
        (64, 73, 73, [73], [64, 73, 82]),  # 256, 32 and 512 times 64 / 224
        (64, 110, 110, [110], [101, 110, 119]),
        (64, 73, 146, [110], [73, 110, 146]),
    ],
)
def test_scales_are_the_papers(crop, low, high, single, multi):
    config = default_config()
    config.image.crop, config.image.scale_min, config.image.scale_max = crop, low, high
    assert scales_of(recipe_of(config), "dense", "single") == single
    assert scales_of(recipe_of(config), "multi_crop", "multi") == multi
    assert scales_of(recipe_of(config), "dense", "300,224") == [224, 300]
    assert [view.scale for view in eval_passes(recipe_of(config), "dense", "")] == single
    assert [view.scale for view in eval_passes(recipe_of(config), "multi_crop", "")] == multi
    both = eval_passes(recipe_of(config), "dense+multi_crop", "")
    assert [(item.method, item.scale) for item in both] == [(p, q) for p in ("dense", "multi_crop") for q in multi]
    assert sum(item.images_seen() for item in both if item.method == "multi_crop") == 150


def test_a_centre_crop_is_taken_where_training_takes_it():
    config = default_config()
    config.image.eval_scale = 300
    assert eval_passes(recipe_of(config), "center_crop", "") == [EvalPass("center_crop", 300, 224, False)]


def test_the_command_line_knows_the_protocols():
    # The flag lists them itself, so that --help need not load JAX.
    from vgg_jax.commands import evaluate, predict
    from vgg_jax.evaluation.passes import PROTOCOLS

    for command in (evaluate, predict):
        assert command.flags.values["protocol"].parser.enum_values == list(PROTOCOLS)
