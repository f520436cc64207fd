"""Tables as text: what a reader of Markdown and of LaTeX takes back out is what went in."""

import re

import pytest

from vgg_jax.runtime.text_tables import table_text

AWKWARD = r"""a|b\c {d} $e_f& #1 50% ~^ <g> [h] *i* `j`"""
LINES = [("model", "", "error, %"), ("[D] x_1", "", "7.3"), (AWKWARD, "", "12.25"), ("*", "", "")]


def without_middle(lines):
    return [[first, last] for first, _, last in lines]


def test_plain_text_is_aligned_and_keeps_empty_columns():
    text = table_text([("a", "", "b"), ("long", "", "1.5"), ("x", "", "22")], {2})
    assert text == "a         b\nlong    1.5\nx        22"


def test_markdown_is_read_as_it_was_written():
    head, rule, *rows = table_text(LINES, {2}, "markdown").splitlines()
    assert rule == "| --- | ---: |"

    def cells(line):
        parts = (
            re.split(r"(?<!\\)\|", line[1:-1]) if r"\\|" not in line else pytest.fail("a cell ends with a backslash")
        )
        return [re.sub(r"\\([\\|*<`])", r"\1", part[1:-1]) for part in parts]

    assert [cells(line) for line in (head, *rows)] == without_middle(LINES)


def test_latex_is_read_as_it_was_written():
    begin, rule, head, _, *rows, _, end = table_text(LINES, {2}, "latex").splitlines()
    assert (begin, rule, end) == (r"\begin{tabular}{lr}", r"\hline", r"\end{tabular}")
    names = {"textbackslash": "\\", "textasciitilde": "~", "textasciicircum": "^"}
    names |= {"textless": "<", "textgreater": ">", "textbar": "|"}

    def typeset(match):
        command, grouped, symbol = match.groups()
        return names[command] if command else grouped or symbol

    def cells(line):
        assert line.endswith(r" \\")
        parts = re.split(r"(?<!\\) ?& ", line.removesuffix(r" \\"))
        return [re.sub(r"\\(text\w+)\{\}|\{([\[*])\}|\\([{}$&#_%])", typeset, part) for part in parts]

    assert [cells(line) for line in (head, *rows)] == without_middle(LINES)
    # A row that begins with a bracket or a star would change the line break before it.
    assert not any(re.match(r"[\[*]", row) for row in rows)
