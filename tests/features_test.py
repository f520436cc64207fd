"""The backbone: its activations are the model's, its losses are their formulas, and all of it is pure."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vgg_jax
from tests.networks import small
from tests.random_weights import ODD, some_weights
from tests.weights_files import write_pth
from vgg_jax import features
from vgg_jax.models import NetworkSpec
from vgg_jax.models.description import endpoint_names
from vgg_jax.runtime.exceptions import UserError
from vgg_jax.weights.file import make_model, save_weights

LAYERS = ("relu1_2", "pool2", "conv4_3")


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "d.safetensors"
    save_weights(path, some_weights())
    return vgg_jax.load(path)


def pixels(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3)).astype(np.float32)


@pytest.mark.every_python
def test_activations_are_the_nets_on_its_own_input(backbone):
    """The slow way: the file's parameters as they are, on pixels prepared as the file says."""
    weights = some_weights()
    images = pixels(2, 66, 97)
    x = (images[..., ::-1] * ODD.scale / 255 - np.array(ODD.mean)) / np.array(ODD.std)
    names = [name for name in endpoint_names(NetworkSpec("D").layers()) if name != "images"]
    _, expected = make_model(weights).apply({"params": weights.params}, jnp.asarray(x, jnp.float32), endpoints=names)
    result = features.activations(backbone, images, names)
    assert list(result) == names
    for name in names:
        np.testing.assert_allclose(result[name], expected[name], atol=2e-4 * float(jnp.abs(expected[name]).max()))
        assert float(jnp.std(expected[name])) > 0


@pytest.mark.slow
def test_jit_vmap_and_leading_axes_give_the_same(backbone):
    images = pixels(2, 3, 40, 36)
    expected = features.activations(backbone, images[1, 2], LAYERS)  # one image, smaller than the crop
    jitted = jax.jit(features.activations, static_argnums=2)(backbone, images, LAYERS)
    mapped = jax.vmap(lambda x: features.activations(backbone, x, LAYERS))(images[1])
    for layer in LAYERS:
        assert jitted[layer].shape[:2] == (2, 3)
        scale = float(jnp.abs(expected[layer]).max())
        np.testing.assert_allclose(jitted[layer][1, 2], expected[layer], atol=1e-4 * scale)
        np.testing.assert_allclose(mapped[layer][2], expected[layer], atol=1e-4 * scale)


@pytest.mark.slow
def test_grad_cam_of_global_average_pooling_is_the_class_activation_map():
    """Selvaraju et al. 2017, §3.1: ReLU of the last map weighted by the head's kernel, over its number of cells."""
    model, variables = small("A", 64, {"head": "gap"})
    backbone = features.Backbone(variables["params"], jnp.array([120.0, 110.0, 100.0]), model, NetworkSpec("A"))
    images = pixels(3, 70, 90)
    cams, classes = jax.jit(features.grad_cam, static_argnames="layer")(backbone, images, layer="pool5")
    x = jnp.asarray(images) - backbone.mean_rgb
    logits, maps = model.apply(variables, x, endpoints=("pool5",))
    np.testing.assert_array_equal(classes, logits.argmax(-1))
    kernel = np.asarray(variables["params"]["fc"]["kernel"])[0, 0]
    places = maps["pool5"].shape[1] * maps["pool5"].shape[2]
    expected = np.stack(
        [np.maximum(m @ kernel[:, k] / places, 0) for m, k in zip(np.asarray(maps["pool5"]), classes, strict=True)]
    )
    np.testing.assert_allclose(cams, expected, rtol=1e-3, atol=1e-4 * expected.max())
    assert expected.max() > 0
    of_class, given = features.grad_cam(backbone, images[0], jnp.int32(2))
    assert (of_class.shape, int(given)) == ((4, 5), 2)  # relu5_2
    trunk = small("A", 64, {"head": "none"})[0]
    trunk = features.Backbone(variables["params"], backbone.mean_rgb, trunk, NetworkSpec("A", head="none"))
    with pytest.raises(UserError, match="this is a trunk, without a classifier"):
        features.grad_cam(trunk, images)


@pytest.mark.parametrize(
    ("images", "classes", "sentence"),
    [
        (pixels(1, 64, 64), [5], r"classes \[5\] for 1 images and 5 classes; give one number from 0 to 4 for each"),
        (pixels(1, 64, 64), np.array([-1]), r"classes \[-1\] for"),
        (pixels(2, 64, 64), [1], r"classes \[1\] for 2 images"),
        (pixels(1, 64, 64), np.array([1.0]), r"classes \[1.0\] for 1 images"),
        (pixels(1, 63, 90), [1], "63 x 90 pixels are too small for score_map; they must be at least 64 x 64"),
    ],
)
def test_grad_cam_of_unknown_layers_and_classes_is_refused(backbone, images, classes, sentence):
    with pytest.raises(UserError, match=sentence):
        features.grad_cam(backbone, images, classes)


@pytest.mark.parametrize(
    ("scale", "offset", "said"),
    [(1 / 255, 0, "from 0 to 1,"), (2 / 255, -1, "from -1 to 1,"), (1, -1e-3, "from -0.001")],
)
def test_images_of_another_range_are_warned_of_outside_jit(backbone, scale, offset, said):
    images = pixels(1, 16, 16) * scale + offset
    images[0, 0, 0], images[0, 0, 1] = offset, 255 * scale + offset
    with pytest.warns(UserWarning, match=said):
        features.activations(backbone, images, ("relu1_1",))
    jax.jit(features.activations, static_argnums=2)(backbone, images, ("relu1_1",))  # warnings are errors in tests
    features.activations(backbone, np.zeros_like(images), ("relu1_1",))


def heads_of(backbone, seed=0):
    rng = np.random.default_rng(seed)
    channels = [backbone.params[name.replace("relu", "conv")]["bias"].shape[0] for name in features.LPIPS_LAYERS]
    return tuple(jnp.asarray(rng.uniform(0, 1, c), jnp.float32) for c in channels)


@pytest.mark.slow
def test_lpips_is_its_formula_and_its_map_is_of_the_images_size(backbone):
    """Zhang et al. 2018, equation 1, layer by layer in NumPy; maps enlarged bilinearly, pixel centres at halves."""
    x, y, heads = pixels(2, 64, 96), pixels(2, 64, 96, seed=1), heads_of(backbone)
    expected, of_last = np.zeros(2), None
    for layer, head in zip(features.LPIPS_LAYERS, heads, strict=True):
        a, b = (np.asarray(features.activations(backbone, v, (layer,))[layer], np.float64) for v in (x, y))
        a, b = (v / (np.sqrt((v**2).sum(-1, keepdims=True)) + 1e-10) for v in (a, b))
        of_last = ((a - b) ** 2 * np.asarray(head)).sum(-1)
        expected += of_last.mean((1, 2))
    distances = jax.jit(features.lpips)(x, y, backbone, heads)
    np.testing.assert_allclose(distances, expected, rtol=1e-4)
    assert expected.min() > 0.01
    mapped = jax.vmap(lambda a, b: features.lpips(a, b, backbone, heads))(x, y)
    np.testing.assert_allclose(mapped, expected, rtol=1e-4)
    np.testing.assert_allclose(features.lpips(x, x, backbone, heads), 0, atol=1e-6)
    alone = tuple(head * (i == 4) for i, head in enumerate(heads))
    spatial = features.lpips(x, y, backbone, alone, spatial=True)
    assert spatial.shape == (2, 64, 96)
    np.testing.assert_allclose(spatial[:, 0, 0], of_last[:, 0, 0], rtol=1e-3)  # a corner is the corner's
    # Row 16 of 64 lies between rows 0 and 1 of the map's 4: at 16.5 / 16 - 0.5 = 0.53125.
    np.testing.assert_allclose(spatial[:, 16, 0], 0.46875 * of_last[:, 0, 0] + 0.53125 * of_last[:, 1, 0], rtol=1e-3)
    gradient = jax.grad(lambda v: features.lpips(v, y, backbone, heads).sum())(np.zeros_like(x))
    assert np.isfinite(gradient).all()


def test_lpips_names_mismatches(backbone, tmp_path):
    sizes = (64, 128, 256, 512, 512)
    good = {f"lin{i}.model.1.weight": np.full((1, c, 1, 1), i, np.float32) for i, c in enumerate(sizes)}
    heads = features.load_lpips_heads(write_pth(tmp_path / "vgg.pth", good))
    assert [(head.shape[0], float(head[0])) for head in heads] == [(c, i) for i, c in enumerate(sizes)]
    model, variables = small("C", 64)
    with pytest.raises(UserError, match="LPIPS is of configuration D, and this model is of another network"):
        other = features.Backbone(variables["params"], jnp.zeros(3), model, NetworkSpec("C"))
        features.lpips(pixels(64, 64), pixels(64, 64), other, heads)
    with pytest.raises(UserError, match="relu1_2 has 4 channels and its head is for 64; heads of VGG-16 go with"):
        features.lpips(pixels(64, 64), pixels(64, 64), backbone, heads)
    with pytest.raises(UserError, match="4 LPIPS heads; give 5, one for each of relu1_2, "):
        features.lpips(pixels(64, 64), pixels(64, 64), backbone, heads_of(backbone)[:4])
    lists = [head.tolist() for head in heads_of(backbone)]
    of_arrays, of_lists = (
        features.lpips(pixels(16, 16), pixels(16, 16, seed=1), backbone, h) for h in (heads_of(backbone), lists)
    )
    assert float(of_lists) == float(of_arrays) > 0
    with pytest.raises(UserError, match="cannot be compared; make them of one shape"):
        features.lpips(pixels(64, 64), pixels(64, 32), backbone, heads_of(backbone))
    alexnet = good | {"lin1.model.1.weight": np.zeros((1, 192, 1, 1), np.float32)}
    with pytest.raises(UserError, match=r"no LPIPS heads of VGG-16.*lin1.model.1.weight \[1, 192, 1, 1\]"):
        features.load_lpips_heads(write_pth(tmp_path / "alex.pth", alexnet))


def test_no_later_block_is_computed(backbone):
    def multiplications(layers):
        shapes = jax.eval_shape(lambda: backbone)
        x = jax.ShapeDtypeStruct((64, 64, 3), jnp.float32)
        compiled = jax.jit(features.activations, static_argnums=2).lower(shapes, x, layers).compile()
        return compiled.cost_analysis()["flops"]

    first, third, last = (multiplications((layer,)) for layer in ("relu1_1", "relu3_3", "relu5_3"))
    assert 5 * first < third < 0.8 * last


def test_losses_are_their_formulas(backbone):
    x, y = pixels(40, 36), pixels(40, 36, seed=1)
    a, b = (features.activations(backbone, image, LAYERS) for image in (x, y))
    weights = (2.0, 0.5, 1.0)
    expected = sum(
        w * np.mean((np.asarray(a[n]) - np.asarray(b[n])) ** 2) for n, w in zip(LAYERS, weights, strict=True)
    )
    assert float(features.perceptual_loss(backbone, x, y, LAYERS, weights)) == pytest.approx(expected, rel=1e-4)
    assert expected > 0
    assert float(features.perceptual_loss(backbone, x, x, LAYERS)) == 0

    def gram(f):
        h, w, c = f.shape
        products = np.zeros((c, c))
        for i in range(c):
            for j in range(c):
                products[i, j] = (f[..., i] * f[..., j]).sum() / (h * w)
        return products

    grams = [[gram(np.asarray(of[n], np.float64)) for n in LAYERS] for of in (a, b)]
    expected = sum(w * np.mean((p - q) ** 2) for p, q, w in zip(*grams, weights, strict=True))
    assert float(features.style_loss(backbone, x, y, LAYERS, weights)) == pytest.approx(expected, rel=1e-4)
    assert float(features.style_loss(backbone, x, pixels(64, 50), LAYERS)) > 0  # of another size
    # A style does not know where things are; an activation does.
    flat = jnp.asarray(a["pool2"])
    shuffled = jax.random.permutation(jax.random.key(0), flat.reshape(-1, flat.shape[-1])).reshape(flat.shape)
    np.testing.assert_allclose(features.gram(shuffled), features.gram(flat), rtol=1e-4)
    assert float(jnp.abs(shuffled - flat).max()) > 0


@pytest.mark.parametrize("loss", [features.perceptual_loss, features.style_loss])
def test_gradients_are_those_of_finite_differences(backbone, loss):
    x, y = pixels(32, 32), pixels(32, 32, seed=1)
    function = jax.jit(lambda x: loss(backbone, x, y, LAYERS))
    gradient = np.asarray(jax.grad(function)(x), np.float64)
    # Along the gradient, where the difference stands out of float32's rounding.
    steepness = np.linalg.norm(gradient)
    step = 4 * gradient / steepness  # of pixels on 0 to 255, over all of them together
    difference = float(function(x + step)) - float(function(x - step))
    assert difference / 8 == pytest.approx(steepness, rel=0.02)


def test_total_variation_is_that_of_a_ramp():
    ramp = jnp.broadcast_to(jnp.arange(8.0)[None, :, None] * 3, (5, 8, 3))
    assert float(features.total_variation(ramp)) == 9
    assert float(features.total_variation(jnp.full((5, 8, 3), 7))) == 0


@pytest.mark.parametrize(
    ("images", "layers", "sentence"),
    [
        (np.zeros((40, 40, 3)), ("relu9_9",), "the network has no layer 'relu9_9'; it has images, conv1_1"),
        (np.zeros((40, 40, 3)), (), "name one or several"),
        (
            np.zeros((40, 40, 3)),
            "relu2_2",
            r"the layers are 'relu2_2'; name one or several in a tuple, as \('relu2_2',\)",
        ),
        (np.zeros((40, 40)), ("relu1_1",), r"images of shape \[40, 40\]"),
        (np.zeros((15, 40, 3)), ("relu5_1",), "too small for relu5_1; they must be at least 16 x 16"),
        (np.zeros((15, 40, 3)), ("pool4",), "at least 16 x 16"),
        (np.zeros((63, 90, 3)), ("relu1_1", "fc6"), "at least 64 x 64"),
    ],
)
def test_what_cannot_be_is_refused(backbone, images, layers, sentence):
    with pytest.raises(UserError, match=sentence):
        features.activations(backbone, images, layers)


@pytest.mark.slow
def test_the_least_sizes_do(backbone):
    assert features.activations(backbone, np.zeros((16, 40, 3)), ("relu5_1",))["relu5_1"].shape == (1, 2, 32)
    assert features.activations(backbone, np.zeros((16, 40, 3)), ("pool4",))["pool4"].shape == (1, 2, 32)
    assert features.activations(backbone, np.zeros((64, 64, 3)), ("score_map",))["score_map"].shape == (1, 1, 5)


def test_unequal_losses_are_refused(backbone):
    x = np.zeros((40, 40, 3))
    with pytest.raises(UserError, match="2 weights for 3 layers"):
        features.perceptual_loss(backbone, x, x, LAYERS, (1, 2))
    with pytest.raises(UserError, match="cannot be compared at relu1_2"):
        features.perceptual_loss(backbone, x, np.zeros((32, 40, 3)), LAYERS)


def test_average_pooling_takes_the_means_of_what_the_layer_before_gives(backbone):
    images = pixels(1, 64, 80)
    maps = features.activations(features.with_average_pooling(backbone), images, ("relu1_2", "pool1", "relu2_1"))
    before, plain = np.asarray(maps["relu1_2"]), features.activations(backbone, images, ("relu1_2", "relu2_1"))
    np.testing.assert_allclose(maps["pool1"], before.reshape(1, 32, 2, 40, 2, -1).mean((2, 4)), rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(before, plain["relu1_2"], rtol=1e-5, atol=1e-3)
    assert np.abs(maps["relu2_1"] - plain["relu2_1"]).max() > 1


@pytest.mark.slow
def test_googlenets_last_maps_are_all_branches_and_its_auxiliary_classifiers_do_not_count():
    model, variables = small("GoogLeNet", 224, {"auxiliary": True})
    backbone = features.Backbone(variables["params"], jnp.zeros(3), model, NetworkSpec("GoogLeNet", auxiliary=True))
    image = pixels(160, 160)
    cams = [features.grad_cam(backbone, image, jnp.int32(2), layer)[0] for layer in ("", "concat5b", "relu5b_pool")]
    np.testing.assert_array_equal(cams[0], cams[1])
    assert (cams[0] != cams[2]).any()


def test_average_pooling_is_refused_where_pooling_has_padding(backbone):
    model, variables = small("ResNet-18", 64)
    residual = features.Backbone(
        variables["params"],
        backbone.mean_rgb,
        model,
        NetworkSpec("ResNet-18"),
        {"batch_stats": variables["batch_stats"]},
    )
    with pytest.raises(UserError, match="where pooling has no padding, as in VGGs"):
        features.with_average_pooling(residual)


@pytest.mark.slow
def test_means_of_many_images_in_bfloat16_are_not_lost_in_the_sum():
    model, variables = small("A", 32)
    backbone = features.Backbone(variables["params"], jnp.zeros(3), model.clone(dtype=jnp.bfloat16), NetworkSpec("A"))
    image = pixels(1, 32, 32)
    normalized = features.with_normalized_activations(backbone, itertools.repeat(image, 1000))
    means = np.float32(features.activations(normalized, image, ("relu1_1",))["relu1_1"]).mean((0, 1, 2))
    assert (means > 0).any()
    np.testing.assert_allclose(means[means > 0], 1, rtol=0.03)


@pytest.mark.slow
def test_normalised_activations_have_a_mean_of_one_and_the_same_logits(backbone):
    batches = [pixels(2, 64, 64), pixels(2, 64, 64, seed=1)]
    normalized = features.with_normalized_activations(backbone, batches)
    layers = ("relu1_1", "relu3_2", "relu5_1")
    for layer in layers:
        means = np.mean([features.activations(normalized, x, (layer,))[layer].mean((0, 1, 2)) for x in batches], 0)
        active = means > 0
        np.testing.assert_allclose(means[active], 1, rtol=1e-3)
        assert active.any()
    scores = [features.activations(b, batches[0], ("score_map",))["score_map"] for b in (backbone, normalized)]
    np.testing.assert_allclose(scores[1], scores[0], rtol=1e-3, atol=1e-3 * np.abs(scores[0]).max())
    with pytest.raises(UserError, match="there is no image to normalise activations by"):
        features.with_normalized_activations(backbone, [])
    model, variables = small("D", 64, {"batch_norm": True})
    spec, state = NetworkSpec("D", batch_norm=True), {"batch_stats": variables["batch_stats"]}
    other = features.Backbone(variables["params"], backbone.mean_rgb, model, spec, state)
    with pytest.raises(UserError, match="for VGGs without normalisation layers"):
        features.with_normalized_activations(other, batches)
