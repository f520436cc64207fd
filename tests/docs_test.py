"""What the documents show runs as it stands there."""

import re

import jax
import numpy as np
import pytest
from PIL import Image

import vgg_jax
from examples import style_transfer
from tests.command import run_module
from tests.conftest import REPOSITORY
from tests.random_weights import some_weights
from vgg_jax.data.builtin import render
from vgg_jax.runtime.exceptions import UserError
from vgg_jax.weights.file import save_weights

PAGES = sorted(path for pattern in ("*.md", "docs/**/*.md", "benchmarks/*.md") for path in REPOSITORY.glob(pattern))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_every_file_that_a_page_links_is_there(page):
    targets = re.findall(r"(?:\]\(|^\[[^\]]+\]: )([^)#\s]+)", page.read_text(), re.MULTILINE)
    local = [target for target in targets if not re.match(r"[a-z]+:", target)]
    assert [target for target in local if not (page.parent / target).exists()] == []


def test_the_front_page_is_short():
    lines = (REPOSITORY / "README.md").read_text().splitlines()
    assert len(lines) <= 150
    assert [line for line in lines if len(line) > 100] == []


def test_the_reference_has_every_public_name():
    named = set(re.findall(r"^::: vgg_jax\.(.+)$", (REPOSITORY / "docs" / "python.md").read_text(), re.MULTILINE))
    assert {name for name in named if "." not in name} == set(vgg_jax.__all__) - {"features"}
    features = {name.removeprefix("features.") for name in named if name.startswith("features.")}
    assert features == set(vgg_jax.features.__all__) - {"lpips"}


def test_every_page_is_in_the_sites_navigation():
    lines = (REPOSITORY / "mkdocs.yml").read_text().partition("\nnav:")[2]
    assert sorted(re.findall(r": (\S+\.md)$", lines, re.MULTILINE)) == [str(p.relative_to(REPOSITORY)) for p in PAGES]


def test_the_examples_of_features_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_weights(tmp_path / "vgg16.safetensors", some_weights("D"))
    blocks = re.findall(r"```python\n(.*?)```", (REPOSITORY / "docs" / "features.md").read_text(), re.DOTALL)
    assert len(blocks) == 7
    names: dict = {}
    exec("\n".join(blocks), names)
    assert names["maps"]["relu4_3"].shape == (2, 20, 25, 32)
    assert names["probs"].shape == names["views"].shape == (2, 5)
    np.testing.assert_allclose(names["probs"].sum(1), 1, rtol=1e-5)
    assert names["logits"].shape == (2, 10)
    assert set(names["seen"]) == {"relu3_3", "score_map"}
    assert float(names["value"]) > 0
    assert names["gradient"].shape == (160, 200, 3)
    assert float(names["style"]) > 0
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(names["model"].params))


@pytest.mark.parametrize("size", [(20_000, 3), (3, 20_000), (90, 10)])
def test_style_transfer_refuses_a_long_image(tmp_path, size):
    Image.new("RGB", size).save(tmp_path / "long.png")
    with pytest.raises(UserError, match=rf"long.png has {size[0]} x {size[1]} pixels.*at most 8 times"):
        style_transfer.photo(str(tmp_path / "long.png"), 256)
    Image.new("RGB", (80, 10)).save(tmp_path / "fits.png")
    assert style_transfer.photo(str(tmp_path / "fits.png"), 32).shape == (32, 256, 3)


@pytest.mark.slow
def test_style_transfer_brings_the_style_nearer_and_keeps_the_picture(tmp_path):
    save_weights(tmp_path / "model.safetensors", some_weights("A"))
    for i in (0, 5):
        render(i)[0].resize((80, 64)).save(tmp_path / f"{i}.png")
    status, out, err = run_module(
        "examples.style_transfer",
        *(
            f"--weights={tmp_path / 'model.safetensors'}",
            f"--content={tmp_path / '0.png'}",
            f"--style={tmp_path / '5.png'}",
        ),
        *(f"--output={tmp_path / 'out.png'}", "--size=48", "--steps=20"),
    )
    assert (status, err) == (0, "")
    styles = [float(x) for x in re.findall(r"style ([\d.]+)", out)]
    assert styles[-1] < 0.7 * styles[0]
    painted = Image.open(tmp_path / "out.png")
    assert painted.size == (60, 48)
    assert np.asarray(painted).std() > 5
    status, out, err = run_module(
        "examples.style_transfer", f"--weights={tmp_path / 'model.safetensors'}", "--content=/nowhere.png", "--style=x"
    )
    assert status == 2
    assert err.startswith("error: /nowhere.png cannot be read: ")
    assert len(err.splitlines()) == 1


@pytest.mark.slow
def test_edges_are_those_of_side_outputs_enlarged_and_fused(tmp_path):
    """Xie & Tu 2015, §3: with zero kernels every side output is its bias, and their fusion is a number."""
    h5py = pytest.importorskip("h5py", reason="reads .h5 (pip install 'vgg-jax[h5]')")
    weights = some_weights("D")
    trunk = {name: leaves for name, leaves in weights.params.items() if name.startswith("conv")}
    save_weights(
        tmp_path / "trunk.safetensors",
        weights._replace(params=trunk, network=weights.network.without_head(), class_names=None),
    )
    render(0)[0].resize((70, 50)).save(tmp_path / "image.png")
    biases, fuse = [0.1, -0.2, 0.3, -0.4, 0.5], [1.0, 2.0, 3.0, 4.0, 5.0]
    with h5py.File(tmp_path / "side.weights.h5", "w") as file:
        for i, bias in enumerate(biases, 1):
            channels = trunk[("conv1_2", "conv2_2", "conv3_3", "conv4_3", "conv5_3")[i - 1]]["bias"].shape[0]
            file[f"dsn{i}/vars/0"] = np.zeros((1, 1, channels, 1), np.float32)
            file[f"dsn{i}/vars/1"] = np.array([bias], np.float32)
        file["fuse/vars/0"] = np.array(fuse, np.float32).reshape(1, 1, 5, 1)
        file["fuse/vars/1"] = np.array([0.25], np.float32)
    flags = [
        f"--weights={tmp_path / 'trunk.safetensors'}",
        f"--image={tmp_path / 'image.png'}",
        f"--output={tmp_path / 'e.png'}",
    ]
    status, out, err = run_module("examples.edges", *flags, f"--side_outputs={tmp_path / 'side.weights.h5'}")
    assert (status, err) == (0, "")
    assert "50 x 70" in out
    found = np.asarray(Image.open(tmp_path / "e.png"))
    assert found.shape == (50, 70)
    assert (found == round(255 / (1 + np.exp(-np.dot(biases, fuse) - 0.25)))).all()
    status, _, err = run_module("examples.edges", *flags, f"--side_outputs={tmp_path / 'trunk.safetensors'}")
    assert (status, "has no side output dsn1" in err) == (2, True)
