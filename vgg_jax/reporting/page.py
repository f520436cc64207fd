"""Runs, or a whole reproduction, as one HTML page that needs nothing else: no network, no other file."""

from __future__ import annotations

import datetime
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from vgg_jax.reporting import overviews, sections
from vgg_jax.reporting.history import RunHistory, check_same_data, read_history
from vgg_jax.reporting.reproduction_state import Reproduction, read_reproduction
from vgg_jax.runs import PlanDir, RunDir
from vgg_jax.runtime.compilation import check_devices
from vgg_jax.runtime.console import Console
from vgg_jax.runtime.exceptions import UserError, writing_to
from vgg_jax.runtime.files import is_unfinished, write_text
from vgg_jax.runtime.provenance import environment

# Begins every page; a file that does not begin so is not overwritten.
_BEGINNING = "<!doctype html>\n<!-- a report of vgg_jax -->\n"
_ALONE = sections.Wanted(right=12, wrong=12, maps=6, may_compute=True)
_AMONG = sections.Wanted(right=6, wrong=6, maps=3, may_compute=True)
_STAGE = sections.Wanted(wrong=6)  # of a reproduction, which evaluates by itself
_MOST_SECTIONS = 12  # runs with images on a page, which keeps it to a few MB


def write_page(
    directories: Sequence[Path], output: Path | None, data_dir: str = "", data_root: str = "", quiet: bool = False
) -> Path:
    """Writes the page, whole or not at all.

    Args:
      directories: workdirs of runs on the same data, or one reproduction's directory.
      output: the file; None for report.html in the directory, or of several in the current one.
      data_dir: where prepared data lies, if not where it lay for the runs; "" for that.
      data_root: another folder of images; "" for the runs' own.
      quiet: print nothing.

    Returns:
      The file.

    Raises:
      UserError: a directory that holds neither run nor reproduction, a broken file, runs on different data, or an
        output that cannot be written.
    """
    console = Console(quiet)
    directories = list(dict.fromkeys(directory.expanduser() for directory in directories))
    read = _read(directories)
    output = output.expanduser() if output else Path("" if len(directories) > 1 else directories[0], "report.html")
    _check_output(output)
    check_devices()
    content: dict[str, Any] = {"comparison": None, "reproduction": None, "runs": [], "folded": True}
    content |= {"made": datetime.datetime.now().strftime("%Y-%m-%d %H:%M"), "environment": environment()}
    if isinstance(read, Reproduction):
        first = read.seeds[0]
        runs = [run for stage in read.stages if (run := stage.runs.get(first)) and run.summary]
        started = [run for stage in read.stages for run in stage.runs.values() if run.dataset]
        detail = _STAGE
        content |= {"title": f"Reproduction {_name(read.directory)}", "sections_title": "Finished stages"}
        content["subtitle"] = sections.data_name(started[0]) if started else ""
        content["reproduction"] = overviews.reproduction_overview(read)
    elif len(read) > 1:
        runs, detail = read, _AMONG
        content |= {"title": f"{len(runs)} runs", "sections_title": "Each run"}
        content["subtitle"] = sections.data_name(runs[0])
        content["comparison"] = overviews.comparison(runs)
    else:
        runs, detail = read, _ALONE
        content |= {"title": runs[0].name, "folded": False}
        content["subtitle"] = f"{sections.title(runs[0])}; {sections.data_name(runs[0])}"
    for number, run in enumerate(runs):
        console.print(f"looking at {run.workdir}")
        amount = detail if number < _MOST_SECTIONS else sections.Wanted()
        content["runs"].append(sections.run_section(run, amount, sections.Place(data_dir, data_root), quiet))
    write_text(output, _rendered(content), "choose another --output")
    size = output.stat().st_size
    for section in content["runs"]:
        for note in section["notes"]:
            console.print(f"note ({section['name']}): {note}")
    console.print(f"report: {output} ({size / 1e6:.1f} MB)")
    return output


def _read(directories: Sequence[Path]) -> list[RunHistory] | Reproduction:
    for directory in directories:
        if not directory.is_dir():
            raise UserError(f"{directory}: there is no such directory; give one that a training run has made.")
        if not os.access(directory, os.R_OK | os.X_OK):
            raise UserError(f"{directory} cannot be read: no permission; mend it, or leave it out of the report.")
        if not RunDir(directory).is_run() and not PlanDir(directory).is_plan():
            what = (
                "is empty"
                if all(map(is_unfinished, directory.iterdir()))
                else "holds no config.json of a run and no plan.json"
            )
            raise UserError(
                f"{directory} {what}, so there is nothing to report; give a run's workdir or a reproduction's directory."
            )
    plans = [directory for directory in directories if PlanDir(directory).is_plan()]
    if plans and len(directories) > 1:
        raise UserError(f"{plans[0]} is a whole reproduction, which has a page of its own; give it alone.")
    if plans:
        return read_reproduction(PlanDir(plans[0]))
    runs = [read_history(directory, name) for directory, name in zip(directories, _names(directories), strict=True)]
    check_same_data(runs)
    return runs


def _name(directory: Path) -> str:
    return directory.absolute().name or str(directory)


def _names(directories: Sequence[Path]) -> list[str]:
    """Returns the last parts of the paths, as many as tell them apart."""
    paths = [directory.absolute().parts for directory in directories]
    for count in range(1, max(map(len, paths)) + 1):
        names = ["/".join(parts[-count:]) for parts in paths]
        if len(set(names)) == len(names):
            break
    return names


def _check_output(output: Path) -> None:
    """Refuses an output that cannot or should not be written, before anything is computed."""
    if output.is_dir():
        raise UserError(f"--output={output} is a directory; name a file in it, as --output={output / 'report.html'}.")
    with writing_to(output.parent, "choose another --output"):
        output.parent.mkdir(parents=True, exist_ok=True)
    if not os.access(output.parent, os.W_OK | os.X_OK):
        raise UserError(f"cannot write to {output.parent}: no permission; choose another --output.")
    if output.exists():
        with writing_to(output, "choose another --output"), open(output, "rb") as file:
            beginning = file.read(len(_BEGINNING))
        if beginning and beginning != _BEGINNING.encode():
            raise UserError(f"--output={output} is there already and no report; choose another --output.")


def _rendered(content: dict[str, Any]) -> str:
    templates = jinja2.Environment(
        loader=jinja2.PackageLoader("vgg_jax.reporting", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters["words"] = lambda name: name.replace("_", " ")  # class names, so that they break where words do
    style = Markup((Path(__file__).parent / "style.css").read_text())
    return _BEGINNING + templates.get_template("page.html").render(content, style=style) + "\n"
