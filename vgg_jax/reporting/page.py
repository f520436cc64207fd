"""Runs, or a whole reproduction, as one HTML page that needs nothing else: no network, no other file."""

from __future__ import annotations

import datetime
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from vgg_jax.reporting.history import RunHistory, read_history
from vgg_jax.reporting.overviews import Reproduction, comparison, read_reproduction, reproduction_overview
from vgg_jax.reporting.predictions import PageOptions
from vgg_jax.reporting.sections import data_name, model_title, run_section
from vgg_jax.runs import PlanDir, RunDir
from vgg_jax.runtime.compilation import check_devices
from vgg_jax.runtime.console import Console
from vgg_jax.runtime.exceptions import UserError, writing_to
from vgg_jax.runtime.files import is_empty, write_text
from vgg_jax.runtime.provenance import environment

# Begins every page; a file that does not begin so is not overwritten.
_BEGINNING = "<!doctype html>\n<!-- a report of vgg_jax -->\n"
_ALONE = PageOptions(right=12, wrong=12, maps=6, may_compute=True)
_AMONG_OTHERS = PageOptions(right=6, wrong=6, maps=3, may_compute=True)
_STAGE = PageOptions(wrong=6)  # of a reproduction, which evaluates by itself
_MOST_SECTIONS = 12  # runs with images on a page, which keeps it to a few MB


def write_page(
    directories: Sequence[Path], output: Path | None, data_dir: str = "", data_root: str = "", quiet: bool = False
) -> Path:
    """Writes the page, whole or not at all.

    Args:
      directories: workdirs of runs on the same data, or directories of such workdirs, or one reproduction's directory.
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
    named = [directory.expanduser() for directory in directories]
    directories = list(dict.fromkeys(run for directory in named for run in _runs_in(directory, console)))
    _check_directories(directories)
    plan_dir, several = PlanDir(directories[0]), len(directories) > 1
    read = read_reproduction(plan_dir) if plan_dir.is_plan() else _read_histories(directories)
    output = output.expanduser() if output else Path("" if len(set(named)) > 1 else named[0], "report.html")
    _check_output(output)
    check_devices()
    if isinstance(read, Reproduction):
        head, histories, options = _head_of_reproduction(read)
    else:
        (head, options), histories = (_head_of_several(read), read) if several else (_head_of_one(read[0]), read)
    options = options._replace(data_dir=data_dir, data_root=data_root, quiet=quiet)
    sections = []
    for number, history in enumerate(histories):
        console.print(f"looking at {history.workdir}")
        sections.append(run_section(history, options if number < _MOST_SECTIONS else options.without_images()))
    content = {"comparison": None, "reproduction": None, "folded": True, "runs": sections, **head}
    if several:
        content["comparison"] = comparison(histories, sections[0]["chance"])
    content |= {"made": datetime.datetime.now().strftime("%Y-%m-%d %H:%M"), "environment": environment()}
    write_text(output, _rendered(content), "choose another --output")
    for section in sections:
        for note in section["notes"]:
            console.print(f"note ({section['name']}): {note}")
    console.print(f"report: {output} ({output.stat().st_size / 1e6:.1f} MB)")
    return output


def _head_of_one(history: RunHistory) -> tuple[dict[str, Any], PageOptions]:
    subtitle = f"{model_title(history)}; {data_name(history)}"
    return {"title": history.name, "subtitle": subtitle, "folded": False}, _ALONE


def _head_of_several(histories: list[RunHistory]) -> tuple[dict[str, Any], PageOptions]:
    titles = {"title": f"{len(histories)} runs", "sections_title": "Each run", "subtitle": data_name(histories[0])}
    return titles, _AMONG_OTHERS


def _head_of_reproduction(read: Reproduction) -> tuple[dict[str, Any], list[RunHistory], PageOptions]:
    """Returns the part of the page above its sections, the runs that have one, and their amount of detail."""
    directory, first = read.plan_dir.path, read.seeds[0]
    of_first_seed = [stage.histories[first] for stage in read.stages if first in stage.histories]
    begun = next((history for history in read.histories() if history.dataset), None)
    head = {
        "title": f"Reproduction {directory.absolute().name or directory}",
        "sections_title": "Finished stages",
        "subtitle": data_name(begun) if begun else "",
        "reproduction": reproduction_overview(read),
    }
    return head, [history for history in of_first_seed if history.summary], _STAGE


def _runs_in(directory: Path, console: Console) -> list[Path]:
    """Returns the runs in a directory of workdirs, by name; the directory itself where it is one, or holds none."""
    is_own = RunDir(directory).is_run() or PlanDir(directory).is_plan()
    if is_own or not directory.is_dir() or not os.access(directory, os.R_OK | os.X_OK):
        return [directory]
    below = sorted(path for path in directory.iterdir() if path.is_dir())
    for path in below:
        if PlanDir(path).is_plan():
            console.print(f"left out: {path}, a whole reproduction, which has its own page")
    return [path for path in below if RunDir(path).is_run() and not PlanDir(path).is_plan()] or [directory]


def _check_directories(directories: Sequence[Path]) -> None:
    """Raises UserError at a directory without anything to report, and at a reproduction that is not alone."""
    for directory in directories:
        if not directory.is_dir():
            raise UserError(f"{directory}: there is no such directory; give one that a training run has made.")
        if not os.access(directory, os.R_OK | os.X_OK):
            raise UserError(f"{directory} cannot be read: no permission; mend it, or leave it out of the report.")
        if not RunDir(directory).is_run() and not PlanDir(directory).is_plan():
            lacking = "holds no config.json of a run and no plan.json, and no directory of a run"
            raise UserError(
                f"{directory} {'is empty' if is_empty(directory) else lacking}, so there is nothing to report; give a "
                "run's workdir or a reproduction's directory."
            )
    plans = [directory for directory in directories if PlanDir(directory).is_plan()]
    if plans and len(directories) > 1:
        raise UserError(f"{plans[0]} is a whole reproduction, which has its own page; give it alone.")


def _read_histories(directories: Sequence[Path]) -> list[RunHistory]:
    """Reads runs, each named by the last parts of its path, as many as tell them apart.

    Raises:
      UserError: as `read_history`, or runs have other classes or another validation split than the first.
    """
    paths = [directory.absolute().parts for directory in directories]
    for count in range(1, max(map(len, paths)) + 1):
        names = ["/".join(parts[-count:]) for parts in paths]
        if len(set(names)) == len(names):
            break
    histories = [read_history(directory, name) for directory, name in zip(directories, names, strict=True)]
    known = [history for history in histories if history.dataset]
    for history in known[1:]:
        if any(history.dataset.get(key) != known[0].dataset.get(key) for key in ("class_names", "validation_images")):
            raise UserError(
                f"{known[0].workdir} and {history.workdir} are runs on different data ({data_name(known[0])}; "
                f"{data_name(history)}), so their errors cannot stand side by side; write a report of each."
            )
    return histories


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
