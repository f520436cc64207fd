"""Lines and progress: a bar on a terminal, plain lines elsewhere."""

import io
import sys

from vgg_jax.runtime import console
from vgg_jax.runtime.console import Console, bytes_progress, print_error, print_line, with_progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


def terminal_of(monkeypatch):
    """Makes standard error a terminal, and returns it."""
    monkeypatch.setattr(sys, "stderr", Terminal())
    return sys.stderr


def test_elsewhere_there_are_lines_and_no_bar(capsys, monkeypatch):
    monkeypatch.setattr(console, "_SECONDS_BETWEEN_LINES", 0.0)
    assert list(with_progress("abc", 4, "packing", done=1)) == ["a", "b", "c"]
    with bytes_progress(10) as add:
        add(10)
    shown = Console()
    shown.start(0, 3)
    shown.progress(1, "loss 0.5")
    shown.log("step 1 of 3")
    shown.close()
    print_error("WARNING: slow")
    out, err = capsys.readouterr()
    assert out.splitlines()[0] == "packing: 4 images"
    assert out.splitlines()[1].startswith("packing: 2 of 4, ")
    assert out.splitlines()[-1] == "step 1 of 3"
    assert err == "WARNING: slow\n"


def test_on_a_terminal_a_bar_takes_the_place_of_lines(capsys, monkeypatch):
    terminal = terminal_of(monkeypatch)
    assert list(with_progress("abc", 3, "packing")) == ["a", "b", "c"]
    assert "packing: 100%" in terminal.getvalue()
    shown = Console()
    shown.start(2, 8)
    shown.progress(5, "loss 0.5")
    shown.log("step 5 of 8")
    print_line("validation")
    assert "2/8" in terminal.getvalue()
    shown.close()
    assert capsys.readouterr().out == "validation\n"
    assert console._bars == []


def test_quiet_there_is_nothing(capsys, monkeypatch):
    terminal = terminal_of(monkeypatch)
    shown = Console(quiet=True)
    shown.start(0, 3)
    shown.progress(1, "loss")
    shown.print("line")
    shown.close()
    assert capsys.readouterr().out + terminal.getvalue() == ""


def test_a_generator_that_is_closed_early_removes_its_bar(monkeypatch):
    terminal_of(monkeypatch)
    passed = with_progress("abc", 3, "packing")
    next(passed)
    assert len(console._bars) == 1
    passed.close()
    assert console._bars == []


def test_without_streams_nothing_is_printed(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    print_line("a")
    print_error("b")
    assert list(with_progress("abc", 3, "packing")) == ["a", "b", "c"]
