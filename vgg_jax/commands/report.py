"""`vgg-jax report WORKDIR... [flags]`: a run, several side by side, or a whole reproduction as one HTML page.

    vgg-jax report runs/vgg16
    vgg-jax report runs/vgg16 runs/vgg19 --output=both.html
    vgg-jax report runs     # all runs in the directory, in runs/report.html

It never trains. It shows the evaluations that are kept; where there is none it computes and keeps a centre crop's.
While a run uses the devices, make its report with JAX_PLATFORMS=cpu before the command.
"""

from __future__ import annotations

from pathlib import Path

from vgg_jax.commands import cli

flags = cli.Flags()
_OUTPUT = flags.DEFINE_string(
    "output", "", "The page. Default: DIRECTORY/report.html; of several directories, report.html in the current one."
)
_DATA_DIR = flags.DEFINE_string("data_dir", "", "Directory of the prepared data, if not where it lay for the run.")
_DATA_ROOT = flags.DEFINE_string(
    "data_root", "", "The folder of images, <split>/<class>/<image>, if not where it lay for the run."
)


def main(arguments: list[str]) -> None:
    if not arguments:
        cli.fail("say what to report on: a run's directory, as runs/quickstart, several, or a reproduction's.")
    from vgg_jax.reporting.page import write_page

    output = Path(_OUTPUT.value) if _OUTPUT.value else None
    write_page([Path(argument) for argument in arguments], output, _DATA_DIR.value, _DATA_ROOT.value)
