"""What the documents show runs as it stands there."""

import re

import jax
import numpy as np
import pytest
from PIL import Image

from tests.command import run_module
from tests.conftest import REPOSITORY
from tests.random_weights import some_weights
from vgg_jax.data.builtin import render
from vgg_jax.weights.file import save_weights


def test_the_examples_of_features_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_weights(tmp_path / "vgg16.safetensors", some_weights("D"))
    blocks = re.findall(r"```python\n(.*?)```", (REPOSITORY / "docs" / "features.md").read_text(), re.DOTALL)
    assert len(blocks) == 5
    names: dict = {}
    exec("\n".join(blocks), names)
    assert names["maps"]["relu4_3"].shape == (2, 20, 25, 32)
    assert float(names["value"]) > 0
    assert names["gradient"].shape == (160, 200, 3)
    assert float(names["style"]) > 0
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(names["backbone"].params))


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
