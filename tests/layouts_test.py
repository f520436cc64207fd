"""The order of axes and of names, by tensors whose numbers tell their positions; no other framework is needed."""

import numpy as np
import pytest

from tests.refusals import refused
from tests.weights_files import (
    NARROW,
    as_laid_out,
    kernel_shapes,
    random_params,
    write_caffemodel,
    write_h5,
    write_old_pth,
    write_pth,
)
from vgg_jax.models import NetworkSpec, make_network
from vgg_jax.models.vgg import TABLE_1
from vgg_jax.weights import containers, layouts
from vgg_jax.weights.identification import identify
from vgg_jax.weights.layouts import Size, crop_of, targets, to_variables
from vgg_jax.weights.tensors import Tensor, WeightsError

# torchvision's vgg11, 13, 16 and 19: the places of the convolutions in `features`, written down from its source.
TORCHVISION = {
    "A": [0, 3, 6, 8, 11, 13, 16, 18],
    "B": [0, 2, 5, 7, 10, 12, 15, 17, 20, 22],
    "D": [0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28],
    "E": [0, 2, 5, 7, 10, 12, 14, 16, 19, 21, 23, 25, 28, 30, 32, 34],
}


def where(shape):
    """An array in which every number is its own place, row by row; exact in float32."""
    assert np.prod(shape) < 2**24
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


def coded(layout, configuration="D", size=NARROW):
    """Another framework's tensors, written with loops over its own indices: every number tells (h, w, C, F)."""
    tensors = {}
    table = {(target.layer, target.leaf): name for name, target in targets(layout, NetworkSpec(configuration)).items()}
    for layer, (h, w, c, f) in kernel_shapes(configuration, size).items():
        ours = where((h, w, c, f))
        matrix = layer.startswith("fc") and not (layout == "timm" and layer != "fc8")
        if layout == "Keras":
            theirs = np.zeros((h * w * c, f) if matrix else (h, w, c, f), np.float32)
            for row in range(h):
                for column in range(w):
                    for channel in range(c):
                        at = (row * w + column) * c + channel if matrix else (row, column, channel)
                        theirs[at] = ours[row, column, channel]
        else:
            theirs = np.zeros((f, c * h * w) if matrix else (f, c, h, w), np.float32)
            for channel in range(c):
                for row in range(h):
                    for column in range(w):
                        at = (channel * h + row) * w + column
                        theirs[(slice(None), at) if matrix else (slice(None), channel, row, column)] = ours[
                            row, column, channel
                        ]
        kernel, bias = table[layer, "kernel"], table[layer, "bias"]
        tensors[kernel], tensors[bias] = theirs, where((f,))
    return tensors


def write(layout, path, tensors):
    return {"torchvision": write_pth, "Keras": write_h5, "Caffe": write_caffemodel}[layout](path, tensors)


def net_in(path):
    with containers.open_tensors(path) as contents:
        model = identify(contents.tensors)
        params = to_variables(lambda name: containers.read_array(contents, name), model)["params"]
        return model.framework, model.network.name, params


@pytest.mark.parametrize("layout", ["torchvision", "Keras", "Caffe"])
def test_every_number_comes_to_its_position(layout, tmp_path):
    detected, configuration, params = net_in(write(layout, tmp_path / "file", coded(layout)))
    assert (detected, configuration) == (layout, "D")
    for layer, shape in kernel_shapes("D", NARROW).items():
        np.testing.assert_array_equal(params[layer]["kernel"], where(shape), err_msg=layer)
        np.testing.assert_array_equal(params[layer]["bias"], where(shape[3:]))


def test_every_number_of_timms_comes_to_its_position():
    tensors = {name: Tensor(a.shape, "float32", lambda a=a: a) for name, a in coded("timm").items()}
    model = identify(tensors)
    params = to_variables(lambda name: tensors[name].read(), model)["params"]
    assert model.framework == "timm"
    for layer, shape in kernel_shapes("D", NARROW).items():
        np.testing.assert_array_equal(params[layer]["kernel"], where(shape), err_msg=layer)


@pytest.mark.parametrize(
    ("wrong", "reordered"),
    [
        ("rows, columns, channels, as Keras", lambda a, s: a.T.reshape(s)),
        ("channels, columns, rows", lambda a, s: a.reshape(s[3], s[2], s[1], s[0]).transpose(3, 2, 1, 0)),
        ("outputs last", lambda a, s: a.reshape(s[2], s[0], s[1], s[3]).transpose(1, 2, 0, 3)),
    ],
)
def test_a_wrong_order_of_fc6_would_be_found(wrong, reordered):
    shape = kernel_shapes("D", NARROW)["fc6"]
    theirs = coded("torchvision")["classifier.0.weight"]
    np.testing.assert_array_equal(layouts.ROWS_OF_CHW.to_hwio(theirs, shape), where(shape))
    assert (reordered(theirs, shape) != where(shape)).any(), wrong


def test_a_wrong_order_of_channels_would_be_found():
    theirs = coded("torchvision")["features.0.weight"]
    assert (theirs.transpose(2, 3, 1, 0) == where((3, 3, 3, 4))).all()
    assert (theirs[:, ::-1].transpose(2, 3, 1, 0) != where((3, 3, 3, 4))).any()
    assert (theirs.transpose(3, 2, 1, 0) != where((3, 3, 3, 4))).any()  # rows and columns


@pytest.mark.parametrize("configuration", TORCHVISION)
def test_names_are_torchvisions_and_the_configuration_is_found(configuration):
    params = random_params(configuration)
    tensors = as_laid_out(params, "torchvision", configuration)
    stems = [f"features.{i}" for i in TORCHVISION[configuration]] + [f"classifier.{i}" for i in (0, 3, 6)]
    assert list(tensors) == [f"{stem}.{kind}" for stem in stems for kind in ("weight", "bias")]
    identified = identify({name: Tensor(a.shape, "float32", lambda: None) for name, a in tensors.items()})
    assert identified == ("torchvision", NetworkSpec(configuration), NARROW)


@pytest.mark.parametrize("configuration", TABLE_1)
@pytest.mark.parametrize("size", [Size(1.0, 4096, 1000, 7), Size(0.25, 256, 10, 2), Size(0.1, 24, 3, 1)])
def test_the_size_is_found_from_shapes_alone(configuration, size):
    tensors = {}
    for layer, shape in kernel_shapes(configuration, size).items():
        tensors[f"{layer}/kernel"] = Tensor(shape, "float32", lambda: None)
        tensors[f"{layer}/bias"] = Tensor(shape[3:], "float32", lambda: None)
    layout, identified, guessed = identify(tensors, configuration)
    assert (layout, identified) == ("vgg_jax", NetworkSpec(configuration))
    assert kernel_shapes(identified.configuration, guessed) == kernel_shapes(configuration, size)
    assert crop_of(guessed) == 32 * size.side


def test_shapes_are_those_of_the_model():
    import jax
    import jax.numpy as jnp

    for configuration in TABLE_1:
        model = make_network(configuration, num_classes=7, width_multiplier=0.1, fc_width=24, crop=70)
        made = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 70, 70, 3)))["params"]
        shapes = kernel_shapes(configuration, Size(0.1, 24, 7, 2))
        assert {layer: made[layer]["kernel"].shape for layer in made} == shapes


def test_a_net_whose_names_are_those_of_several_is_what_was_said(tmp_path):
    path = write_caffemodel(tmp_path / "a.caffemodel", as_laid_out(random_params("A"), "Caffe", "A"))
    with containers.open_tensors(path) as contents:
        assert identify(contents.tensors).network.name == "A"
        assert identify(contents.tensors, "A-LRN").network.name == "A-LRN"
        assert identify(contents.tensors, "vgg11").network.name == "A"
        with refused("nearest to Caffe's configuration B", WeightsError):
            identify(contents.tensors, "B")
    # C and D have the same names; the 1x1 kernels tell them apart.
    path = write_caffemodel(tmp_path / "c.caffemodel", as_laid_out(random_params("C"), "Caffe", "C"))
    with containers.open_tensors(path) as contents:
        assert identify(contents.tensors).network.name == "C"
        with refused(r"conv3_3/0 is \[16, 16, 1, 1\] and should be \[16, 16, 3, 3\]", WeightsError):
            identify(contents.tensors, "D")


RESNET = {f"conv{i}_block1_1_conv/kernel": np.zeros((3, 3, 4, 4), np.float32) for i in (2, 3, 4, 5)}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda t: RESNET, "it holds a ResNet by the names of Keras or Caffe, and ResNets are read by"),
        (lambda t: {"a": np.zeros(3, np.float32)}, "it is none of the models known here .*: its tensors are a"),
        (
            lambda t: t | {"features.1.running_mean": np.zeros(4, np.float32)},
            "nearest to torchvision's configuration D, with features.1.running_mean too many",
        ),
        (lambda t: {k: v for k, v in t.items() if k != "features.2.bias"}, "nearest .* features.2.bias missing"),
        (lambda t: t | {"extra": np.zeros(3, np.float32)}, "with extra too many"),
        (
            lambda t: {k: v for k, v in t.items() if k[:12] != "classifier.3"},
            "with classifier.3.bias, classifier.3.weight missing",
        ),
        (lambda t: t | {"features.2.weight": np.zeros((4, 4, 5, 3), np.float32)}, r"is \[4, 4, 5, 3\] and should be"),
        (lambda t: t | {"classifier.0.weight": t["classifier.0.weight"].T.copy()}, "classifier.0.weight is"),
        (lambda t: t | {"features.0.bias": t["features.0.bias"][None]}, r"features.0.bias is \[1, 4\] and should be"),
        (lambda t: t | {"classifier.6.bias": np.zeros(6, np.float32)}, "classifier.6.weight is"),
        (
            lambda t: t | {"features.0.bias": np.array([0, np.nan, 0, 0], np.float32)},
            "features.0.bias has numbers that are not finite",
        ),
    ],
)
def test_a_net_that_differs_is_refused_and_named(change, sentence, tmp_path):
    tensors = as_laid_out(random_params(), "torchvision")
    for writer in (write_pth, write_old_pth):
        with refused(sentence):
            net_in(writer(tmp_path / "file.pth", change(tensors)))
