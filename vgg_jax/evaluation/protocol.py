"""The paper's test protocol, from runs to a table (Paper §3.2, §4): read top to bottom."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from vgg_jax.console import Console, duration
from vgg_jax.data.crops import rescaled, rescaled_size
from vgg_jax.data.decode import size_of
from vgg_jax.data.sources import expanded, open_split, prepared_data
from vgg_jax.distributed import is_primary, primary_first
from vgg_jax.evaluation import maps, paper, results
from vgg_jax.evaluation.compute import Costs, reading
from vgg_jax.evaluation.nets import Net, load_net, load_weights_net
from vgg_jax.evaluation.posteriors import UNLABELLED, Source, directory, posteriors_of
from vgg_jax.evaluation.store import Posteriors
from vgg_jax.evaluation.views import PROTOCOLS, View, paper_scales, views
from vgg_jax.exceptions import UserError, writing_to
from vgg_jax.files import write_json
from vgg_jax.provenance import environment
from vgg_jax.weights import hub

_LONGEST_MAP = 8  # times Q: pictures longer than that are not drawn


class Request(NamedTuple):
    """What is to be evaluated, and how; "" and 0 leave it to the nets' own configuration."""

    workdirs: tuple[str, ...]
    protocol: str = "dense"
    scales: str = ""  # see `views.test_scales`
    split: str = ""
    data_name: str = ""
    data_dir: str = ""
    data_root: str = ""
    batch_size: int = 0  # see `compute.Computer`
    dtype: str = ""
    maps: str = ""  # a directory for score maps; "" draws none
    num_maps: int = 8
    class_numbers: str = ""  # a file, see `results.class_numbers`
    output: str = ""  # a file for the results; "" beside the posteriors
    weights: tuple[
        str, ...
    ] = ()  # files, see `weights.file`, or names, see `weights.hub`; they come after the workdirs


def evaluate(request: Request, quiet: bool = False) -> dict[str, Any]:
    """Evaluates one net or several fused; posteriors that are on the disk already are not computed again.

    Returns:
      What the results file says: the rows of the table and everything needed to repeat them.

    Raises:
      UserError: anything that only the user can put right. What was computed before is kept.
    """
    began = time.monotonic()
    console = Console(quiet or not is_primary())

    # Which nets, on which pictures, how; refused here if they do not go together.
    nets = [load_net(Path(workdir), request.dtype) for workdir in request.workdirs]
    nets += [load_weights_net(hub.weights_file(file), request.dtype) for file in request.weights]
    for net in nets[1:]:
        _check_same_classes(nets[0], net)
    wanted = [views(net.config, request.protocol, request.scales) for net in nets]
    numbers = _class_numbers(request, nets[0])
    source = primary_first(lambda: opened(request, nets[0], console))
    output = _output(request, nets, source)
    for place, flag in ((output.parent, "--json"), (request.maps and Path(request.maps).expanduser(), "--maps")):
        if place:
            with writing_to(place, f"choose another {flag}"):
                place.mkdir(parents=True, exist_ok=True)
    console.print(_heading(nets, wanted, source))

    # Posteriors of every view, from the disk or computed.
    costs = Costs()
    found = []
    for number, (net, its_views) in enumerate(zip(nets, wanted, strict=True), start=1):
        which = f"net {number} of {len(nets)}, " if len(nets) > 1 else ""
        found.append(posteriors_of(net, its_views, source, request.batch_size, costs, console, which))
    seconds = time.monotonic() - began

    # Means over scales, parts and nets.
    first = next(iter(found[0].values()))
    refused = np.any([view.refused for of_net in found for view in of_net.values()], 0)
    summary: dict[str, Any] = {
        "rows": [],
        "refused": [str(key) for key in first.keys[refused]],
        "request": request._asdict(),
        "data": {"name": source.data, "split": source.split, "images": len(first.keys)},
        "nets": [_description(net, its_views) for net, its_views in zip(nets, wanted, strict=True)],
        "computing": {**vars(costs), "seconds": round(seconds, 1), "kept_from_before": costs.computed == 0},
        **environment(),
    }
    if refused.any():
        console.print(
            f"WARNING: {refused.sum()} of {len(refused)} pictures are too large once rescaled and count as wrong: "
            f"{', '.join(summary['refused'][:10])}{', ...' if refused.sum() > 10 else ''}"
        )
    finite = np.all([np.isfinite(view.posteriors).all(-1) for of_net in found for view in of_net.values()], 0)
    summary["not_finite"] = [str(key) for key in first.keys[~finite]]
    if not finite.all():
        console.print(
            f"WARNING: the scores of {(~finite).sum()} of {len(finite)} pictures are not finite, and these count as wrong: "
            f"{', '.join(summary['not_finite'][:10])}{', ...' if (~finite).sum() > 10 else ''}"
        )
    if (first.labels < 0).all():
        summary["submission"] = _submit(request, numbers, found, first.keys, output, console)
    else:
        rows = _rows(request, nets, wanted, found, refused, source)
        summary["rows"] = [row._asdict() | {"paper": row.paper and row.paper._asdict()} for row in rows]
        console.print(results.table(rows))
    if request.maps:
        summary["maps"] = _draw_maps(request, nets, wanted, source, first, console)
    if jax.process_index() == 0:
        write_json(output, summary)
    console.print(f"everything needed to repeat this: {output} ({duration(time.monotonic() - began)})")
    return summary


def opened(request: Request, net: Net, console: Console) -> Source:
    """The split: the run's validation split, or what was asked for.

    Raises:
      UserError: there is none, or it has classes that the net does not know.
    """
    own = net.config.data
    name, root = own.name, own.root
    if request.data_name or request.data_root:
        name, root = request.data_name or "folder", request.data_root
    if name == "folder" and not Path(root).expanduser().is_dir():
        raise UserError(
            f"there is no folder of pictures {root!r}; give one, laid out <split>/<class>/<picture>, with --data_root=DIR."
        )
    split = request.split or own.val_split
    try:
        data = prepared_data(name, expanded(request.data_dir or own.dir), root, splits={"split": split})
        records = open_split(data, split, "split")
    except UserError as error:  # which speaks of a training run's flags
        raise UserError(re.sub(r"(--)?config\.data\.(name|dir|root)", r"--data_\2", str(error))) from error
    class_names = data.class_names
    strange = sorted(set(class_names) - set(net.class_names))
    if strange and class_names != [UNLABELLED]:
        place, names = net.workdir, ""
        if net.checkpoint.is_file():  # weights from elsewhere may lack the names of their classes
            place, names = (
                net.checkpoint,
                ", or name its classes with: python -m vgg_jax.convert ... --class_names=FILE",
            )
        raise UserError(
            f"{data.name} has {len(strange)} classes that the net in {place} does not know, among them "
            f"{strange[0]!r}; evaluate it on pictures of the {len(net.class_names)} classes it was trained on "
            f"(--data_name, --data_root, --data_dir){names}."
        )
    return Source(data.name, split, records, class_names, console)


def _check_same_classes(first: Net, other: Net) -> None:
    if first.class_names == other.class_names:
        return
    only = sorted(set(first.class_names) ^ set(other.class_names))
    raise UserError(
        f"the nets in {first.workdir} and {other.workdir} were trained on different classes ({len(first.class_names)} and "
        f"{len(other.class_names)}; {only[0]!r} is in one of them only) and cannot be fused; give runs on the same data."
    )


def _heading(nets: list[Net], wanted: list[list[View]], source: Source) -> str:
    lines = [f"{source.data}, split {source.split}: {len(source.records):,} pictures"]
    for net, its_views in zip(nets, wanted, strict=True):
        scales: dict[str, list[str]] = {}
        for view in its_views:
            scales.setdefault(view.part, []).append(str(view.scale))
        what = "; ".join(f"{part} at Q = {', '.join(values)}" for part, values in scales.items())
        lines.append(
            f"VGG {net.config.model.configuration}, S {_training_scale(net)}, crop {net.config.image.crop}, "
            f"{net.config.model.dtype}, {net.checkpoint}: {what}"
        )
    return "\n".join(lines)


def _training_scale(net: Net) -> str:
    low, high = net.config.image.scale_min, net.config.image.scale_max
    return str(low) if low == high else f"{low} to {high}"


def _description(net: Net, its_views: Sequence[View]) -> dict[str, Any]:
    return {
        "checkpoint": str(net.checkpoint),
        "params_sha256": net.digest,
        "configuration": net.config.model.configuration,
        "S": [net.config.image.scale_min, net.config.image.scale_max],
        "dtype": net.config.model.dtype,
        "views": [view._asdict() for view in its_views],
    }


# Means, in the paper's order: posteriors over scales, then over dense and crops, then over nets (Paper §4.2 to §4.4).


def _over_scales(found: dict[View, Posteriors], part: str) -> np.ndarray:
    return results.average(kept.posteriors for view, kept in found.items() if view.part == part)


def _over_parts(found: dict[View, Posteriors], parts: Sequence[str]) -> np.ndarray:
    return results.average(_over_scales(found, part) for part in parts)


def _rows(
    request: Request,
    nets: list[Net],
    wanted: list[list[View]],
    found: list[dict[View, Posteriors]],
    refused: np.ndarray,
    source: Source,
) -> list[results.Row]:
    """Every average that the posteriors at hand allow: each scale, each part, both parts; each net, all nets."""
    parts = PROTOCOLS[request.protocol]
    labels = next(iter(found[0].values())).labels
    keys = [(net.config.model.configuration, paper.training_scales(net.config)) for net in nets]

    def row(which: list[int], protocol: str, scales: list[list[int]], posteriors: np.ndarray) -> results.Row:
        top1_error, top5_error = results.errors(posteriors, labels, refused)
        kinds = {_kind_of_scales(nets[i], its) for i, its in zip(which, scales, strict=True)}
        name = " + ".join(f"{nets[i].config.model.configuration} {nets[i].workdir.name}" for i in which)
        return results.Row(
            name if len(which) == 1 else f"fusion of {len(which)}",
            protocol,
            " | ".join(dict.fromkeys(",".join(map(str, its)) for its in scales)),
            len(labels),
            top1_error,
            top5_error if posteriors.shape[1] > 5 else None,
            paper.published(
                [keys[i] for i in which],
                protocol,
                kinds.pop() if len(kinds) == 1 else "",
                source.data,
                source.split,
            ),
        )

    def scales_of(i: int, part: str) -> list[int]:
        return [view.scale for view in wanted[i] if view.part == part]

    rows, everyone = [], list(range(len(nets)))
    for i in everyone:
        for part in parts:
            views_of_part = [view for view in wanted[i] if view.part == part]
            if len(views_of_part) > 1:
                rows += [row([i], part, [[view.scale]], found[i][view].posteriors) for view in views_of_part]
            rows.append(row([i], part, [scales_of(i, part)], _over_scales(found[i], part)))
        if len(parts) > 1:
            rows.append(row([i], request.protocol, [scales_of(i, parts[0])], _over_parts(found[i], parts)))
    if len(nets) > 1:
        for protocol, some in [*((p, (p,)) for p in parts), *([(request.protocol, parts)] if len(parts) > 1 else [])]:
            fused = results.average(_over_parts(of_net, some) for of_net in found)
            rows.append(row(everyone, protocol, [scales_of(i, some[0]) for i in everyone], fused))
    return rows


def _kind_of_scales(net: Net, scales: list[int]) -> str:
    """ "single" or "multi" where the scales are the paper's for this net, else ""."""
    return next((kind for kind in ("single", "multi") if paper_scales(net.config, "dense", kind) == scales), "")


# What is left behind.


def _output(request: Request, nets: list[Net], source: Source) -> Path:
    if request.output:
        return Path(request.output).expanduser()
    scales = re.sub(r"\W+", "_", request.scales) if request.scales else "default"
    dtype = "" if nets[0].config.model.dtype == "float32" else f"-{nets[0].config.model.dtype}"
    fusion = ""
    if len(nets) > 1:
        checkpoints = " ".join(sorted(str(net.checkpoint) for net in nets))
        fusion = f"-fusion-{hashlib.sha256(checkpoints.encode()).hexdigest()[:8]}"
    return directory(nets[0], source) / f"results-{request.protocol}{dtype}-{scales}{fusion}.json"


def _class_numbers(request: Request, net: Net) -> np.ndarray:
    listing = ""
    if request.class_numbers:
        try:
            listing = Path(request.class_numbers).expanduser().read_text(encoding="utf-8-sig")
        except (OSError, ValueError) as error:
            raise UserError(f"--class_numbers={request.class_numbers} cannot be read: {error}.") from error
    return results.class_numbers(net.class_names, listing, request.class_numbers)


def _submit(
    request: Request,
    numbers: np.ndarray,
    found: list[dict[View, Posteriors]],
    keys: np.ndarray,
    output: Path,
    console: Console,
) -> dict[str, str]:
    """Predictions for a split without labels, in the challenge's form."""
    fused = results.average(_over_parts(of_net, PROTOCOLS[request.protocol]) for of_net in found)
    path = output.with_suffix(".submission.txt")
    if jax.process_index() == 0:
        with writing_to(path.parent, "choose another --json"):
            unfinished = path.with_name(path.name + ".unfinished")
            unfinished.write_text(results.submission(fused, keys, numbers), encoding="utf-8")
            unfinished.replace(path)
    meaning = (
        f"numbers as in {request.class_numbers}"
        if request.class_numbers
        else "number n is the n-th class by sorted name. ILSVRC's development kit numbers classes otherwise: give its "
        "order with --class_numbers=FILE"
    )
    console.print(
        f"no labels, so no errors; five class numbers a picture, in the order of file names: {path} ({meaning})"
    )
    return {"file": str(path), "class_numbers": meaning}


def _draw_maps(
    request: Request, nets: list[Net], wanted: list[list[View]], source: Source, first: Posteriors, console: Console
) -> list[str]:
    """Score maps of the first net at its largest scale, for pictures spread evenly over the split."""
    net, place = nets[0], Path(request.maps).expanduser()
    scale = max(view.scale for view in wanted[0])
    variables = jax.device_get(net.variables)
    drawn = []
    with writing_to(place, "choose another --maps"):
        count = min(request.num_maps, len(first.keys))
        for index in np.unique(np.linspace(0, len(first.keys) - 1, count).round().astype(int)):
            size = reading(source.records, int(index), lambda encoded: rescaled_size(*size_of(encoded), scale))
            if max(size) > _LONGEST_MAP * scale:
                console.print(
                    f"no score map of {first.keys[index]}: {size[0]} x {size[1]} pixels are too long to look at"
                )
                continue
            picture = reading(source.records, int(index), lambda encoded: rescaled(encoded, scale))
            scores, posterior = maps.score_map(net, variables, picture)
            predicted, label = int(posterior.argmax()), int(first.labels[index])
            classes = [("predicted", predicted)] if label < 0 else [("true", label), ("predicted", predicted)]
            if predicted == label:
                classes = [("true and predicted", label), ("second", int(results.best(posterior[None])[0, 1]))]
            stem = re.sub(r"[^\w.=-]+", "_", str(first.keys[index]).rsplit(".", 1)[0])
            path = place / f"{index:06d}-{stem}.png"
            maps.draw(picture, scores, posterior, classes, net.class_names, net.config.image.crop).save(path)
            drawn.append(str(path))
    console.print(f"{len(drawn)} score maps at Q = {scale} in {place}")
    return drawn
