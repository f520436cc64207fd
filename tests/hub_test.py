"""Weights by name, fetched from a server on this machine that behaves as the published places do."""

import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
import types
from pathlib import Path

import numpy as np
import pytest

import vgg_jax
from tests.conftest import REPOSITORY
from tests.random_weights import some_weights
from tests.weights_files import as_laid_out, random_params, write_h5, write_pth
from vgg_jax import features
from vgg_jax.data.builtin import render
from vgg_jax.evaluation.protocol import Request, evaluate
from vgg_jax.evaluation.trained_model import load_trained
from vgg_jax.runtime.exceptions import UserError
from vgg_jax.training.transplant import read_donor
from vgg_jax.weights import containers, hub, imports
from vgg_jax.weights import file as weights_file
from vgg_jax.weights.exports import to_torchvision, write_hub_folder
from vgg_jax.weights.file import EXPORTED_KEY, save_weights, write_safetensors

COMMIT = "0123456789" * 4


class Server(http.server.ThreadingHTTPServer):
    """Gives files by path; `cut` bytes only, and `length` as their number, where set; counts what was asked for."""

    def __init__(self):
        super().__init__(("localhost", 0), Handler)
        self.files, self.cut, self.length, self.asked = {}, None, None, []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self):
        return f"http://localhost:{self.server_port}/"


class Handler(http.server.BaseHTTPRequestHandler):
    """The hub's headers as well, which the others' readers do not look at."""

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        self.server.asked.append((self.command, self.path))
        content = self.server.files.get(self.path)
        self.send_response(200 if content is not None else 404)
        self.send_header("Content-Length", self.server.length or str(len(content or b"")))
        if content is not None:
            self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
            self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if self.command == "GET" and content:
            self.wfile.write(content[: self.server.cut])

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch, tmp_path):
    monkeypatch.setenv("VGG_JAX_CACHE", str(tmp_path / "cache"))
    server = Server()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def published(server, monkeypatch, tmp_path):
    """torchvision's and Keras's VGG-16 as they are published, but narrow, and so with checksums of their own."""
    tensors = as_laid_out(random_params(), "torchvision")
    pth = write_pth(tmp_path / "a.pth", tensors).read_bytes()
    h5 = write_h5(tmp_path / "a.h5", as_laid_out(random_params(), "Keras")).read_bytes()
    server.files |= {"/vgg16.pth": pth, "/vgg16.h5": h5}
    sha256, md5 = hashlib.sha256(pth).hexdigest()[:8], hashlib.md5(h5).hexdigest()
    monkeypatch.setattr(
        hub,
        "SOURCES",
        {
            "torchvision:vgg16": hub.Source(server.url + "vgg16.pth", sha256=sha256),
            "keras:vgg16": hub.Source(server.url + "vgg16.h5", md5=md5),
        },
    )
    known = (
        (imports.Published("torchvision's vgg16", sha256=sha256), "torchvision"),
        (imports.Published("Keras's VGG16", md5=md5), "caffe"),
    )
    monkeypatch.setattr(imports, "PUBLISHED", known)
    return server


@pytest.mark.parametrize(("name", "expected"), [("torchvision:vgg16", "RGB"), ("keras:vgg16", "BGR")])
def test_a_name_is_fetched_checked_and_converted_once(published, name, expected):
    file, weights = hub.load(name)
    assert weights.preprocessing.order == expected
    np.testing.assert_array_equal(weights.params["fc6"]["kernel"], random_params()["fc6"]["kernel"])
    again, cached = hub.load(name)
    assert (again, cached.source) == (file, weights.source)
    assert len(published.asked) == 1
    assert not list(hub.cache_dir().glob("*.unfinished"))


@pytest.mark.parametrize("length", ["abc", "-5", "9" * 5000])
def test_a_length_that_is_not_a_number_leaves_the_checksum_to_decide(published, length):
    published.length = length
    assert hub.load("torchvision:vgg16")[1].configuration == "D"


@pytest.mark.usefixtures("published")
@pytest.mark.parametrize("name", ["torchvision:vgg16", "keras:vgg16"])
def test_a_warm_start_reads_and_digests_the_kept_file_once_and_nothing_else(name, monkeypatch):
    path, calls = hub.load(name)[0], []

    def counted(module, function):
        original = getattr(module, function)
        monkeypatch.setattr(module, function, lambda *a: (calls.append((function, a[0])), original(*a))[1])

    counted(containers, "sha256_and_md5")
    counted(containers, "open_tensors")
    counted(weights_file, "params_sha256")
    trained = load_trained(name)
    assert [function for function, _ in calls] == ["open_tensors", "params_sha256"]
    assert calls[0][1] == trained.checkpoint == path


class EntryNotFoundError(Exception):
    """Named as the hub's client names it."""


def repository(monkeypatch, files):
    """The hub's client, for one repository of these files."""

    def download(_, file, **__):
        if file not in files:
            raise EntryNotFoundError
        return str(files[file])

    monkeypatch.setitem(sys.modules, "huggingface_hub", types.SimpleNamespace(hf_hub_download=download))


TIMM = {
    "num_classes": 5,
    "label_names": list("vwxyz"),
    "pretrained_cfg": {
        "mean": [0.5, 0.4, 0.3],
        "std": [0.2, 0.25, 0.3],
        "input_size": [3, 64, 64],
        "crop_pct": 0.8,
        "interpolation": "bicubic",
    },
}
TRANSFORMERS = (
    {"id2label": {str(i): name for i, name in enumerate("vwxyz")}},
    {
        "image_mean": [0.5, 0.4, 0.3],
        "image_std": [0.2, 0.25, 0.3],
        "crop_pct": 0.8,
        "resample": 3,
        "crop_size": {"height": 64},
    },
)


@pytest.mark.parametrize("texts", [(TIMM,), TRANSFORMERS])
def test_the_hubs_description_of_weights_is_used(texts, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("VGG_JAX_CACHE", str(tmp_path / "cache"))
    files = {"model.safetensors": write_pth(tmp_path / "a.pth", as_laid_out(random_params(), "torchvision"))}
    for name, content in zip(("config.json", "preprocessor_config.json"), texts, strict=False):
        files[name] = tmp_path / name
        files[name].write_text(json.dumps(content))
    repository(monkeypatch, files)
    _, weights = hub.load("hf://me/mine")
    assert weights.preprocessing == ("RGB", 1.0, (0.5, 0.4, 0.3), (0.2, 0.25, 0.3))
    assert (weights.class_names, weights.training_scales) == (list("vwxyz"), (80, 80))
    assert "preprocessing as its config.json says, resized bilinearly and not bicubic" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"num_classes": 6}, "its head has 5 classes, and the config.json next to it says 6"),
        ({"label_names": list("abcd")}, "its head has 5 classes, and the config.json next to it 4 labels"),
        ({"pretrained_cfg": {"input_size": [3, 96, 96]}}, "for a crop of 64, and the config.json next to it says 96"),
        ({"pretrained_cfg": {"input_size": [3, 10**9, 10**9]}}, "has 1000000000 for input_size"),
        ({"pretrained_cfg": {"mean": [float("nan")] * 3, "std": [1, 1, 1]}}, "a mean and std that cannot be"),
        ({"label_names": ["a", "\x1b", "c", "d", "e"]}, "labels in the config.json next to it cannot be: number 2"),
        ({"downsample_in_bottleneck": True}, "says downsample_in_bottleneck"),
        ([], "for its content, which cannot be"),
    ],
)
def test_impossible_descriptions_of_the_hub_are_refused(change, sentence, tmp_path, monkeypatch):
    monkeypatch.setenv("VGG_JAX_CACHE", str(tmp_path / "cache"))
    files = {"model.safetensors": write_pth(tmp_path / "a.pth", as_laid_out(random_params(), "timm"))}
    files["config.json"] = tmp_path / "config.json"
    files["config.json"].write_text(json.dumps(TIMM | change if isinstance(change, dict) else change))
    repository(monkeypatch, files)
    with pytest.raises(UserError) as raised:
        hub.load("timm/mine")
    assert sentence in str(raised.value)


def test_the_crop_of_a_network_without_fc_layers_over_a_map_is_the_hubs(tmp_path, monkeypatch):
    monkeypatch.setenv("VGG_JAX_CACHE", str(tmp_path / "cache"))
    body = {k: a for k, a in as_laid_out(random_params(), "torchvision").items() if k.startswith("features.")}
    files = {"model.safetensors": write_pth(tmp_path / "a.pth", body), "config.json": tmp_path / "config.json"}
    repository(monkeypatch, files)
    files["config.json"].write_text(
        json.dumps({"pretrained_cfg": TIMM["pretrained_cfg"] | {"input_size": [3, 24, 24]}})
    )
    with pytest.raises(UserError, match="does not fit: a crop of 24 pixels is too small"):
        hub.load("hf://me/mine")
    files["config.json"].write_text(
        json.dumps({"pretrained_cfg": TIMM["pretrained_cfg"] | {"input_size": [3, 96, 96]}})
    )
    weights = hub.load("hf://me/mine")[1]
    assert (weights.crop, weights.training_scales, weights.num_classes) == (96, (120, 120), 0)


def test_labels_that_are_not_unique_are_titles_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("VGG_JAX_CACHE", str(tmp_path / "cache"))
    files = {"model.safetensors": write_pth(tmp_path / "a.pth", as_laid_out(random_params(), "torchvision"))}
    files["config.json"] = tmp_path / "config.json"
    files["config.json"].write_text(json.dumps(TIMM | {"label_names": ["crane", "crane", "c", "d", "e"]}))
    repository(monkeypatch, files)
    path, weights = hub.load("hf://me/mine")
    assert (weights.class_names, weights.class_titles) == (None, ["crane", "crane", "c", "d", "e"])
    assert hub.load("hf://me/mine")[1].class_titles == weights.class_titles
    assert load_trained(path).class_titles == weights.class_titles


def test_a_contradiction_between_a_file_and_the_hub_is_refused(tmp_path, monkeypatch):
    tensors, expected = to_torchvision(some_weights())
    write_safetensors(tmp_path / "a.safetensors", tensors, {EXPORTED_KEY: json.dumps(expected._asdict())})
    (tmp_path / "config.json").write_text(json.dumps(TIMM))
    repository(
        monkeypatch,
        {name: tmp_path / file for name, file in (("model.safetensors", "a.safetensors"), ("config.json",) * 2)},
    )
    monkeypatch.setenv("VGG_JAX_CACHE", str(tmp_path / "cache"))
    with pytest.raises(UserError, match=r"config.json next to it says \[0.5, 0.4, 0.3\]"):
        hub.load("hf://me/mine")


def test_a_file_of_the_hub_is_hashed_once(tmp_path, monkeypatch):
    path, hashed = write_pth(tmp_path / "a.pth", as_laid_out(random_params(), "timm")), []
    monkeypatch.setenv("VGG_JAX_CACHE", str(tmp_path / "cache"))
    repository(monkeypatch, {"model.safetensors": path})
    original = containers.sha256_and_md5
    monkeypatch.setattr(containers, "sha256_and_md5", lambda file: (hashed.append(file), original(file))[1])
    for name in ("hf://timm/vgg16.x", "timm/vgg16.x", "https://huggingface.co/timm/vgg16.x"):
        file, weights = hub.load(name)
        assert weights.configuration == "D"
    assert hashed == [path] * 3
    assert list(hub.cache_dir().iterdir()) == [file]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("timm/vgg16.tv_in1k", ("timm/vgg16.tv_in1k", None, "model.safetensors")),
        ("hf://me/net@refs/pr/1", ("me/net", "refs/pr/1", "model.safetensors")),
        ("hf://me/net@refs/pr/1/a/b.safetensors", ("me/net", "refs/pr/1", "a/b.safetensors")),
        ("hf://me/net@v1/b.pth", ("me/net", "v1", "b.pth")),
        ("https://huggingface.co/me/net", ("me/net", None, "model.safetensors")),
        ("https:/hf.co/me/net/", ("me/net", None, "model.safetensors")),  # as pathlib writes it
        ("huggingface.co/me/net/tree/main", ("me/net", None, "model.safetensors")),
        ("https://huggingface.co/me/net/tree/refs/pr/1", ("me/net", "refs/pr/1", "model.safetensors")),
        ("https://huggingface.co/me/net/blob/v2/sub/x.bin?download=true", ("me/net", "v2", "sub/x.bin")),
    ],
)
def test_addresses_revisions_and_bare_names_of_the_hub_are_understood(name, expected, monkeypatch):
    asked = []

    def download(repository, file, revision):
        asked.append((repository, revision, file))
        raise ValueError("not today")

    monkeypatch.setitem(sys.modules, "huggingface_hub", types.SimpleNamespace(hf_hub_download=download))
    assert hub.is_name(name)
    with pytest.raises(UserError, match="not today"):
        hub.load(name)
    assert asked == [expected]


def test_a_directory_named_like_a_repository_is_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("timm/run").mkdir(parents=True)
    assert hub.load("timm/run") == (Path("timm/run"), None)


def test_cached_files_are_not_trusted(published, capsys):
    file, cached = hub.load("torchvision:vgg16")[0], hub.fetch("torchvision:vgg16")
    for path in (file, cached):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    assert hub.load("torchvision:vgg16")[1].configuration == "D"
    said = capsys.readouterr().err
    assert f"{cached} has the SHA-256" in said
    assert "it is fetched again" in said
    assert "it is made again" in said
    assert len(published.asked) == 2


def test_a_name_serves_wherever_a_file_does(published, tmp_path):
    name = "torchvision:vgg16"
    trained = vgg_jax.load(name)
    assert features.activations(trained, np.zeros((1, 64, 64, 3), np.float32), ("relu1_1",))["relu1_1"].shape[0] == 1
    assert "fc8" in read_donor(name).variables["params"]
    for i in range(5):
        folder = tmp_path / "images" / "validation" / f"class {i}"
        folder.mkdir(parents=True)
        render(i)[0].save(folder / "a.jpg")
    data = {"data_name": "folder", "data_root": str(tmp_path / "images"), "data_dir": str(tmp_path / "data")}
    request = Request(workdirs=(), weights=(name,), protocol="center_crop", scales="73", **data)
    assert 0 <= evaluate(request, quiet=True)["rows"][0]["top1_error"] <= 1
    assert len(published.asked) == 1


@pytest.mark.parametrize(
    ("harm", "sentence"),
    [
        (lambda server: server.files.clear(), "(HTTP Error 404: Not Found); try again with a connection"),
        (lambda server: setattr(server, "cut", 1000), "it ended after 1,000 of "),
        (lambda server: server.files.update({"/vgg16.pth": b"login, please"}), "but "),
        (lambda server: server.server_close(), "Connection refused"),
    ],
)
def test_a_failed_download_is_reported_and_leaves_nothing(published, harm, sentence):
    harm(published)
    if sentence == "Connection refused":
        published.shutdown()
    with pytest.raises(UserError) as raised:
        hub.load("torchvision:vgg16")
    assert sentence in str(raised.value)
    assert "torchvision:vgg16" in str(raised.value)
    assert not list(hub.cache_dir().iterdir())


def test_a_name_that_needs_a_flag_is_told_which_command_has_it(tmp_path, monkeypatch):
    path = write_pth(tmp_path / "a.pth", as_laid_out(random_params(), "torchvision"))
    monkeypatch.setenv("VGG_JAX_CACHE", str(tmp_path / "cache"))
    repository(monkeypatch, {"model.safetensors": path})
    said = "say it with --preprocessing=torchvision .*: vgg-jax convert hf://me/mine FILE.safetensors has this flag"
    with pytest.raises(UserError, match=said):
        hub.load("hf://me/mine")


def test_where_a_file_may_only_be_read_its_evaluations_are_kept_with_what_is_fetched(tmp_path, monkeypatch):
    save_weights(tmp_path / "a.safetensors", some_weights())
    assert load_trained(tmp_path / "a.safetensors").workdir == tmp_path / "a"
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert load_trained(tmp_path / "a.safetensors").workdir.parent == hub.cache_dir() / "evaluations"


def test_a_file_of_the_package_has_a_name(tmp_path, monkeypatch, server):
    file = tmp_path / "a.safetensors"
    save_weights(file, some_weights())
    monkeypatch.setitem(hub.BUILTIN, "builtin:a", file)
    assert (hub.fetch("builtin:a"), hub.load("builtin:a")[0]) == (file, file)
    trained = load_trained("builtin:a")
    assert trained.workdir.parent == hub.cache_dir() / "evaluations", "nothing is written next to the package's files"
    with pytest.raises(UserError, match="Did you mean 'builtin:a'. There are .*builtin:a, .*torchvision:vgg11,"):
        hub.fetch("builtin:b")
    assert server.asked == []


def test_unknown_names_are_answered_with_those_there_are(server):
    with pytest.raises(UserError, match="Did you mean 'torchvision:vgg16'. There are torchvision:vgg11,"):
        hub.fetch("torchvision:vgg166")
    with pytest.raises(UserError, match="hf://OWNER/REPOSITORY, as hf://timm/"):
        hub.fetch("hf://vgg16")
    assert not hub.is_name("runs/vgg16")
    assert hub.load("vgg16.safetensors") == (Path("vgg16.safetensors"), None)
    assert server.asked == []


def test_published_sums_are_those_of_the_document():
    text = (REPOSITORY / "docs" / "weights.md").read_text()
    for source in hub.SOURCES.values():
        assert source.url.rpartition("/")[2] in text
        assert source.sha256[:8] in text
        assert source.md5 in text


def command(server, tmp_path, *arguments, **environment):
    environment = os.environ | {
        "HF_ENDPOINT": server.url.rstrip("/"),
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        **environment,
    }
    return subprocess.run(
        [sys.executable, "-m", "vgg_jax", *map(str, arguments)],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.slow
def test_a_repository_of_the_hub_serves_by_its_name_also_without_a_network(server, tmp_path):
    huggingface_hub = pytest.importorskip("huggingface_hub")
    weights = some_weights("A")
    file = write_hub_folder(tmp_path / "folder", weights)
    card = huggingface_hub.ModelCard.load(tmp_path / "folder" / "README.md")
    assert card.data.pipeline_tag == "image-classification"
    assert "arxiv.org/abs/1409.1556)): VGG A, written by vgg_jax" in card.text
    server.files["/me/model/resolve/main/model.safetensors"] = file.read_bytes()
    render(0)[0].save(tmp_path / "image.png")
    ask = ("predict", "--weights=hf://me/model", f"--json={tmp_path / 'found.json'}", tmp_path / "image.png")
    first = command(server, tmp_path, *ask)
    assert first.returncode == 0, first.stderr
    offline = command(server, tmp_path, *ask, HF_HUB_OFFLINE="1")
    assert (offline.returncode, offline.stdout) == (0, first.stdout)
    assert len(json.loads((tmp_path / "found.json").read_text())["predictions"]) == 1

    blob = next((tmp_path / "hf").rglob("model.safetensors")).resolve()
    content = bytearray(blob.read_bytes())
    content[len(content) // 2] ^= 1
    blob.write_bytes(content)
    damaged = command(server, tmp_path, *ask, HF_HUB_OFFLINE="1")
    assert damaged.returncode == 2
    assert "was published; delete" in damaged.stderr
    for name in ("hf://me/other", "hf://me/model/other.safetensors"):
        missing = command(server, tmp_path, "convert", name, tmp_path / "x.safetensors")
        assert missing.returncode == 2
        assert missing.stderr.startswith(f"error: {name}: ")
        assert missing.stderr.count("\n") == 1
        assert "could not be fetched from the hub" in missing.stderr


def test_a_folder_for_the_hub_from_the_command_line(server, tmp_path):
    trained = write_hub_folder(tmp_path / "given", some_weights("A"))
    done = command(server, tmp_path, "convert", trained, tmp_path / "folder", "--to=hf")
    assert done.returncode == 0, done.stderr
    assert f"upload it with: hf upload OWNER/REPOSITORY {tmp_path / 'folder'}" in done.stdout
    assert sorted(path.name for path in (tmp_path / "folder").iterdir()) == ["README.md", "model.safetensors"]
    again = command(server, tmp_path, "convert", trained, tmp_path / "folder", "--to=hf")
    assert again.returncode == 2
    assert "is a directory" in again.stderr
    assert server.asked == []


def test_a_missing_client_is_answered_with_the_command_that_brings_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=r"not installed: pip install 'vgg-jax\[hub\]'"):
        hub.fetch("hf://timm/vgg16.tv_in1k")
