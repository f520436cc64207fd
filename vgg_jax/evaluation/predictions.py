"""What a net sees in pictures of one's own: the test protocol on files, one bad one among many left out and named."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from vgg_jax.data.crops import rescaled, rescaled_size
from vgg_jax.data.decode import DecodeError, check, size_of
from vgg_jax.errors import UserError, writing_to
from vgg_jax.evaluation import maps, results
from vgg_jax.evaluation.compute import MAX_PIXELS, Computer, Costs
from vgg_jax.evaluation.nets import Net
from vgg_jax.evaluation.views import PROTOCOLS, View, views
from vgg_jax.logbook import Screen

_SUFFIXES = {".jpg", ".jpeg", ".png", ".gif", ".bmp", ".webp", ".tif", ".tiff", ".ppm"}  # looked for in folders
_MOST_IMAGES = 64  # of the crop's size, a device, at once
_LONGEST_MAP = 8  # times Q: pictures longer than that are not drawn


class Prediction(NamedTuple):
    """Of one picture."""

    picture: Path
    classes: np.ndarray  # [n] int64, the likeliest first, five or all
    probabilities: np.ndarray  # [n] float64
    map: str  # the file of its score maps; "" for none


class Failure(NamedTuple):
    """A picture that was left out."""

    picture: Path
    reason: str


class _Files(Sequence):
    """Pictures as `data.records.Records` gives them: encoded, by number."""

    def __init__(self, paths: Sequence[Path]):
        self._paths = paths

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index):
        try:
            return {"image": self._paths[index].read_bytes(), "label": -1, "file_name": str(self._paths[index])}
        except OSError as error:
            raise UserError(f"{self._paths[index]} can no longer be read: {error.strerror or error}.") from error

    def place(self, index: int) -> str:
        return f"picture {index + 1} of {len(self)}"


def listed(arguments: Sequence[str]) -> list[Path]:
    """Files, all pictures in folders and below them (by their suffix), and what patterns match; in the order given.

    Raises:
      UserError: an argument that stands for no picture.
    """
    found: list[Path] = []
    for argument in arguments:
        path = Path(argument).expanduser()
        if path.is_dir():
            some = sorted(file for file in path.rglob("*") if file.suffix.lower() in _SUFFIXES and file.is_file())
            if not some:
                raise UserError(f"{argument}: there is no picture in this folder ({', '.join(sorted(_SUFFIXES))}).")
        elif path.exists() or not glob.has_magic(argument):
            some = [path]  # also where it is missing: reported with the others that cannot be read
        else:
            some = sorted(Path(name) for name in glob.glob(str(path), recursive=True) if Path(name).is_file())
            if not some:
                raise UserError(f"{argument}: no file matches this pattern.")
        found += some
    return list(dict.fromkeys(found))


def predict(
    net: Net,
    pictures: Sequence[Path],
    protocol: str,
    scales: str = "",
    batch_size: int = 0,
    maps_place: str = "",
    screen: Screen | None = None,
    titles: list[str] | None = None,
) -> tuple[list[Prediction], list[Failure]]:
    """Runs the test protocol (Paper §3.2, §4) on pictures.

    Args:
      net: of `nets.load_net` or `nets.load_weights_net`.
      pictures: files.
      protocol: a key of `views.PROTOCOLS`.
      scales: see `views.test_scales`; "" for the protocol's own.
      batch_size: images of the crop's size at once, over all devices; 0 for 64 a device, or as many as there are.
      maps_place: a directory for score maps, see `maps.draw`; "" draws none.
      screen: shows progress.
      titles: of all classes, to be written on the maps; None: their names.

    Returns:
      Predictions and failures, each in the order of the pictures.

    Raises:
      UserError: scales that cannot be, or a directory that cannot be written.
    """
    screen = screen or Screen(quiet=True)
    wanted = views(net.config, protocol, scales)
    if maps_place:
        with writing_to(maps_place, "choose another --maps"):
            Path(maps_place).expanduser().mkdir(parents=True, exist_ok=True)
    good, sizes, failures = _looked_through(pictures, max(view.scale for view in wanted))
    if not good:
        return [], failures
    records: Any = _Files(good)
    mean = _posteriors(net, wanted, protocol, records, sizes, batch_size, screen)
    best = results.best(mean)
    found = []
    params = jax.device_get(net.params) if maps_place else {}
    for i, picture in enumerate(good):
        drawn = ""
        if maps_place:
            place = Path(maps_place).expanduser() / f"{i:03d}-{picture.stem}.png"
            scale = max(view.scale for view in wanted)
            drawn = _draw(net, params, scale, records[i]["image"], mean[i], titles or net.class_names, place)
        found.append(Prediction(picture, best[i], mean[i, best[i]], drawn))
    return found, failures


def _looked_through(pictures: Sequence[Path], scale: int) -> tuple[list[Path], np.ndarray, list[Failure]]:
    """The sound pictures, their (width, height) [n, 2], and what is wrong with the others."""

    def look(path: Path) -> tuple[int, int] | str:
        try:
            encoded = path.read_bytes()
            check(encoded)
            size = size_of(encoded)
        except OSError as error:
            return error.strerror or str(error)
        except DecodeError as error:
            return str(error)
        width, height = rescaled_size(*size, scale)
        if width * height > MAX_PIXELS:
            return f"{width} x {height} pixels at Q = {scale}, too many"
        return size

    with ThreadPoolExecutor() as pool:
        found = list(pool.map(look, pictures))
    failures = [Failure(path, size) for path, size in zip(pictures, found, strict=True) if isinstance(size, str)]
    good = [(path, size) for path, size in zip(pictures, found, strict=True) if not isinstance(size, str)]
    return [path for path, _ in good], np.array([size for _, size in good], np.int64).reshape(-1, 2), failures


def _posteriors(
    net: Net,
    wanted: Sequence[View],
    protocol: str,
    records: Any,
    sizes: np.ndarray,
    batch_size: int,
    screen: Screen,
) -> np.ndarray:
    """The mean over parts of the means over scales, [N, K] float64."""
    by_part: dict[str, list[np.ndarray]] = {part: [] for part in PROTOCOLS[protocol]}
    screen.start(0, len(wanted) * len(records))
    done = 0
    for view in wanted:
        # No more slots than there are pictures, for an empty slot costs as much as a full one.
        shape = max(rescaled_size(int(width), int(height), view.scale) for width, height in sizes)
        largest = 1 if view.part != "dense" else -(-shape[0] * shape[1] // view.crop**2)
        enough = len(records) * view.per_picture() * largest
        most = batch_size or min(enough, _MOST_IMAGES * net.mesh.shape["data"])
        computer = Computer(net, most, net.config.data.threads, Costs())
        posteriors = np.zeros((len(records), len(net.class_names)), np.float32)
        for part in computer.posteriors(view, records, sizes, np.arange(len(records))):
            posteriors[part.indices] = part.posteriors
            done += len(part.indices)
            screen.progress(done, f"{view.part} at Q = {view.scale}")
        by_part[view.part].append(posteriors)
    screen.close()
    return results.average(results.average(parts) for parts in by_part.values())


def _draw(
    net: Net, params: dict, scale: int, encoded: bytes, posterior_K: np.ndarray, titles: list[str], place: Path
) -> str:
    """Score maps of the two likeliest classes over the picture; "" for one too long to look at.

    The maps are of the picture at one scale, not mirrored; the posteriors beside them are those that were predicted.
    """
    picture = rescaled(encoded, scale)
    if max(picture.shape) > _LONGEST_MAP * scale:
        return ""
    scores, _ = maps.score_map(net, params, picture)
    first, second = (int(i) for i in results.best(posterior_K[None])[0, :2])
    classes = [("predicted", first), ("second", second)]
    with writing_to(place, "choose another --maps"):
        maps.draw(picture, scores, posterior_K, classes, titles, net.config.image.crop).save(place)
    return str(place)
