"""What the paper's test protocol is worth on given runs (Paper §4.1 to §4.4); Markdown on standard output.

    python -m benchmarks.evaluation_findings RUN [RUN ...]

Errors of every run by protocol, and of all runs fused. Differences are paired, over the same images: the mean of the
difference of top-1 errors, and 1.96 standard errors of it. Probabilities kept from before are used.

Below the table: the effect of a window's surroundings. The same crop-sized window is classified twice: as a crop,
with zero padding at its borders, as in training; and as one cell of a dense map, with 32 pixels of image around it.
"""

import sys
from pathlib import Path

import jax
import numpy as np

from vgg_jax.data.crops import center_crop
from vgg_jax.data.sources import expanded, prepared_data
from vgg_jax.data.splits import open_split
from vgg_jax.evaluation.passes import PROTOCOLS, eval_passes
from vgg_jax.evaluation.protocol import Request, evaluate
from vgg_jax.evaluation.results import average, top5_classes
from vgg_jax.evaluation.split import pass_name
from vgg_jax.evaluation.trained_model import load_trained
from vgg_jax.training.augment import normalize

# what, protocol, scales, dtype, and the row above that it is compared with
ROWS = (
    ("centre crop, Q = S", "center_crop", "single", "", None),
    ("dense, Q = S", "dense", "single", "", 0),
    ("dense, Q = S, bfloat16", "dense", "single", "bfloat16", 1),
    ("dense, three scales", "dense", "multi", "", 1),
    ("multi-crop, three scales", "multi_crop", "multi", "", 3),
    ("dense + multi-crop, three scales", "dense+multi_crop", "multi", "", 3),
    ("dense + multi-crop, three scales", "dense+multi_crop", "multi", "", 4),
)


def split_probs(run, protocol, scales, dtype):
    """Probabilities [N, K] and labels [N] of one run, computed now if need be."""
    evaluate(Request((run,), protocol, scales, dtype=dtype), quiet=True)
    trained = load_trained(Path(run), dtype)
    parts = {part: [] for part in PROTOCOLS[protocol]}
    for view in eval_passes(trained.recipe, protocol, scales):
        files = trained.workdir.glob(f"evaluation/{trained.checkpoint.name}/*/{pass_name(trained, view)}.npz")
        file = max(files, key=lambda path: path.stat().st_mtime)  # a split's name may not be a file's
        with np.load(file) as arrays:
            parts[view.method].append(arrays["probs"])
            labels = arrays["labels"]
    return average(average(part) for part in parts.values()), labels


def window_errors(run):
    """Top-1 errors of the central window of every image, at Q = crop + 64, as a place of the map and as a crop."""
    trained = load_trained(Path(run))
    data, crop = trained.recipe.data, trained.recipe.image.crop
    builder = prepared_data(data.name, expanded(data.dir), data.root)
    records = open_split(builder, data.val_split, "split")

    def places(params, images):
        return trained.model.apply(params, normalize(images, trained.statistics), endpoints=("score_map",))[1][
            "score_map"
        ]

    step, wrong = jax.jit(places), {"place": [], "crop": []}
    for index in range(len(records)):
        record = records[index]
        image = center_crop(record["image"], crop + 64, crop + 64)[None]
        for kind, pixels, cell in (("place", image, 1), ("crop", image[:, 32:-32, 32:-32], 0)):
            wrong[kind].append(int(step(trained.variables, pixels)[0, cell, cell].argmax()) != record["label"])
    return {kind: float(np.mean(mistakes)) for kind, mistakes in wrong.items()}


def main(runs):
    print("| models | protocol | images | top-1 error | top-5 error | top-1 against | difference |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    results = {run: [split_probs(run, *row[1:4]) for row in ROWS] for run in runs}
    names = {run: Path(run).name for run in runs}
    if len(runs) > 1:
        together = " + ".join(names.values())
        names[together] = together
        fused = [(average(results[run][i][0] for run in runs), results[runs[0]][i][1]) for i in range(len(ROWS))]
        results[together] = fused
    for run, rows in results.items():
        wrong: list[np.ndarray] = []
        for i, (probs, labels) in enumerate(rows):
            top5 = top5_classes(probs) != labels[:, None]
            wrong.append(top5[:, 0].astype(float))
            others = {"": None}
            if run in runs and ROWS[i][4] is not None:
                others = {ROWS[ROWS[i][4]][0]: wrong[ROWS[i][4]]}
            elif run not in runs and ROWS[i][:4] in [row[:4] for row in ROWS[:i]]:
                continue  # is there already; compared with each of its models, whatever the row above
            elif run not in runs:
                others = {
                    f"{names[r]} alone": (top5_classes(results[r][i][0])[:, 0] != labels).astype(float) for r in runs
                }
            for against, other in others.items():
                d = wrong[i] - other if other is not None else None
                difference = ""
                if d is not None:
                    difference = f"{100 * d.mean():+.1f} ± {196 * d.std(ddof=1) / len(d) ** 0.5:.1f} points"
                print(
                    f"| {names[run]} | {ROWS[i][0]} | {len(labels):,} | {wrong[i].mean():.1%} "
                    f"| {top5.all(1).mean():.1%} | {against} | {difference} |",
                    flush=True,
                )
    for run in runs:
        errors = window_errors(run)
        print(
            f"\n{names[run]}: the central window as a crop {errors['crop']:.1%} top-1 error, "
            f"as one place of the dense map {errors['place']:.1%}"
        )


if __name__ == "__main__":
    main(sys.argv[1:])
