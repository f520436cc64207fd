"""Weights files: what is read, what is refused, that nothing in them is ever run, and what they say of pixels."""

import io
import json
import os
import pickle
import resource
import struct
import time
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from tests.networks import small
from tests.random_weights import ODD, some_weights
from tests.refusals import refused
from tests.weights_files import (
    NARROW,
    as_laid_out,
    nested,
    pickled,
    random_params,
    write_caffemodel,
    write_h5,
    write_old_pth,
    write_pth,
)
from vgg_jax.models import NetworkSpec, make_network, variable_shapes
from vgg_jax.runtime.exceptions import UNPRINTABLE
from vgg_jax.weights import containers, layouts, preprocessing
from vgg_jax.weights.exports import to_stablehlo, to_torchvision
from vgg_jax.weights.file import KEY, folded_params, load_weights, make_model, save_weights
from vgg_jax.weights.imports import Digests, FileHints, import_weights, with_class_names, with_new_head
from vgg_jax.weights.pickles import read_pickle
from vgg_jax.weights.preprocessing import KNOWN

NO_DIGESTS = Digests("0" * 64, "")


def read(path, **options):
    return import_weights(path, NO_DIGESTS, FileHints(**options))[0]


def equal(a, b):
    return all((a[layer][name] == b[layer][name]).all() for layer in a for name in ("kernel", "bias"))


# The project's own file.


@pytest.mark.every_python
def test_what_is_written_is_read_and_twice_the_same_bytes(tmp_path):
    weights = some_weights()
    save_weights(tmp_path / "a.safetensors", weights)
    found = load_weights(tmp_path / "a.safetensors")
    assert equal(found.params, weights.params)
    assert found._replace(params=None) == weights._replace(params=None)
    save_weights(tmp_path / "b.safetensors", found)
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    (tmp_path / "as usual").write_text("")
    assert (tmp_path / "a.safetensors").stat().st_mode == (tmp_path / "as usual").stat().st_mode
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.safetensors", "as usual", "b.safetensors"]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"form": 3}, "not of form 1 or 2"),
        ({"network": {"head": "spp"}}, "for network, which cannot be"),
        ({"network": 7}, "for network, which cannot be"),
        ({"network": {"batch_norm": True}}, "it is not the network that its description says: bn1_1/bias is missing"),
        ({"configuration": "F"}, "has F for configuration"),
        ({"num_classes": 6}, "for class_names"),
        ({"num_classes": 6, "class_names": None}, r"fc8/bias is \[5\], but should be \[6\]"),
        ({"fc_width": 10**9}, "has 1000000000 for fc_width"),
        ({"width_multiplier": "1"}, "for width_multiplier"),
        ({"width_multiplier": 0.125}, r"conv1_1/bias is \[4\], but should be \[8\]"),
        ({"crop": 96, "training_scales": [96, 96]}, "fc6/kernel is"),
        ({"training_scales": [60, 73]}, r"has \[60, 73\] for training_scales"),
        ({"training_scales": [64, 4097]}, r"has \[64, 4097\] for training_scales"),
        ({"crop": 4096, "training_scales": [4096, 4096]}, "has 4096 for crop"),
        ({"crop": 4, "training_scales": [64, 64]}, "has 4 for crop"),
        ({"fc_width": True}, "has True for fc_width"),
        ({"num_classes": 1, "class_names": None}, "has 1 for num_classes"),
        ({"preprocessing": {"order": "RGB"}}, "its preprocessing is damaged"),
        ({"class_names": list("abc")}, "for class_names"),
        ({"params_sha256": "0" * 64}, "its numbers are not those that were written"),
    ],
)
def test_a_description_that_does_not_fit_is_refused(change, sentence, tmp_path):
    path = tmp_path / "a.safetensors"
    save_weights(path, some_weights())
    with containers.open_tensors(path) as contents:
        description = json.loads(contents.metadata[KEY])
    save_file(load_file(path), path, {KEY: json.dumps(description | change)})
    with refused(sentence):
        load_weights(path)


def test_shapes_take_no_memory_and_are_compared_before_any_tensor_is_read(tmp_path, monkeypatch):
    huge = make_network("D", 64 * 2**15, num_classes=2**24, fc_width=2**24)  # images of 50 TB
    assert variable_shapes(huge)["params"]["fc6"]["kernel"].shape == (2**16, 2**16, 512, 2**24)
    save_weights(tmp_path / "a.safetensors", some_weights())
    with containers.open_tensors(tmp_path / "a.safetensors") as contents:
        description = json.loads(contents.metadata[KEY])
    save_file(
        load_file(tmp_path / "a.safetensors"),
        tmp_path / "a.safetensors",
        {KEY: json.dumps(description | {"fc_width": 2**24})},
    )
    monkeypatch.setattr(containers, "read_array", lambda *_: pytest.fail("a tensor was read"))
    with refused("fc6/bias is .*, but should be .16777216."):
        load_weights(tmp_path / "a.safetensors")


def test_a_head_for_a_crop_beyond_the_range_is_refused(tmp_path):
    size = NARROW._replace(width_multiplier=1 / 64, fc_width=1, side=65)
    tensors = as_laid_out(random_params(size=size), "torchvision")
    with refused("for crops of 2,080 pixels, and the largest is 2,048"):
        read(write_pth(tmp_path / "a.pth", tensors), preprocessing="torchvision")


@pytest.mark.parametrize("layout", ["torchvision", "Keras"])
def test_a_head_of_one_output_is_refused_with_a_way_out(layout, tmp_path):
    tensors = as_laid_out(random_params(size=NARROW._replace(num_classes=1)), layout)
    path = write_pth(tmp_path / "a.pth", tensors) if layout == "torchvision" else write_h5(tmp_path / "a.h5", tensors)
    with refused("one output, as for a sigmoid, .* at least two classes; give the head a row of"):
        read(path, preprocessing="caffe")


@pytest.mark.parametrize("is_own", [True, False])
def test_a_negative_variance_is_refused(is_own, tmp_path):
    variables = jax.tree.map(np.array, small("A", description={"batch_norm": True})[1])
    variables["batch_stats"]["bn3_1"]["var"][2] = -1e-3
    weights = some_weights("A", fc_width=24, params=variables.pop("params"), model_state=variables)
    weights = weights._replace(network=NetworkSpec("A", batch_norm=True))
    if is_own:
        save_weights(tmp_path / "a.safetensors", weights)
        with refused("bn3_1/var has negative numbers"):
            load_weights(tmp_path / "a.safetensors")
    else:
        path = write_pth(
            tmp_path / "a.pth", {k: np.ascontiguousarray(a) for k, a in to_torchvision(weights)[0].items()}
        )
        with refused("features.9.running_var has negative numbers"):
            read(path, preprocessing="torchvision")


def test_a_changed_number_is_found(tmp_path):
    path = tmp_path / "a.safetensors"
    save_weights(path, some_weights())
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(content)
    with refused(r"its numbers are not those that were written \(their digest differs\)"):
        load_weights(path)


def test_anothers_file_is_not_taken_for_ones_own(tmp_path):
    save_file(as_laid_out(random_params(), "timm"), tmp_path / "timm.safetensors")
    with refused(r"make one of it with: vgg-jax convert .*timm.safetensors NAME"):
        load_weights(tmp_path / "timm.safetensors")


def test_a_file_that_lost_its_description_is_asked_about(tmp_path):
    path = tmp_path / "a.safetensors"
    save_weights(path, some_weights())
    save_file(load_file(path), path)
    with refused("it has our names but no metadata; models trained here take `mean_rgb`"):
        read(path)
    assert read(path, preprocessing="mean_rgb").preprocessing == KNOWN["mean_rgb"]
    save_file(load_file(path), path, {"vgg_jax_preprocessing": "{}"})
    with refused("its preprocessing is damaged"):
        read(path)


# Preprocessing.


@pytest.mark.parametrize("expected", [*KNOWN.values(), ODD])
def test_preprocessing_moves_into_conv1_1_exactly(expected):
    """The model on its own input equals the changed model on RGB minus the mean, borders included."""
    weights = some_weights(expected=expected)
    images = np.random.default_rng(0).integers(0, 256, (2, 70, 81, 3)).astype(np.float32)
    ordered = images if expected.order == "RGB" else images[..., ::-1]
    own_input = (ordered * expected.scale / 255 - np.array(expected.mean)) / np.array(expected.std)
    model = make_model(weights)
    names = ("relu1_1", "score_map")
    _, wanted = model.apply({"params": weights.params}, jnp.asarray(own_input, jnp.float32), endpoints=names)
    _, found = model.apply({"params": folded_params(weights)}, images - expected.mean_rgb(), endpoints=names)
    for name in names:
        scale = float(jnp.abs(wanted[name]).max())
        np.testing.assert_allclose(found[name], wanted[name], atol=1e-4 * scale)
        border = np.abs(np.asarray(wanted["relu1_1"][:, 0]))
        assert border.max() > 0
    # Unlike in the order of channels or without the division:
    _, wrong = model.apply({"params": weights.params}, jnp.asarray(images - expected.mean_rgb()), endpoints=names)
    if expected != KNOWN["mean_rgb"]:
        assert float(jnp.abs(wrong["relu1_1"] - wanted["relu1_1"]).max()) > 0.1 * float(wanted["relu1_1"].max())
    back = preprocessing.unfold_from_conv1(folded_params(weights)["conv1_1"]["kernel"], expected)
    np.testing.assert_allclose(back, weights.params["conv1_1"]["kernel"], rtol=1e-6)


def test_means_are_those_of_the_makers():
    np.testing.assert_allclose(KNOWN["caffe"].mean_rgb(), [123.68, 116.779, 103.939])
    np.testing.assert_allclose(KNOWN["torchvision"].mean_rgb(), [123.675, 116.28, 103.53])
    assert preprocessing.parse("RGB:1:0.485,0.456,0.406:0.229,0.224,0.225") == KNOWN["torchvision"]


@pytest.mark.parametrize(
    "text",
    ["", "rgb", "RGB:1:0,0:1,1,1", "GBR:1:0,0,0:1,1,1", "RGB:0:0,0,0:1,1,1", "RGB:1:nan,0,0:1,1,1", "RGB:1:0,0,0"],
)
def test_a_preprocessing_that_cannot_be_is_refused(text):
    with refused("is neither of torchvision, caffe, mean_rgb nor of the form"):
        preprocessing.parse(text)


def test_preprocessing_is_taken_where_it_is_known_and_asked_for_where_not(tmp_path):
    pth = write_pth(tmp_path / "a.pth", as_laid_out(random_params(), "torchvision"))
    with refused(r"does not say how its pixels are prepared; say it with --preprocessing=torchvi"):
        read(pth)
    assert read(pth, preprocessing="caffe").preprocessing == KNOWN["caffe"]
    published = Digests("397923af" + "0" * 56, "")
    weights, what = import_weights(pth, published)
    assert weights.preprocessing == KNOWN["torchvision"]
    assert what.startswith("torchvision's vgg16-397923af.pth")
    assert weights.training_scales == (73, 73)
    caffe = as_laid_out(random_params(), "Caffe")
    weights = read(write_caffemodel(tmp_path / "a.caffemodel", caffe))
    assert (weights.preprocessing, weights.training_scales) == (KNOWN["caffe"], (73, 146))
    with refused("say it with --preprocessing=caffe"):
        read(write_caffemodel(tmp_path / "b.caffemodel", caffe, name="mine"))


# Heads and names.


@pytest.mark.slow
def test_a_new_head_of_googlenet_is_that_of_its_auxiliary_classifiers_too(tmp_path):
    _, variables = small("GoogLeNet", 224, {"auxiliary": True})
    drawn = {"params": variables["params"], "crop": 224, "training_scales": (256, 256), "fc_width": 24}
    weights = some_weights("GoogLeNet", network=NetworkSpec("GoogLeNet", auxiliary=True), **drawn)
    save_weights(tmp_path / "a.safetensors", with_new_head(weights, 10, seed=0))
    params = load_weights(tmp_path / "a.safetensors").params
    assert {name: params[name]["bias"].shape for name in ("fc", "aux1_fc2", "aux2_fc2")} == dict.fromkeys(
        ("fc", "aux1_fc2", "aux2_fc2"), (10,)
    )


def test_a_new_head_leaves_the_body(tmp_path):
    weights = some_weights()
    other = with_new_head(weights, 10, seed=0)
    assert other.num_classes == 10
    assert other.class_names is None
    assert other.params["fc8"]["kernel"].shape == (1, 1, 16, 10)
    assert other.params["fc8"]["kernel"].std() == pytest.approx((2 / 26) ** 0.5, rel=0.2)
    assert equal(*({k: v for k, v in w.params.items() if k != "fc8"} for w in (weights, other)))
    save_weights(tmp_path / "a.safetensors", other)
    assert load_weights(tmp_path / "a.safetensors").num_classes == 10


def test_names_of_classes():
    wnids = "n01440764 tench, Tinca tinca\nn01443537 goldfish\n\nn01484850 shark\nn01491361\nn01494475 hammerhead\n"
    named = with_class_names(some_weights(), wnids, "x")
    assert named.class_names[:2] == ["n01440764", "n01443537"]
    assert named.class_titles == ["tench, Tinca tinca", "goldfish", "shark", "n01491361", "hammerhead"]
    plain = with_class_names(some_weights(), "a b\nc\nd\ne\nf", "x")
    assert (plain.class_names, plain.class_titles) == (["a b", "c", "d", "e", "f"], None)
    with refused(r"--class_names=x has 4 names \(4 different\) for 5 classes"):
        with_class_names(some_weights(), "a\nc\nd\ne", "x")
    for line, fault in (
        ("a", "'a' is there twice, as number 5"),
        ("f\x1b[2J", r"number 5 is .*x1b\[2J', which is not a name"),
    ):
        with refused(f"--class_names=x cannot be: {fault}"):
            with_class_names(some_weights(), f"a\nb\nc\nd\n{line}", "x")


@pytest.mark.parametrize(
    ("names", "fault"),
    [
        (["a", "b", "c", "d", "a"], "'a' is there twice, as number 5"),
        (["a", "", "c", "d", "e"], "number 2 is 'empty'"),
        (["a", "b", "c", "d", "x\x1b[31m"], "number 5 is"),
        (["a", "b", "c", "d", "\udc80"], "number 5 is"),
        (["a", "b", "c", "d", "two\nlines"], "number 5 is"),
        (["a", "b", "c", "d", "\u202eright to left"], "number 5 is"),
        (["a", "b", "c", "d", "x" * 1001], "number 5 is"),
    ],
)
def test_names_that_cannot_be_shown_or_told_apart_are_refused(names, fault, tmp_path):
    save_weights(tmp_path / "a.safetensors", some_weights(class_names=names))
    with refused(f"its class_names cannot be: {fault}") as caught:
        load_weights(tmp_path / "a.safetensors")
    assert UNPRINTABLE.search(str(caught.value)) is None


def test_names_and_titles_of_any_language_are_taken(tmp_path):
    names = ["Käfer", "नमस्ते\u200d", "犬", "n\u00a0b", "👩\u200d🚀"]
    titles = ["crane", "crane", "b", "c", "d"]  # ImageNet, too, has two cranes
    save_weights(
        tmp_path / "a.safetensors", some_weights(class_names=names, class_titles=titles, source="\x1b]0;x\x07")
    )
    weights = load_weights(tmp_path / "a.safetensors")
    assert (weights.class_names, weights.class_titles) == (names, titles)
    assert weights.source == r"\x1b]0;x\x07"


# Nothing is run.


class Evil:
    def __reduce__(self):
        import os

        return os.mkdir, ("was-here",)


class EvilEval:
    def __reduce__(self):
        return eval, ("open('was-here', 'w')",)


@pytest.mark.parametrize(
    ("payload", "named"),
    [
        (pickle.dumps({"features.0.weight": Evil()}, 2), r"posix.mkdir"),
        (pickle.dumps({"features.0.weight": EvilEval()}, 2), r"__builtin__.eval"),
        (pickle.dumps({"features.0.weight": EvilEval()}, 4), r"builtins.eval"),
        (b"cos\nsystem\n(S'touch was-here'\ntR.", "os.system"),
        (b"\x80\x02(S'touch was-here'\nios\nsystem\n.", "the instruction STRING"),
        (b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n.", "not a state dictionary"),
        (b"\x80\x02X\x05\0\0\0torchctorch\nFloatStorage\n)R.", "calls something that cannot be called"),
        (b"\x80\x02\x82\x01.", "the instruction EXT1"),
        (b"\x80\x04\x96" + struct.pack("<Q", 2**40) + b".", "damaged"),  # BYTEARRAY8 of a terabyte
        (b"\x80\x02Nr" + struct.pack("<I", 2**32 - 1) + b".", "not a state dictionary"),  # a memo of 64 GB
        (b"\x80\x02N" + b"\x85" * 100_000 + b".", "not a state dictionary"),  # deeper than any stack
        (b"\x80\x02(" * 3 + b".", "damaged"),
        (b"", "damaged"),
    ],
)
@pytest.mark.parametrize("old", [False, True])
def test_a_pth_that_tries_to_do_something_is_refused_and_named(payload, named, old, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "evil.pth"
    if old:
        head = bytes.fromhex("80028a0a6cfc9c46f9206aa850192e")
        system = pickle.dumps({"little_endian": True}, 2)
        path.write_bytes(head + b"\x80\x02M\xe9\x03." + system + payload + b"\x80\x02].")
    else:
        write_pth(path, {}, payload or b"\x80")
    with refused(named) as record:
        read(path)
    assert str(path) in str(record.value)
    assert not (tmp_path / "was-here").exists()


def test_the_payload_would_have_been_run_by_an_ordinary_unpickler(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pickle.loads(pickle.dumps(Evil(), 2))
    assert (tmp_path / "was-here").exists()


def test_plain_values_are_read():
    value = {"a": (1, -2, 300_000, 2**40), "b": [True, None, 1.5, "ü"], "c": {}, "d": ((),)}
    for protocol in (2, 4, 5):
        assert read_pickle(io.BytesIO(pickle.dumps(value, protocol))) == value


def python2_pickle(shapes):
    """As torch 0.1 wrote it under Python 2: byte strings, an OrderedDict of pairs, the first form of a tensor."""

    def text(word):
        return b"U" + bytes([len(word)]) + word.encode()

    def ints(numbers):
        return b"(" + b"".join(b"J" + struct.pack("<i", n) for n in numbers) + b"t"

    out = b"\x80\x02ccollections\nOrderedDict\n]("
    for key, (name, shape) in enumerate(shapes.items()):
        numel = struct.pack("<i", int(np.prod(shape)))
        identity = (
            b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text(str(key)) + text("cpu") + b"J" + numel + b"NtQ"
        )
        strides = [int(np.prod(shape[i + 1 :])) for i in range(len(shape))]
        tensor = b"ctorch._utils\n_rebuild_tensor\n(" + identity + b"K\0" + ints(shape) + ints(strides) + b"tR"
        out += b"](" + text(name) + tensor + b"e"
    return out + b"e\x85R."


def test_what_python_2_wrote_is_read(tmp_path):
    params = random_params()
    tensors = as_laid_out(params, "torchvision")
    pickled_so = python2_pickle({name: a.shape for name, a in tensors.items()})
    write_old_pth(tmp_path / "a.pth", tensors, pickled_so)
    assert equal(read(tmp_path / "a.pth", preprocessing="torchvision").params, params)
    twice = pickled_so.replace(b"features.0.bias", b"features.2.bias")
    write_old_pth(tmp_path / "b.pth", tensors, twice)
    with refused("has a name twice"):
        read(tmp_path / "b.pth")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"preprocessing": "x"}, "--preprocessing=x is neither of torchvision, caffe, mean_rgb"),
        ({"configuration": "E"}, "comes nearest to torchvision's configuration E"),
        ({"configuration": "F"}, "there is no configuration 'F'; there are A, A-LRN"),
        ({"training_scales": "32"}, "must be from the crop, 64, to 4096"),
        ({"training_scales": "90,80"}, "and ascending"),
        ({"training_scales": "a"}, "is neither a number nor two with a comma"),
    ],
)
def test_what_is_said_of_a_file_and_cannot_be_is_refused(options, sentence, tmp_path):
    path = write_pth(tmp_path / "a.pth", as_laid_out(random_params(), "torchvision"))
    with refused(sentence):
        read(path, **{"preprocessing": "caffe", **options})


# Damage of other kinds.


def test_a_zip_that_is_compressed_or_no_pth_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\0" * 10**6)
    with refused("is compressed or encrypted"):
        read(tmp_path / "a.pth")
    with zipfile.ZipFile(tmp_path / "b.pth", "w") as archive:
        archive.writestr("hello", b"world")
    with refused("not one of torch.save"):
        read(tmp_path / "b.pth")
    write_pth(tmp_path / "c.pth", {})
    with zipfile.ZipFile(tmp_path / "c.pth", "a") as archive:
        archive.writestr("archive/constants.pkl", b"")
    with refused("TorchScript program"):
        read(tmp_path / "c.pth")


def test_a_changed_byte_of_a_pth_is_found_by_its_crc(tmp_path):
    path = write_pth(tmp_path / "a.pth", as_laid_out(random_params(), "torchvision"))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with refused("storage .* is damaged .*CRC"):
        read(path, preprocessing="torchvision")


@pytest.mark.parametrize("writer", [write_pth, write_old_pth])
def test_wrong_dtypes_and_sizes_are_refused(writer, tmp_path):
    tensors = as_laid_out(random_params(), "torchvision")
    shapes = {name: a.shape for name, a in tensors.items()}
    wider = {name: a.astype(np.float64) for name, a in tensors.items()}
    if writer is write_pth:
        write_pth(tmp_path / "a.pth", wider, pickled(shapes, "DoubleStorage"))
        with refused(r"features.0.weight is of float64; weights are float32, float16, bfloat16"):
            read(tmp_path / "a.pth", preprocessing="caffe")
        write_pth(tmp_path / "b.pth", wider)
        with refused("storage 0 has another size than the pickle says"):
            read(tmp_path / "b.pth", preprocessing="caffe")
        write_pth(tmp_path / "c.pth", tensors, pickled(shapes | {"classifier.0.weight": (2**15, 2**15)}))
        with refused(r"classifier.0.weight of shape \[32768, 32768\] cannot be in a file of"):
            read(tmp_path / "c.pth", preprocessing="caffe")
    else:
        path = writer(tmp_path / "a.pth", tensors)
        path.write_bytes(path.read_bytes()[:-1])
        with refused(r"it should have [\d,]+ bytes and has [\d,]+"):
            read(path, preprocessing="caffe")
        path.write_bytes(path.read_bytes()[:-2000])
        with refused(r"cut off|it should have"):
            read(path, preprocessing="caffe")


def test_a_safetensors_with_a_huge_header_or_a_gap_is_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(struct.pack("<Q", 2**60) + b"{" + b" " * 100)
    with refused("its header claims"):
        load_weights(path)
    save_file(as_laid_out(random_params(), "timm"), path)
    for damaged in (path.read_bytes()[:-1], path.read_bytes() + b"x", path.read_bytes().replace(b'"F32"', b'"F33"', 1)):
        path.write_bytes(damaged)
        with refused("header is damaged"):
            load_weights(path)


def test_caffes_both_forms_are_read_and_others_refused(tmp_path):
    params = random_params()
    tensors = as_laid_out(params, "Caffe")
    for old in (True, False):
        path = write_caffemodel(tmp_path / "a.caffemodel", tensors, old=old)
        assert equal(read(path).params, params)
        whole = path.read_bytes()
        path.write_bytes(whole[:-5])
        with refused("bytes too far|has no end"):
            read(path)
        path.write_bytes(whole + b"\x0b")  # a kind of field that there is not
        with refused("is not a field of a protocol buffer"):
            read(path)
    path = tmp_path / "any name"
    path.write_bytes(whole)  # told by its content
    assert equal(read(path).params, params)


def test_kerass_forms_are_read_and_nothing_else_in_an_h5_is(tmp_path):
    h5py = pytest.importorskip("h5py", reason="reads .h5, which needs h5py (pip install 'vgg-jax[h5]')")
    params = random_params()
    tensors = as_laid_out(params, "Keras")
    for form in ("2016", "later", "model"):
        path = write_h5(tmp_path / f"{form}.h5", tensors, form)
        assert equal(read(path, preprocessing="caffe").params, params)

    def assert_refused(change, sentence):
        path = write_h5(tmp_path / "changed.h5", tensors)
        with h5py.File(path, "a") as file:
            change(file)
        with refused(sentence):
            read(path, preprocessing="caffe")

    kernel = "fc2/fc2_W_1:0"

    def replace(file, **options):
        del file[kernel]
        file.create_dataset(kernel, data=tensors["fc2/kernel"], **options)

    def outside(file):
        del file[kernel]
        file.create_dataset(kernel, (16, 16), "f4", external=[(str(tmp_path / "later.h5"), 0, 1024)])

    def external_link(file):
        file["fc9"] = h5py.ExternalLink(str(tmp_path / "later.h5"), "/fc2")

    def virtual(file):
        del file[kernel]
        layout = h5py.VirtualLayout((16, 16), "f4")
        layout[:] = h5py.VirtualSource(str(tmp_path / "later.h5"), "fc2/fc2/kernel:0", (16, 16))
        file.create_virtual_dataset(kernel, layout)

    def circle(file):
        file["fc1/again"] = file["/"]

    assert_refused(lambda file: replace(file, compression="gzip"), "is compressed")
    assert_refused(outside, "lies in another file")
    assert_refused(virtual, "lies in another file")
    assert_refused(external_link, "is a link, which is not followed")
    assert_refused(lambda file: file.__setitem__("soft", h5py.SoftLink("/fc2")), "is a link, which is not followed")
    assert_refused(circle, "its groups are not Keras's")
    assert_refused(lambda file: replace(file, dtype="f8"), "is of float64")
    assert_refused(lambda file: file.__setitem__("lambda", np.void(b"code")), "lambda too many")


# Files that are made to cost memory or time, or to reach beyond themselves.


@pytest.mark.parametrize("order", [(4, 2), (2, 4)])
def test_a_storage_of_two_sizes_is_refused(order, tmp_path):
    tensors = {"a": np.zeros(order[0], np.float32), "b": np.zeros(order[1], np.float32)}
    body = pickled({name: array.shape for name, array in tensors.items()}, view_metadata=b"N")
    body = body.replace(b"X\x01\0\0\x001", b"X\x01\0\0\x000")  # b's storage is a's
    assert body.count(b"X\x01\0\0\x000") == 2
    path = write_old_pth(tmp_path / "old.pth", {"a": np.zeros(2, np.float32)}, body)
    with refused("its storage 0 has two sizes or kinds"):
        read(path)
    path = write_pth(tmp_path / "new.pth", {"a": np.zeros(2, np.float32)}, body.replace(b"NtQ", b"tQ"))
    with refused("its storage 0 has another size|is none of the models"):
        read(path)


@pytest.mark.parametrize("call", [b"ccollections\nOrderedDict\n", b"ctorch._utils\n_rebuild_parameter\n"])
def test_a_memoised_list_given_again_and_again_is_bounded(call, tmp_path):
    pairs = b"".join(b"(" + b"X\x04\0\0\0" + f"{i:04d}".encode() + b"Nt" for i in range(4000))
    arguments = b"(](" + pairs + b"et" if b"Ordered" in call else b"(N" + pairs + b"t"
    body = b"\x80\x02](" + call + b"q\x01" + arguments + b"q\x00R" + 100_000 * b"h\x01h\x00R" + b"e."
    began, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    path = write_pth(tmp_path / "bomb.pth", {}, body)
    with refused("its pickle makes far more than any model has|a parameter that is not a tensor"):
        read(path)
    assert time.monotonic() - began < 10
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20  # kilobytes


def test_an_h5_whose_links_make_endless_paths_is_refused(tmp_path):
    h5py = pytest.importorskip("h5py", reason="reads .h5, which needs h5py (pip install 'vgg-jax[h5]')")
    with h5py.File(tmp_path / "dag.h5", "w") as file:
        below = file.create_group("bottom")
        for depth in range(3):
            group = file.create_group(f"level{depth}")
            for i in range(900):
                group[str(i)] = below
            below = group
    began = time.monotonic()
    with refused(r"more groups and data sets than 1,000"):
        read(tmp_path / "dag.h5")
    assert time.monotonic() - began < 10


@pytest.mark.parametrize("part", [b"\x3a\x00", b"\x30\x01"])  # an empty blob, a number
def test_a_caffemodel_of_millions_of_small_fields_is_refused(part, tmp_path):
    layer = b"\x0a\x01a" + part * 2_000_000
    length = bytes([len(layer) >> s & 127 | (128 if s < 21 else 0) for s in (0, 7, 14, 21)])
    (tmp_path / "many.caffemodel").write_bytes(b"\xa2\x06" + length + layer)
    began = time.monotonic()
    with refused("it has more than 100,000 fields"):
        read(tmp_path / "many.caffemodel")
    assert time.monotonic() - began < 10


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("scale", value) for value in (10**400, 1e308, 1e-308, 1e-9, 0, -1, True, "1", None)),
        *(("mean", [value, 0, 0]) for value in (10**400, 1e308, -1e308, 1e6, "x", None)),
        *(("std", [value, 1, 1]) for value in (10**400, 1e308, 1e-308, 0, -1, None)),
    ],
)
def test_preprocessing_beyond_reason_is_refused(key, value, tmp_path):
    save_weights(tmp_path / "a.safetensors", some_weights())
    tensors = load_file(tmp_path / "a.safetensors")
    with safe_open(tmp_path / "a.safetensors", "numpy") as file:
        description = json.loads(file.metadata()[KEY])
    description["preprocessing"][key] = value
    save_file(tensors, tmp_path / "b.safetensors", {KEY: json.dumps(description)})
    with refused("its preprocessing is damaged|its description is damaged"):
        load_weights(tmp_path / "b.safetensors")


# Names as wrappers of modules leave them, and files of other kinds.


@pytest.mark.parametrize(
    ("rename", "said"),
    [
        (lambda name: f"module.{name}", "names without 'module.'"),
        (lambda name: f"_orig_mod.module.{name}", "names without '_orig_mod.module.'"),
        (lambda name: f"model.{name}", "names without 'model.'"),
        (lambda name: name.replace("features.", "features.module."), "names without 'features.module.'"),
    ],
)
def test_a_prefix_of_all_names_is_recognised_and_said(rename, said, tmp_path):
    params = random_params()
    tensors = as_laid_out(params, "torchvision")
    path = write_pth(tmp_path / "a.pth", {rename(name): array for name, array in tensors.items()})
    weights, what = import_weights(path, NO_DIGESTS, FileHints(preprocessing="caffe"))
    assert equal(weights.params, params)
    assert said in what


@pytest.mark.parametrize(
    ("writer", "key"),
    [(write_old_pth, "state_dict"), *((write_pth, key) for key in ("state_dict", "model_state_dict", "model", "net"))],
)
def test_a_state_dictionary_within_a_checkpoint_is_recognised_and_said(writer, key, tmp_path):
    params = random_params()
    tensors = {f"module.{name}": array for name, array in as_laid_out(params, "torchvision").items()}
    shapes = {name: array.shape for name, array in tensors.items()}
    body = pickled(shapes, view_metadata=b"N" if writer is write_old_pth else b"")
    path = writer(tmp_path / "a.pth", tensors, nested(body, key))
    weights, what = import_weights(path, NO_DIGESTS, FileHints(preprocessing="caffe"))
    assert equal(weights.params, params)
    assert f"under {key!r}, names without 'module.'" in what


def test_files_of_other_kinds_are_called_by_their_names(tmp_path):
    with zipfile.ZipFile(tmp_path / "script.pt", "w") as archive:
        archive.writestr("a/data.pkl", b"\x80\x02}.")
        archive.writestr("a/constants.pkl", b"")
    with refused("it is a TorchScript program; save the state dictionary of its module"):
        read(tmp_path / "script.pt")
    (tmp_path / "parts").mkdir()
    save_file({"a": np.zeros(3)}, tmp_path / "parts" / "model-00001-of-00002.safetensors")
    with refused(r"it is a directory with \.safetensors in it; give one such file, parts of one model"):
        read(tmp_path / "parts")
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {}}')
    with refused("it lists the parts of a model in several"):
        read(tmp_path / "model.safetensors.index.json")
    os.mkfifo(tmp_path / "pipe")
    with refused("not a regular file"):
        read(tmp_path / "pipe")
    with refused("not a regular file"):
        containers.sha256_and_md5(tmp_path / "pipe")


def port_to_numpy(params):
    """vgg16_weights.npz by its own code: [h, w, C, F], and rows of fc6 in the order of a flattened [h, w, C] map."""
    tensors = {}
    for layer, leaves in params.items():
        kernel = leaves["kernel"]
        tensors[f"{layer}_W"] = kernel.reshape(-1, kernel.shape[3]) if layer.startswith("fc") else kernel
        tensors[f"{layer}_b"] = leaves["bias"]
    return tensors


@pytest.mark.parametrize("order", ["C", "F"])
def test_an_npz_of_the_usual_names_is_read(order, tmp_path):
    np.savez(tmp_path / "a.npz", **{k: np.asarray(a, order=order) for k, a in port_to_numpy(random_params()).items()})
    with refused("say it with --preprocessing=mean_rgb or another"):
        read(tmp_path / "a.npz")
    weights = read(tmp_path / "a.npz", preprocessing="mean_rgb")
    assert (weights.configuration, weights.crop, weights.num_classes) == ("D", 64, 5)
    assert equal(weights.params, random_params())


@pytest.mark.parametrize(
    ("arrays", "sentence"),
    [
        ({"a": np.zeros(3, np.float32)}, "it is none of the models known here .*NumPy.*: its tensors are a;"),
        ({"a": np.array([{}], object)}, "its a is of object, and not of numbers"),
        ({"a": np.zeros((0, 3), np.float32)}, r"a of shape \[0, 3\] cannot be in a file"),
    ],
)
def test_an_npz_of_anything_else_is_refused(arrays, sentence, tmp_path):
    np.savez(tmp_path / "a.npz", **arrays)
    with refused(sentence):
        read(tmp_path / "a.npz")


def test_an_npz_that_claims_more_than_it_has_is_refused(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", a=np.zeros(3, np.float32))
    with refused("its part a.npy is compressed or encrypted; write it again with numpy.savez"):
        read(tmp_path / "a.npz")
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1099511627776,), }"
    with zipfile.ZipFile(tmp_path / "b.npz", "w") as archive:
        archive.writestr("a.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header)
    with refused(r"a of shape \[1099511627776\] cannot be in a file of"):
        read(tmp_path / "b.npz")
    tensors = port_to_numpy(random_params())
    np.savez(tmp_path / "c.npz", **tensors)
    content = bytearray((tmp_path / "c.npz").read_bytes())
    content[content.find(tensors["fc6_W"].tobytes()[:64])] ^= 1
    (tmp_path / "c.npz").write_bytes(content)
    with refused("Bad CRC-32 for file .fc6_W"):
        read(tmp_path / "c.npz", preprocessing="mean_rgb")


def test_without_h5py_one_is_told_how_to_get_it(tmp_path, monkeypatch):
    (tmp_path / "a.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + b"\0" * 100)
    monkeypatch.setitem(__import__("sys").modules, "h5py", None)
    with refused(r"not installed: pip install 'vgg-jax\[h5\]'"):
        read(tmp_path / "a.h5")


@pytest.mark.parametrize("content", [b"", b"GIF89a", b"\x80\x02}q\x00.", b"hello\n"])
def test_an_unknown_kind_is_refused_with_the_known_ones(content, tmp_path):
    (tmp_path / "x").write_bytes(content)
    with refused(r"of an unknown kind \(.*\); known are \.safetensors, \.pth"):
        read(tmp_path / "x")


# Out.


def test_a_net_that_torchvision_has_not_is_not_written_for_it():
    with refused("torchvision has no model of configuration C; it has those of A, B, D, E"):
        to_torchvision(some_weights("C"))


@pytest.mark.slow
def test_an_exported_program_gives_the_posteriors_of_the_net():
    pytest.importorskip("flatbuffers", reason="exports, which needs flatbuffers (pip install 'vgg-jax[export]')")
    weights = some_weights("A")
    program = jax.export.deserialize(bytearray(to_stablehlo(weights)))
    assert set(program.platforms) == {"cpu", "cuda", "tpu"}
    images = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), np.uint8)
    scores, _ = make_model(weights).apply(
        {"params": folded_params(weights)}, images.astype(np.float32) - ODD.mean_rgb()
    )
    found = program.call(images)
    np.testing.assert_allclose(found, jax.nn.softmax(scores), atol=1e-5)
    assert np.ptp(np.asarray(found), axis=0).max() > 1e-3
    assert program.call(images[:1]).shape == (1, 5)  # any number of images


def test_without_flatbuffers_one_is_told_how_to_get_it(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "flatbuffers", None)
    monkeypatch.delitem(__import__("sys").modules, "jax._src.export.serialization", raising=False)
    with refused(r"pip install 'vgg-jax\[export\]'"):
        to_stablehlo(some_weights("A"))


def test_a_model_of_weights_is_that_of_the_project():
    weights = some_weights("B")
    shapes = jax.eval_shape(
        make_network("B", num_classes=5, width_multiplier=1 / 16, fc_width=16, crop=64).init,
        jax.random.key(0),
        jnp.zeros((1, 64, 64, 3)),
    )["params"]
    assert jax.tree.map(lambda x: x.shape, shapes) == jax.tree.map(lambda x: x.shape, weights.params)
    assert layouts.crop_of(NARROW) == 64
