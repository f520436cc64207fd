"""The package as it is installed: from a wheel, without a clone, and with the versions that its files promise."""

import ast
import os
import pkgutil
import re
import subprocess
import sys
import tomllib
import zipfile
from collections import Counter

import pytest

import vgg_jax
from tests.conftest import REPOSITORY
from vgg_jax import __version__
from vgg_jax.data.builtin import render


def test_files_agree_on_the_version():
    cited = re.search(r"^version: (.+)$", (REPOSITORY / "CITATION.cff").read_text(), re.M)
    released = re.search(r"^## \[(\d.*?)\] - (.+)$", (REPOSITORY / "CHANGELOG.md").read_text(), re.M)
    assert cited[1] == released[1] == __version__
    assert f"date-released: {released[2]}" in (REPOSITORY / "CITATION.cff").read_text()


def test_an_old_python_is_refused_in_a_sentence():
    code = "import sys; sys.version_info = (3, 10, 9); import vgg_jax"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert re.fullmatch(r"Python \S+ \(.+\) is too old for vgg_jax; take 3.11 or newer.\n", done.stderr)


def test_pip_and_uv_are_given_the_same_versions():
    packages = tomllib.loads((REPOSITORY / "uv.lock").read_text())["package"]
    locked = {(package["name"], package["version"]) for package in packages if "registry" in package["source"]}
    lines = (REPOSITORY / "constraints.txt").read_text().splitlines()
    constrained = {tuple(line.split(" ;")[0].strip().split("==")) for line in lines}
    assert constrained == locked


def test_every_package_of_the_source_is_in_the_wheel():
    listed = set(tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    there = {".".join(file.parent.relative_to(REPOSITORY).parts) for file in (REPOSITORY / "vgg_jax").rglob("*.py")}
    assert listed == there | {"vgg_jax.configs"}


@pytest.mark.every_python
def test_every_module_is_imported():
    names = [info.name for info in pkgutil.walk_packages(vgg_jax.__path__, "vgg_jax.")]
    names.remove("vgg_jax.__main__")
    code = "import importlib, sys; [importlib.import_module(name) for name in sys.argv[1:]]"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *names], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert len(names) > 100


def test_the_backbone_loads_neither_training_nor_its_libraries():
    code = "import sys, vgg_jax.features; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    rooms = {name.split(".")[1] for name in loaded if name.startswith("vgg_jax.")}
    assert rooms == {"features", "models", "runtime", "weights"}
    assert not {"optax", "ml_collections", "orbax", "grain", "tensorflow_datasets", "clu"} & set(loaded)


def test_no_two_modules_of_the_tree_share_a_name_and_few_lie_at_the_front():
    files = [file for file in (REPOSITORY / "vgg_jax").rglob("*.py") if file.name != "__init__.py"]
    shared = [name for name, count in Counter(file.stem for file in files).items() if count > 1]
    assert not shared
    assert len(list((REPOSITORY / "vgg_jax").glob("*.py"))) <= 8


def test_no_two_classes_share_a_name():
    modules = [ast.parse(file.read_text()) for file in (REPOSITORY / "vgg_jax").rglob("*.py")]
    names = Counter(node.name for module in modules for node in ast.walk(module) if isinstance(node, ast.ClassDef))
    assert not [name for name, count in names.items() if count > 1]


def test_tests_know_the_jaxlib_that_they_run_on():
    """jaxlib aborts on a flag in XLA_FLAGS that it does not know, so another process has to try."""
    done = subprocess.run(
        [sys.executable, "-c", "import jax; jax.devices()"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.usefixtures("fully_optimised")
def test_a_wheel_does_everything_in_an_empty_directory(tmp_path):
    def done(*command, **environment):
        result = subprocess.run(
            [sys.executable, "-m", *map(str, command)],
            cwd=tmp_path / "empty",
            capture_output=True,
            text=True,
            timeout=300,
            env=os.environ | {"PYTHONPATH": str(tmp_path / "site"), **environment},
        )
        assert result.returncode == 0, result.stderr
        return result.stdout

    (tmp_path / "empty").mkdir()
    subprocess.run(["git", "clone", "-q", REPOSITORY, tmp_path / "clone"], check=True)  # a build writes into its source
    done("pip", "wheel", "-q", "--no-deps", "-w", tmp_path, tmp_path / "clone")
    (wheel,) = tmp_path.glob("*.whl")
    assert {"vgg_jax/configs/vgg16_c.py", "vgg_jax/py.typed"} <= set(zipfile.ZipFile(wheel).namelist())
    done("pip", "install", "-q", "--no-deps", "--target", tmp_path / "site", wheel)
    assert "quickstart" in done("vgg_jax")
    small = (
        "--config.num_epochs=0.1",
        "--config.model.width_multiplier=0.0625",
        f"--config.data.dir={tmp_path / 'data'}",
    )
    assert "VGG A on" in done("vgg_jax", "train", "--config=quickstart", *small)
    assert "top-1" in done("vgg_jax", "evaluate", "--workdir=runs/quickstart", "--protocol=center_crop")
    render(0)[0].save(tmp_path / "image.png")
    assert "%" in done("vgg_jax", "predict", "--workdir=runs/quickstart", tmp_path / "image.png")
    done("vgg_jax", "report", "runs/quickstart")
    assert (tmp_path / "empty" / "runs" / "quickstart" / "report.html").stat().st_size > 100_000
