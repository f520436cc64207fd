"""Published weights by name: fetched where a name asks for it, checked against what was published, and kept.

builtin:vgg-cifar10         in this package, trained by it (weights/builtin)
hf://timm/vgg16.tv_in1k     a repository of the Hugging Face hub; also hf://OWNER/REPOSITORY@REVISION/FILE,
                            its address, and timm/NAME
torchvision:vgg16           vgg11 to vgg19, vgg11_bn to vgg19_bn, resnet18 to resnet152
keras:vgg16                 vgg16, vgg19
"""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from vgg_jax.runtime.console import bytes_progress, print_error
from vgg_jax.runtime.exceptions import UserError, did_you_mean, first_line, writing_to
from vgg_jax.runtime.files import write_atomically
from vgg_jax.weights import containers, imports
from vgg_jax.weights.file import SUFFIX, Weights, is_own, load_weights, save_weights
from vgg_jax.weights.model_config import FILES, ModelConfig, parse
from vgg_jax.weights.tensors import WeightsError

_HUB = "hf://"
_REVISION = r"(?P<revision>refs/(?:pr|heads|tags|convert)/[\w.-]+|[\w.-]+)"
_HUB_NAME = re.compile(rf"hf://(?P<repository>[\w.-]+/[\w.-]+)(?:@{_REVISION})?(?:/(?P<file>.+))?")
# What a browser shows of a repository or of a file in it; pathlib makes one slash of two.
_ADDRESS = re.compile(
    r"(?:https?:/{1,2})?(?:www\.)?(?:huggingface\.co|hf\.co)/(?P<repository>[\w.-]+/[\w.-]+?)/?"
    rf"(?:/(?:tree|blob|resolve)/{_REVISION}(?:/(?P<file>[^?#]+))?)?/?(?:[?#].*)?"
)
_TIMM = re.compile(r"timm/[\w.-]+")
_SECONDS = 30  # without a byte, after which a connection counts as broken


class Source(NamedTuple):
    """A file that its makers publish, and its checksum: hexadecimal, "" for none.

    The checksums of weights stand in their makers' own code.
    """

    url: str
    sha256: str = ""  # its first digits
    md5: str = ""
    file: str = ""  # its name in the cache; "" as in the address


_TORCHVISION, _KERAS = (
    "https://download.pytorch.org/models/",
    "https://storage.googleapis.com/tensorflow/keras-applications/",
)
_ENDING = "_weights_tf_dim_ordering_tf_kernels.h5"
SOURCES: dict[str, Source] = {
    **{
        f"torchvision:{name.partition('-')[0]}": Source(f"{_TORCHVISION}{name}.pth", sha256=name.partition("-")[2])
        for name in imports.TORCHVISION
    },
    "keras:vgg16": Source(f"{_KERAS}vgg16/vgg16{_ENDING}", md5="64373286793e3c8b2b4e3219cbf3544b"),
    "keras:vgg19": Source(f"{_KERAS}vgg19/vgg19{_ENDING}", md5="cbe5617147190e668d6c5d5026f83318"),
}

# Weights in this package.
BUILTIN = {f"builtin:{path.stem}": path for path in sorted((Path(__file__).parent / "builtin").glob(f"*{SUFFIX}"))}

LPIPS = "lpips:vgg"
# Calibrated weights of LPIPS 0.1: of the package `lpips` 0.1.4 (BSD), as its wheel has them too.
HEADS = {
    LPIPS: Source(
        "https://raw.githubusercontent.com/richzhang/PerceptualSimilarity/master/lpips/weights/v0.1/vgg.pth",
        sha256="a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868",
        file="lpips-v0.1-vgg.pth",
    )
}


def is_name(source: str | os.PathLike) -> bool:
    """Returns whether this names published weights, rather than a file or a run; an existing path wins over a name."""
    is_like_one = str(source).startswith((_HUB, "builtin:", "torchvision:", "keras:")) or canonical(source) != str(
        source
    )
    return is_like_one and not Path(source).exists()


def canonical(source: str | os.PathLike) -> str:
    """Returns a name in its usual form: hf://OWNER/REPOSITORY@REVISION/FILE for the hub's addresses and timm/NAME."""
    text = str(source)
    if match := _ADDRESS.fullmatch(text):
        revision, file = match["revision"] or "", match["file"] or ""
        return _HUB + match["repository"] + f"@{revision}" * (revision not in ("", "main")) + f"/{file}" * bool(file)
    return _HUB + text if _TIMM.fullmatch(text) and not Path(text).exists() else text


def cache_dir() -> Path:
    """Returns the cache of fetched files: $VGG_JAX_CACHE, else vgg_jax in the user's cache directory."""
    own, general = os.environ.get("VGG_JAX_CACHE"), os.environ.get("XDG_CACHE_HOME")
    return Path(own or Path(general or "~/.cache") / "vgg_jax").expanduser()


def fetch(name: str) -> Path:
    """Returns the published file of a name; fetches it unless it is cached.

    Raises:
      UserError: an unknown name, no connection, no such file there, another checksum than was published, no space.
    """
    return _fetch(canonical(name))[0]


def fetch_heads(source: str | os.PathLike) -> Path:
    """Returns the file of calibrated weights: a path, or one of HEADS, which is fetched unless it is cached.

    Raises:
      UserError: as `fetch`.
    """
    path = Path(source).expanduser()
    return path if path.exists() or str(source) not in HEADS else _fetched(str(source), HEADS[str(source)])[0]


def _fetch(name: str) -> tuple[Path, str]:
    """Returns the published file of a name and its SHA-256."""
    if name.startswith(_HUB):
        return _from_hub(name)
    if name in BUILTIN:
        return BUILTIN[name], containers.sha256_and_md5(BUILTIN[name])[0]
    if name not in SOURCES:
        known = [*BUILTIN, *SOURCES]
        raise UserError(
            f"{name} names no published weights.{did_you_mean(name, known)} There are {', '.join(known)}, and "
            "hf://OWNER/REPOSITORY."
        )
    return _fetched(name, SOURCES[name])


def _fetched(name: str, source: Source) -> tuple[Path, str]:
    """Returns the published file of a source, from the cache or fetched, and its SHA-256."""
    path = cache_dir() / (source.file or source.url.rpartition("/")[2])
    if path.is_file():
        sha256, fault = _checked(path, source)
        if not fault:
            return path, sha256
        print_error(f"{path} {fault}; it is fetched again.")
    return path, _download(name, source, path)


def load(source: str | os.PathLike) -> tuple[Path, Weights | None]:
    """Reads a weights file, or a name's, which is fetched and converted once; what was converted is then read alone.

    Returns:
      The file of this project's format, and its weights; None for a path that is not a file, as a run's.

    Raises:
      UserError: as `fetch`, `load_weights` and `imports.import_weights` do.
    """
    if not is_name(source):
        path = Path(source).expanduser()
        return path, load_weights(path) if path.is_file() else None
    name = canonical(source)
    if name in SOURCES:
        fetched, sha256, key = None, "", (SOURCES[name].sha256 or SOURCES[name].md5)[:8]
    else:
        fetched, sha256 = _fetch(name)
        if is_own(fetched):
            return fetched, load_weights(fetched)
        key = sha256[:8]
    path = cache_dir() / ("-".join([*re.findall(r"[\w.]+", name), key]) + SUFFIX)
    if path.is_file():
        try:
            return path, load_weights(path)
        except UserError as error:
            print_error(f"{str(error).rstrip('.')}; it is made again.")
    return path, _converted(name, path, *((fetched, sha256) if fetched else _fetch(name)))


def _converted(name: str, path: Path, fetched: Path, sha256: str) -> Weights:
    """Converts a fetched file, and keeps the result at `path`."""
    try:
        digests = imports.Digests(sha256, _md5(name))
        weights, description = imports.import_weights(fetched, digests, config=model_config_of(name))
    except UserError as error:
        if "--preprocessing" not in str(error):
            raise
        raise UserError(
            f"{str(error).rstrip('.')}: vgg-jax convert {name} FILE{SUFFIX} has this flag, and FILE{SUFFIX} then "
            "stands for it."
        ) from error
    print_error(f"{name}: {description}; kept as {path}")
    with write_atomically(path, _REMEDY) as unfinished:
        save_weights(unfinished, weights)
    return weights


def _md5(name: str) -> str:
    """Returns the MD5 that the file of a name was found to have."""
    return SOURCES[name].md5 if name in SOURCES else ""


_REMEDY = "free some space, or choose another place with VGG_JAX_CACHE"


def _checked(path: Path, source: Source) -> tuple[str, str]:
    """Returns a fetched file's SHA-256 and its fault, "" for none."""
    sha256, md5 = containers.sha256_and_md5(path)
    if not sha256.startswith(source.sha256):
        return sha256, f"has the SHA-256 {sha256}, but {source.sha256}... was published"
    if source.md5 and md5 != source.md5:
        return sha256, f"has {f'the MD5 {md5}' if md5 else 'no HDF5 in it'}, but the MD5 {source.md5} was published"
    return sha256, ""


def _download(name: str, source: Source, path: Path) -> str:
    """Writes the file, whole and checked, or not at all; returns its SHA-256."""
    with write_atomically(path, _REMEDY) as unfinished:
        with open(unfinished, "wb") as file, _connection(name, source.url) as response:
            told = response.headers.get("Content-Length") or ""
            length = int(told) if re.fullmatch(r"[0-9]{1,15}", told) else None  # the checksum decides, whatever it says
            print_error(f"{name}: fetching {source.url}{f' ({length / 1e6:,.0f} MB)' if length else ''}")
            with bytes_progress(length) as add_bytes:
                while block := response.read(2**20):
                    # Here too, so that a full disk is not taken for the connection.
                    with writing_to(path, _REMEDY):
                        file.write(block)
                    add_bytes(len(block))
            if length is not None and file.tell() != length:
                raise ConnectionError(f"it ended after {file.tell():,} of {length:,} bytes")
        sha256, fault = _checked(unfinished, source)
        if fault:
            raise UserError(
                f"{name}: the file from {source.url} {fault}; it was thrown away. Try again, or from another network."
            )
    return sha256


@contextlib.contextmanager
def _connection(name: str, url: str) -> Iterator[http.client.HTTPResponse]:
    """Opens an address; whatever goes wrong with the connection within becomes a UserError."""
    try:
        with urllib.request.urlopen(url, timeout=_SECONDS) as response:
            yield response
    # Urllib's own errors are OSErrors.
    except (OSError, http.client.HTTPException) as error:
        reason = error if isinstance(error, urllib.error.HTTPError) else getattr(error, "reason", error)
        raise UserError(
            f"{name} could not be fetched from {url} ({reason}); try again with a connection, or bring the file from "
            "elsewhere and name it: docs/weights.md says what is published where."
        ) from error


def model_config_of(source: str | os.PathLike) -> ModelConfig | None:
    """Returns what the files next to the weights of a name on the hub say; None where there are none.

    Raises:
      UserError: they cannot be fetched, or cannot be.
    """
    name = canonical(source)
    if not name.startswith(_HUB):
        return None
    texts = []
    for file in FILES:
        path = _hub_file(name, file)
        if path:
            texts.append(path.read_text(encoding="utf-8", errors="replace")[: 2**22])
    try:
        return parse(texts) if texts else None
    except WeightsError as error:
        raise UserError(f"{name}: {error}; fetch the file, and convert it with flags.") from error


def _hub_file(name: str, sibling: str = "") -> Path | None:
    """Returns the file of a name on the hub, or the file `sibling` in its directory; None where that is missing."""
    match = _HUB_NAME.fullmatch(name)
    if match is None:
        raise UserError(f"{name} is no name on the hub; write hf://OWNER/REPOSITORY, as hf://timm/vgg16.tv_in1k.")
    try:
        import huggingface_hub
    except ImportError as error:
        raise UserError(
            f"{name} is fetched with huggingface_hub, which is not installed: pip install 'vgg-jax[hub]', or pip "
            "install huggingface_hub."
        ) from error
    file = match["file"] or "model.safetensors"
    if sibling:
        file = str(PurePosixPath(file).with_name(sibling))
    try:
        return Path(huggingface_hub.hf_hub_download(match["repository"], file, revision=match["revision"]))
    # Of many kinds: of the hub, of HTTP, of the disk.
    except Exception as error:
        if sibling and _is_missing(error):
            return None
        raise UserError(
            f"{name}: {file} could not be fetched from the hub ({first_line(error).rstrip('.')}); mend the name, or "
            "try again with a connection, or bring the file from elsewhere and name it."
        ) from error


def _is_missing(error: Exception) -> bool:
    """Returns whether the hub's client says that there is no such file in a repository."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status == 404 or "EntryNotFoundError" in {kind.__name__ for kind in type(error).__mro__}


def _from_hub(name: str) -> tuple[Path, str]:
    """Returns the file of a name on the hub, and its SHA-256."""
    path = _hub_file(name)
    assert path is not None
    # The hub's client keeps a large file under its published SHA-256, which it does not compare with the bytes.
    published, digest = path.resolve().name, containers.sha256_and_md5(path)[0]
    if re.fullmatch("[0-9a-f]{64}", published) and digest != published:
        raise UserError(
            f"{name}: {path} has the SHA-256 {digest}, but {published} was published; delete {path.resolve()} and try "
            "again."
        )
    return path, digest
