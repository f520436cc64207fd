"""What all command lines share: help, one sentence for what goes wrong, and streams that break."""

import importlib
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import jax
import pytest
from PIL import Image

from tests.conftest import REPOSITORY
from vgg_jax import __version__
from vgg_jax.__main__ import COMMANDS
from vgg_jax.commands import cli

EVERY_COMMAND = """
import importlib, json, sys
from vgg_jax.commands import cli

for module, *arguments in json.loads(sys.argv[1]):
    command = importlib.import_module(f"vgg_jax.{module}")
    sys.argv = [module, *arguments]
    print(module, end=": ", file=sys.stderr)
    try:
        cli.run(command.main, command.flags)
    except SystemExit as end:
        print(end.code)
"""
IN_THE_COLLECTOR = """
import gc, signal, time
from vgg_jax.commands import cli

def main(_):
    # JAX has such a callback; what is raised in it, Python drops.
    gc.callbacks.append(lambda phase, _: signal.raise_signal(signal.SIGINT) if phase == "start" else None)
    gc.collect()
    gc.callbacks.clear()
    time.sleep(60)

cli.run(main, cli.Flags())
"""
ANYWHERE = """
import signal
from vgg_jax.commands import cli
cli.run(lambda _: signal.raise_signal(signal.SIGINT), cli.Flags())
"""


def test_what_a_terminal_would_obey_is_printed_as_text(capsys):
    with pytest.raises(SystemExit, match="2"):
        cli.fail("a\x1b[31m\u202eb: there is no such file\n  line 2")
    assert capsys.readouterr().err == "error: a\\x1b[31m\\u202eb: there is no such file\n  line 2\n"


def test_describing_needs_no_device():
    done = subprocess.run(
        [sys.executable, "-m", "vgg_jax", "describe", "A"],
        cwd=REPOSITORY,
        env=os.environ | {"JAX_PLATFORMS": "cuda"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variable", "value", "sentence"),
    [
        ("JAX_PLATFORMS", "cuda", "JAX_PLATFORMS=cuda: JAX cannot have these devices"),
        (
            "JAX_PLATFORMS",
            "CPU",
            "JAX_PLATFORMS=CPU: JAX cannot have these devices (Unable to initialize backend 'CPU'",
        ),
        ("JAX_DISABLE_JIT", "1", "JAX_DISABLE_JIT=1 lets JAX compile nothing"),
    ],
)
def test_an_environment_in_which_jax_cannot_compute_is_named_by_every_command(run, tmp_path, variable, value, sentence):
    image, workdir = tmp_path / "image.png", tmp_path / "new"
    Image.new("RGB", (40, 40)).save(image)
    commands = [
        ("main", "--config=quickstart", f"--workdir={workdir}"),
        ("commands.evaluate", f"--workdir={run}"),
        ("commands.predict", f"--workdir={run}", str(image)),
        ("commands.convert", str(run), str(tmp_path / "out.safetensors")),
        ("commands.transfer", "--weights=vgg16.safetensors", f"--data_root={tmp_path}"),
        ("commands.report", str(run)),
        ("commands.reproduce", "--config=paper", f"--workdir={workdir}"),
    ]
    done = subprocess.run(
        [sys.executable, "-c", EVERY_COMMAND, json.dumps(commands)],
        cwd=REPOSITORY,
        env=os.environ | {variable: value, "GLIBC_TUNABLES": ""},  # several commands run in this one process
        capture_output=True,
        text=True,
        timeout=120,
    )
    lines = done.stderr.splitlines()
    assert done.stdout.split() == ["2"] * len(commands), done.stderr
    for line, command in zip(lines, commands, strict=True):
        assert line.startswith(f"{command[0]}: error: {sentence}")
    assert not workdir.exists()


@pytest.mark.parametrize("code", [ANYWHERE, IN_THE_COLLECTOR])
def test_ctrl_c_stops_with_a_sentence(code):
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=30)
    assert done.returncode == 130
    assert done.stderr == "stopped; nothing that was saved is lost, the same command continues.\n"


def run_code(code: str, **options) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=30, **options)


def script(*arguments, **options) -> subprocess.CompletedProcess:
    """The console command."""
    command = [os.path.join(os.path.dirname(sys.executable), "vgg-jax"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, **options)


def test_all_commands_can_be_imported_together_and_have_their_own_help():
    assert {command.module for command in COMMANDS.values()} == {
        "main",
        *(
            f"commands.{path.stem}"
            for path in (REPOSITORY / "vgg_jax" / "commands").glob("*.py")
            if "def main(" in path.read_text()
        ),
    }
    modules = [f"vgg_jax.{command.module}" for command in COMMANDS.values()]
    assert run_code(f"import {', '.join(modules)}").returncode == 0
    for name, module in zip(COMMANDS, modules, strict=True):
        done = script(name, "--help")
        assert (done.returncode, done.stderr) == (0, "")
        page, _, own = done.stdout.partition(f"\n{module}:\n")
        assert page.startswith(f"`vgg-jax {name} ")
        assert " [flags]`: " in page or name == "completion"
        assert ("--protocol" in done.stdout) == (name in ("evaluate", "predict", "transfer"))
        # Its own flags come first; `completion` has none.
        assert own.startswith("  --") or name == "completion"
        assert "  --coordinator_address" not in page
        assert "jax" not in run_code(f"import sys, {module}; print(*sys.modules)").stdout.split()


@pytest.mark.parametrize(
    ("command", "module", "request_name"),
    [
        ("evaluate", "evaluation.protocol", "Request"),
        ("predict", "evaluation.prediction", "PredictRequest"),
        ("convert", "evaluation.conversion", "ConvertRequest"),
        ("prepare", "data.preparation", "PrepareRequest"),
        ("transfer", "transfer.study", "TransferRequest"),
        ("describe", "models.comparison", "ComparisonRequest"),
        ("reproduce", "reproduction.execution", "ReproductionRequest"),
    ],
)
def test_a_request_has_the_defaults_of_the_flags(command, module, request_name):
    flags = importlib.import_module(f"vgg_jax.commands.{command}").flags
    kind = getattr(importlib.import_module(f"vgg_jax.{module}"), request_name)
    # The flag for the file is --json, and for the directory --output.
    renamed = {"output": "json", "directory": "output"} if command == "evaluate" else {}
    for field, default in kind._field_defaults.items():
        if (name := renamed.get(field, field)) in flags.values:
            shown = flags.values[name].default
            if isinstance(default, tuple):
                shown = tuple(map(type(default[0]), shown)) if default else tuple(shown)
            assert shown == default, name


def test_a_request_is_made_of_the_flags_of_its_names():
    class Request(NamedTuple):
        sources: tuple[str, ...]
        size: int = 3
        place: str = "here"

    flags = cli.Flags()
    flags.DEFINE_list("sources", [], "Files.")
    flags.DEFINE_integer("size", 3, "Pixels.")
    flags.values(["command", "--sources=a,b", "--size=5"])
    assert flags.request(Request) == Request(("a", "b"), 5)
    assert flags.request(Request, size=7, place="there") == Request(("a", "b"), 7, "there")


def test_a_developers_warning_is_seen_and_a_librarys_is_not():
    code = """
import logging, sys
from absl import logging as absl_logging
from vgg_jax.commands import cli
def main(_):
    logging.warning("mine")
    absl_logging.warning("mine too")
    library = compile("logging.warning('theirs')", "/x/site-packages/orbax/y.py", "exec")
    exec(library, {"logging": absl_logging})
    exec(library, {"logging": logging})
sys.argv = ["x"]
cli.run(main, cli.Flags())
"""
    done = run_code(code)
    assert done.returncode == 0, done.stderr
    assert [line.rpartition("] ")[2] for line in done.stderr.splitlines()] == ["mine", "mine too"]


def test_without_a_command_it_says_what_there_is():
    for done in (
        script(),
        script("--help"),
        run_code("import runpy; runpy.run_module('vgg_jax', run_name='__main__')"),
    ):
        assert (done.returncode, done.stderr) == (0, "")
        assert all(f"vgg-jax {name}" in done.stdout for name in COMMANDS)
        assert "vgg11_lrn" in done.stdout
    for done in (script("--version"), script("evaluate", "--version")):
        assert (done.returncode, done.stdout) == (
            0,
            f"vgg_jax {__version__}, jax {jax.__version__}, Python {platform.python_version()}\n",
        )


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("trian",), "error: 'trian' is no command. Did you mean 'train'? There are train, evaluate,"),
        (("--config=vgg16",), "error: --config=vgg16 comes before a command; write vgg-jax train --config=vgg16 ..."),
        (("train", "--confg=vgg16"), "error: Unknown command line flag 'confg'. Did you mean: config"),
    ],
)
def test_a_wrong_command_gets_a_sentence(arguments, sentence):
    done = script(*arguments)
    assert done.returncode == 2
    assert done.stderr.startswith(sentence)
    assert done.stderr.count("\n") == 1


PRINTING = """
import sys
from vgg_jax.commands import cli

def main(_):
    for _ in range(100_000):
        print("a line", flush=True)
    open(sys.argv[1], "w").close()

cli.run(main, cli.Flags(), outlives_stdout={outlives})
"""


@pytest.mark.parametrize(("outlives", "status"), [(True, 0), (False, 141)])
def test_a_reader_that_goes_away_ends_a_command_quietly_and_training_never(outlives, status, tmp_path):
    command = [sys.executable, "-c", PRINTING.format(outlives=outlives), str(tmp_path / "end")]
    process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "a line\n"
    process.stdout.close()
    assert process.wait(timeout=30) == status
    assert process.stderr.read() == ""
    assert (tmp_path / "end").exists() is outlives


def test_streams_of_plain_ascii_and_closed_ones_take_any_text():
    code = "from vgg_jax.commands import cli; cli.run(lambda _: print('Müller', '\\udcff'), cli.Flags())"
    ascii_only = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = run_code(code, env=ascii_only)
    assert (done.returncode, done.stdout, done.stderr) == (0, "M\\xfcller \\udcff\n", "")
    closed = subprocess.run(
        f'{sys.executable} -c "{code}" >&-', shell=True, cwd=REPOSITORY, capture_output=True, timeout=30
    )
    assert (closed.returncode, closed.stderr) == (0, b"")


@pytest.mark.parametrize(
    ("raised", "sentence"),
    [
        ("MemoryError()", "error: memory is exhausted: MemoryError. Take a smaller batch"),
        (
            "RuntimeError('RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.\\nmore')",
            "error: memory is exhausted: RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes. Take a smaller batch",
        ),
        (
            "RuntimeError('Could not determine home directory.')",
            "error: the home directory is unknown; set HOME, or write",
        ),
        ("OSError(36, 'File name too long', 'a')", "error: a: File name too long; mend that, or name another path."),
    ],
)
def test_what_the_machine_refuses_is_one_sentence(raised, sentence):
    code = f"from vgg_jax.commands import cli\ndef main(_): raise {raised}\ncli.run(main, cli.Flags())"
    done = run_code(code)
    assert done.returncode == 2
    assert done.stderr.startswith(sentence)
    assert done.stderr.count("\n") == 1


HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


@pytest.mark.skipif(
    not HUGE_PAGES.exists() or "[madvise]" not in HUGE_PAGES.read_text(),
    reason="this system gives huge pages to every program, or to none",
)
def test_a_program_begins_again_once_with_huge_pages_and_its_own_arguments():
    code = (
        "import sys; from vgg_jax.commands import cli\n"
        "print(sys.argv[1:], flush=True); cli.use_huge_pages(); large = bytearray(2**26)\n"
        "print(any(' hg' in line for line in open('/proc/self/smaps') if line.startswith('VmFlags')))"
    )

    def lines(**environment):
        command = [sys.executable, "-c", code, "--a=b c"]
        inherited = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
        return subprocess.check_output(command, env=inherited | environment, text=True).splitlines()

    assert lines() == ["['--a=b c']"] * 2 + ["True"]
    assert lines(GLIBC_TUNABLES="") == ["['--a=b c']", "False"]


COMPLETED = """
source {script}
while read -r line; do
  COMP_LINE="$line" COMP_POINT=${{#line}} COMP_WORDS=($line) COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
  _vgg_jax
  echo "${{COMPREPLY[*]}}"
done
"""


def test_bash_completes_commands_flags_and_values(tmp_path):
    script = tmp_path / "completion.bash"
    script.write_text(subprocess.check_output([sys.executable, "-m", "vgg_jax", "completion", "bash"], text=True))
    (tmp_path / "photo.jpg").touch()
    (tmp_path / "photos 1").mkdir()
    expected = {
        "vgg-jax eval": "evaluate",
        "vgg-jax train --config=quick": "quickstart",
        "vgg-jax train --config.schedule.na": "--config.schedule.name=",
        "vgg-jax train --config.schedule.name=cos": "cosine",
        "vgg-jax evaluate --protocol=dense+": "dense+multi_crop",
        "vgg-jax evaluate --aver": "--averages",
        "vgg-jax predict --weights=photo.": "photo.jpg",
        "vgg-jax predict pho": "photo.jpg photos\\ 1/",
        "vgg-jax predict none": "",
    }
    command = ["bash", "-c", COMPLETED.format(script=script)]
    shown = subprocess.run(command, input="\n".join([*expected, ""]), cwd=tmp_path, text=True, capture_output=True)
    assert shown.stdout.splitlines() == list(expected.values()), shown.stderr
