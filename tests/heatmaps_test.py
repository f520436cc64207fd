"""Score maps over images: the map is the model's, and each place is drawn where its crop lies."""

import jax.numpy as jnp
import numpy as np
import pytest

from tests.networks import small
from vgg_jax import features
from vgg_jax.config import default_config, recipe_of
from vgg_jax.data.colors import ColorStatistics
from vgg_jax.evaluation import heatmaps
from vgg_jax.evaluation.trained_model import TrainedModel
from vgg_jax.models import NetworkSpec
from vgg_jax.models.description import first_center
from vgg_jax.training.augment import normalize


def maps_of(scores, classes, cams=None, names=("a", "b")):
    """The maps of two classes with the probabilities 1/4 and 3/4."""
    return heatmaps.class_maps(scores, np.array([0.25, 0.75]), classes, names, cams)


def test_a_hot_cell_is_drawn_at_the_centre_of_its_crop():
    image = np.full((128, 224, 3), 100, np.uint8)
    scores = np.zeros((3, 6, 2), np.float32)
    scores[1, 4, 1] = 5  # of crop 64: rows 32 to 96, columns 128 to 192, so its centre is (64, 160)
    canvas = np.asarray(heatmaps.draw(image, maps_of(scores, [("x", 0), ("y", 1)]), NetworkSpec("A").layers(64)))
    width, height = 320 * 224 // 128, 320
    panels = [canvas[12 : 12 + height, 12 + i * (width + 12) :][:, :width].astype(int) for i in range(3)]
    assert (panels[0] == 100).all()
    assert (panels[1] == panels[1][0, 0]).all()  # a flat map: one colour
    redness = panels[2][..., 0] - panels[2][..., 2]
    rows, columns = np.nonzero(redness > redness.max() - 5)
    np.testing.assert_allclose([rows.mean(), columns.mean()], [64 * 2.5, 160 * 2.5], atol=2)


@pytest.mark.parametrize(
    ("network", "crop", "first"),
    [("D", 224, 112), ("D", 64, 32), ("ResNet-18", 224, 0.5), ("AlexNet", 227, 113.5), ("GoogLeNet", 224, 30.5)],
)
def test_the_first_cell_is_centred_in_its_field_of_view(network, crop, first):
    """Expected are sums of strides times half a kernel less the padding, by hand."""
    assert first_center(NetworkSpec(network).layers(crop)) == first


def test_a_hot_cell_of_grad_cam_is_drawn_at_its_centre():
    image, cams = np.full((128, 224, 3), 100, np.uint8), np.zeros((8, 14, 1), np.float32)
    cams[3, 9] = 0.2  # of stride 16: its centre is (56, 152)
    scores, layers = np.zeros((3, 6, 2), np.float32), NetworkSpec("A").layers(64)
    picture = heatmaps.draw(image, maps_of(scores, [("y", 1)], cams), layers)
    panel = np.asarray(picture)[12:332, 12 + 2 * 572 :][:, :560].astype(int)
    redness = panel[..., 0] - panel[..., 2]
    rows, columns = np.nonzero(redness > redness.max() - 5)
    np.testing.assert_allclose([rows.mean(), columns.mean()], [56 * 2.5, 152 * 2.5], atol=2)


def test_grad_cam_and_score_map_of_a_resnet_are_drawn_by_the_same_centres():
    """Both maps have the last block's cells: cell (i, j) is centred at pixel (32 i, 32 j), so (1, 4) at (32, 128)."""
    image, cams = np.full((128, 224, 3), 100, np.uint8), np.zeros((4, 7, 1), np.float32)
    cams[1, 4] = 0.2
    scores = np.concatenate([np.zeros_like(cams), cams], -1)
    picture = heatmaps.draw(image, maps_of(scores, [("y", 1)], cams), NetworkSpec("ResNet-18").layers())
    panels = [np.asarray(picture)[12:332, 12 + i * 572 :][:, :560].astype(int) for i in (1, 2)]
    for panel in panels:
        redness = panel[..., 0] - panel[..., 2]
        rows, columns = np.nonzero(redness > redness.max() - 5)
        np.testing.assert_allclose([rows.mean(), columns.mean()], [32.5 * 2.5, 128.5 * 2.5], atol=2)


def test_a_long_title_ends_before_the_next_panel():
    image, scores = np.full((128, 128, 3), 255, np.uint8), np.zeros((3, 3, 2), np.float32)
    names = ["great white shark, white shark, man-eater, man-eating shark, Carcharodon carcharias"] * 2
    classes, layers = [("true", 0), ("predicted", 1)], NetworkSpec("A").layers(64)
    of_long, of_short = (
        np.asarray(heatmaps.draw(image, maps_of(scores, classes, names=titles), layers)) for titles in (names, ["", ""])
    )
    assert of_long.shape == of_short.shape
    columns = np.nonzero((of_long != of_short).any((0, 2)))[0]
    lefts = [12 + i * 332 for i in (1, 2)]
    assert all(any(left <= column < left + 320 for left in lefts) for column in columns)
    assert all(columns[(columns >= left) & (columns < left + 320)].size > 100 for left in lefts)


def test_the_map_is_the_nets():
    model, variables = small("A")
    statistics = ColorStatistics(np.array([120, 110, 100], np.float32), np.eye(3, dtype=np.float32))
    trained = TrainedModel(
        None, None, recipe_of(default_config()), model, None, "", list("abcde"), list("abcde"), statistics, None
    )
    image = np.random.default_rng(0).integers(0, 256, (70, 133, 3)).astype(np.uint8)
    scores, probs_K = heatmaps.score_map(trained, variables, image)
    logits, endpoints = model.apply(
        variables, normalize(jnp.asarray(image[None]), statistics), endpoints=("score_map",)
    )
    np.testing.assert_allclose(scores, endpoints["score_map"][0], rtol=1e-3, atol=1e-2)
    assert scores.shape == (1, 3, 5)
    assert int(probs_K.argmax()) == int(logits.argmax())
    cams = heatmaps.class_cams(trained, variables, image, [("x", 3), ("y", 1)])
    backbone = features.Backbone(variables["params"], jnp.asarray(statistics.mean_rgb), model, NetworkSpec("A"))
    expected = [features.grad_cam(backbone, image, jnp.int32(k))[0] for k in (3, 1)]
    np.testing.assert_allclose(np.moveaxis(cams, -1, 0), expected, rtol=1e-3, atol=1e-3 * np.max(expected))
