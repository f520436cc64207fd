"""`vgg-jax evaluate --workdir=RUN [flags]`: the paper's test protocol on a trained model, or on several fused.

vgg-jax evaluate --workdir=runs/vgg16 --protocol=dense --scales=multi
vgg-jax evaluate --weights=torchvision:vgg16 --data_root=DIR
"""

from __future__ import annotations

from vgg_jax.commands import cli, processes, protocols

flags = cli.Flags()
_WORKDIR = flags.DEFINE_multi_string(
    "workdir",
    [],
    "A run's directory (its best checkpoint is taken), or RUN/checkpoints/STEP. Several, by commas or by giving the "
    "flag again, are fused: the mean of their probabilities, each model at its own scales.",
)
_WEIGHTS = flags.DEFINE_multi_string(
    "weights",
    [],
    "A file of weights (vgg-jax convert) or the name of published ones (torchvision:vgg16, hf://timm/vgg16.tv_in1k) in "
    "place of a run; several as for --workdir. Its test data is ImageNet's validation split unless --data_name, "
    "--data_root, --data_dir or --split say otherwise.",
)
protocols.define(flags)
flags.DEFINE_string("split", "", "The split to evaluate on. Default: the run's validation split.")
flags.DEFINE_string("data_name", "", "Another data set: builtin, folder, or a TFDS name.")
flags.DEFINE_string("data_dir", "", "Directory of the prepared data, if not where it lay for the run.")
flags.DEFINE_string("data_root", "", "Another folder of images, <split>/<class>/<image>.")
flags.DEFINE_bool(
    "averages",
    True,
    "Evaluate the averages of a run with config.ema_decay; --noaverages: the parameters as updated last.",
)
flags.DEFINE_string("maps", "", "A directory for images of class score maps laid over photographs (PNG).")
flags.DEFINE_integer("num_maps", 8, "Number of score maps that --maps draws.", lower_bound=1)
flags.DEFINE_string(
    "class_numbers",
    "",
    "For a split without labels: a file that names the challenge's classes, one a line, in the order of its numbers. "
    "Default: numbers by sorted class name.",
)
_JSON = flags.DEFINE_string(
    "json", "", "File for the results. Default: RUN/evaluation/CHECKPOINT/DATA-SPLIT/results-....json."
)
_OUTPUT = flags.DEFINE_string(
    "output",
    "",
    "Directory for cached probabilities and results. Default: the run's, or, where that cannot be written, RUN-... in "
    "the current directory.",
)
_FORMAT = cli.define_format(flags)
_joined = processes.define(flags)


def main(arguments: list[str]) -> None:
    cli.no_arguments(arguments, "--workdir=runs/vgg16")
    workdirs, weights = (
        tuple(part for value in flag.value for part in value.split(",") if part) for flag in (_WORKDIR, _WEIGHTS)
    )
    cli.require(workdirs or weights, "what to evaluate: --workdir=runs/quickstart")
    cli.use_huge_pages()
    joined = _joined()
    from vgg_jax.evaluation.protocol import Request, evaluate
    from vgg_jax.runtime import distributed
    from vgg_jax.runtime.provenance import code_version

    request = flags.request(Request, workdirs=workdirs, weights=weights, output=_JSON.value, directory=_OUTPUT.value)
    with joined, cli.devices():
        distributed.check_same({"the code": code_version(), **request._asdict()})
        evaluate(request, table_format=_FORMAT.value)
