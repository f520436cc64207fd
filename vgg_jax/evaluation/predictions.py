"""What a net sees in pictures of one's own: the test protocol on files, one bad one among many left out and named."""

from __future__ import annotations

import glob
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from vgg_jax.console import Console
from vgg_jax.data.crops import rescaled, rescaled_size
from vgg_jax.data.decode import SUFFIXES, DecodeError, check, read_file, size_of
from vgg_jax.data.folder import files_below, is_named_like_a_picture, left_out_line
from vgg_jax.evaluation import maps, results
from vgg_jax.evaluation.compute import MAX_PIXELS, Computer, Costs, Part
from vgg_jax.evaluation.nets import Net
from vgg_jax.evaluation.views import PROTOCOLS, View, views
from vgg_jax.exceptions import UserError, writing_to

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

    def __getitem__(self, index: Any) -> Any:
        try:
            return {"image": read_file(self._paths[index]), "label": -1, "file_name": str(self._paths[index])}
        except (OSError, DecodeError) as error:
            raise UserError(f"{self._paths[index]} can no longer be read: {error}.") from error

    def place(self, index: int) -> str:
        return f"picture {index + 1} of {len(self)}"


def listed(arguments: Sequence[str], say: Callable[[str], None] = print) -> list[Path]:
    """Files, all pictures in folders and below them (by their suffix), and what patterns match; in the order given.

    Args:
      arguments: files, folders, patterns.
      say: is given a line that counts and names what a folder holds beside.

    Raises:
      UserError: an argument that stands for no picture.
    """
    found: list[Path] = []
    for argument in arguments:
        path = Path(argument).expanduser()
        if path.is_dir():
            files = list(files_below(path))
            some = [file for file in files if is_named_like_a_picture(file) and file.is_file()]
            taken = set(some)
            if left_out := [file for file in files if file not in taken]:
                say(left_out_line(path, left_out))
            if not some:
                raise UserError(f"{argument}: there is no picture in this folder ({', '.join(SUFFIXES)}).")
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
    console: Console | None = None,
    titles: list[str] | None = None,
    done: Callable[[Prediction], None] = lambda prediction: None,
) -> tuple[list[Prediction], list[Failure]]:
    """Runs the test protocol (Paper §3.2, §4) on pictures.

    Args:
      net: of `nets.load_net` or `nets.load_weights_net`.
      pictures: files.
      protocol: a key of `views.PROTOCOLS`.
      scales: see `views.test_scales`; "" for the protocol's own.
      batch_size: images of the crop's size at once, over all devices; 0 for 64 a device, or as many as there are.
      maps_place: a directory for score maps, see `maps.draw`; "" draws none.
      console: shows progress.
      titles: of all classes, to be written on the maps; None: their names.
      done: is given each prediction as soon as it is made, in whatever order is cheapest.

    Returns:
      Predictions and failures, each in the order of the pictures.

    Raises:
      UserError: scales that cannot be, or a directory that cannot be written.
    """
    console = console or Console(quiet=True)
    wanted = views(net.config, protocol, scales)
    if maps_place:
        with writing_to(maps_place, "choose another --maps"):
            Path(maps_place).expanduser().mkdir(parents=True, exist_ok=True)
    good, sizes, failures = _looked_through(pictures, max(view.scale for view in wanted))
    if not good:
        return [], failures
    records: Any = _Files(good)
    variables = jax.device_get(net.variables) if maps_place else {}
    scale = max(view.scale for view in wanted)
    predictions: dict[int, Prediction] = {}
    for i, posterior_K in _posteriors(net, wanted, protocol, records, sizes, batch_size, console):
        if not np.isfinite(posterior_K).all():
            failures.append(Failure(good[i], "the net's scores of it are not finite"))
            continue
        drawn = ""
        if maps_place:
            place = Path(maps_place).expanduser() / f"{i:03d}-{good[i].stem}.png"
            drawn = _draw(net, variables, scale, records[i]["image"], posterior_K, titles or net.class_names, place)
        (best,) = results.best(posterior_K[None])
        predictions[i] = Prediction(good[i], best, posterior_K[best], drawn)
        done(predictions[i])
    return [predictions[i] for i in sorted(predictions)], failures


def _looked_through(pictures: Sequence[Path], scale: int) -> tuple[list[Path], np.ndarray, list[Failure]]:
    """The sound pictures, their (width, height) [n, 2], and what is wrong with the others."""

    def look(path: Path) -> tuple[int, int] | str:
        try:
            encoded = read_file(path)
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
    console: Console,
) -> Iterator[tuple[int, np.ndarray]]:
    """Yields (number of a picture, [K] float64: the mean over parts of the means over scales), each once it is whole.

    All views advance together, a batch of each in turn. The order of pictures is much the same in all of them.
    """
    streams = deque((view, _view_posteriors(net, view, records, sizes, batch_size)) for view in wanted)
    by_picture: dict[int, dict[View, np.ndarray]] = {i: {} for i in range(len(records))}
    console.start(0, len(records))
    count = 0
    try:
        while streams:
            view, stream = streams.popleft()
            part = next(stream, None)
            if part is None:
                continue
            streams.append((view, stream))
            for i, posterior_K in zip(part.indices.tolist(), part.posteriors, strict=True):
                by_picture[i][view] = posterior_K
                if len(by_picture[i]) < len(wanted):
                    continue
                of_picture = by_picture.pop(i)
                parts = [[of_picture[v] for v in wanted if v.part == part] for part in PROTOCOLS[protocol]]
                count += 1
                console.progress(count, "pictures")
                yield i, results.average(results.average(of_part) for of_part in parts)
    finally:
        console.close()


def _view_posteriors(net: Net, view: View, records: Any, sizes: np.ndarray, batch_size: int) -> Iterator[Part]:
    # No more slots than there are pictures, for an empty slot costs as much as a full one.
    shape = max(rescaled_size(int(width), int(height), view.scale) for width, height in sizes)
    largest = 1 if view.part != "dense" else -(-shape[0] * shape[1] // view.crop**2)
    enough = len(records) * view.per_picture() * largest
    most = batch_size or min(enough, _MOST_IMAGES * net.mesh.shape["data"])
    computer = Computer(net, most, net.config.data.threads, Costs())
    return computer.posteriors(view, records, sizes, np.arange(len(records)))


def _draw(
    net: Net, variables: dict, scale: int, encoded: bytes, posterior_K: np.ndarray, titles: list[str], place: Path
) -> str:
    """Score maps of the two likeliest classes over the picture; "" for one too long to look at.

    The maps are of the picture at one scale, not mirrored; the posteriors beside them are those that were predicted.
    """
    picture = rescaled(encoded, scale)
    if max(picture.shape) > _LONGEST_MAP * scale:
        return ""
    scores, _ = maps.score_map(net, variables, picture)
    first, second = (int(i) for i in results.best(posterior_K[None])[0, :2])
    classes = [("predicted", first), ("second", second)]
    with writing_to(place, "choose another --maps"):
        maps.draw(picture, scores, posterior_K, classes, titles, net.config.image.crop).save(place)
    return str(place)
