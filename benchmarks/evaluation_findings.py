"""What the paper's test protocol is worth on given runs (Paper §4.1 to §4.4); Markdown on standard output.

    python -m benchmarks.evaluation_findings RUN [RUN ...]

Errors of every run by protocol, and of all runs fused. Differences are paired, over the same pictures: the mean of the
difference of top-1 errors, and 1.96 standard errors of it. Posteriors kept from before are used.
"""

import sys
from pathlib import Path

import numpy as np

from vgg_jax.evaluation.nets import load_net
from vgg_jax.evaluation.posteriors import view_name
from vgg_jax.evaluation.protocol import Request, evaluate
from vgg_jax.evaluation.results import average, best
from vgg_jax.evaluation.views import PROTOCOLS, views

# what, protocol, scales, dtype, and the row above that it is compared with
ROWS = (
    ("centre crop, Q = S", "center_crop", "single", "", None),
    ("dense, Q = S", "dense", "single", "", 0),
    ("dense, Q = S, bfloat16", "dense", "single", "bfloat16", 1),
    ("dense, three scales", "dense", "multi", "", 1),
    ("multi-crop, three scales", "multi_crop", "multi", "", 3),
    ("dense + multi-crop, three scales", "dense+multi_crop", "multi", "", 3),
)


def posteriors_of(run, protocol, scales, dtype):
    """Posteriors [N, K] and labels [N] of one run, computed now if need be."""
    data = evaluate(Request((run,), protocol, scales, dtype=dtype), quiet=True)["data"]
    net = load_net(Path(run), dtype)
    parts = {part: [] for part in PROTOCOLS[protocol]}
    for view in views(net.config, protocol, scales):
        name = f"evaluation/{net.checkpoint.name}/*-{data['split']}/{view_name(net, view)}.npz"
        (file,) = net.workdir.glob(name)
        with np.load(file) as arrays:
            parts[view.part].append(arrays["posteriors"])
            labels = arrays["labels"]
    return average(average(part) for part in parts.values()), labels


def main(runs):
    print("| nets | protocol | pictures | top-1 error | top-5 error | top-1 against | difference |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    found = {run: [posteriors_of(run, *row[1:4]) for row in ROWS] for run in runs}
    names = {run: Path(run).name for run in runs}
    if len(runs) > 1:
        together = " + ".join(names.values())
        names[together] = together
        fused = [(average(found[run][i][0] for run in runs), found[runs[0]][i][1]) for i in range(len(ROWS))]
        found[together] = fused
    for run, rows in found.items():
        wrong, best_alone = [], None
        for i, (posteriors, labels) in enumerate(rows):
            top5 = best(posteriors) != labels[:, None]
            wrong.append(top5[:, 0].astype(float))
            against, other = "", None
            if run in runs and ROWS[i][4] is not None:
                against, other = ROWS[ROWS[i][4]][0], wrong[ROWS[i][4]]
            elif run not in runs:  # fused: against the best of its nets
                alone = {r: (best(found[r][i][0])[:, 0] != labels).astype(float) for r in runs}
                best_alone = min(alone, key=lambda r: alone[r].mean())
                against, other = f"{names[best_alone]} alone", alone[best_alone]
            difference = ""
            if other is not None:
                d = wrong[i] - other
                difference = f"{100 * d.mean():+.1f} ± {196 * d.std(ddof=1) / len(d) ** 0.5:.1f} points"
            print(
                f"| {names[run]} | {ROWS[i][0]} | {len(labels):,} | {wrong[i].mean():.1%} | {top5.all(1).mean():.1%} | "
                f"{against} | {difference} |",
                flush=True,
            )


if __name__ == "__main__":
    main(sys.argv[1:])
