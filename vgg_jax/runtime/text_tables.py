"""Tables as text: columns aligned for a terminal, Markdown, or LaTeX."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

FORMATS = ("plain", "markdown", "latex")
_MARKDOWN = str.maketrans({character: f"\\{character}" for character in "\\|*<`"})
_LATEX = str.maketrans(
    {character: f"\\{character}" for character in "{}$&#_%"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    | {"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}"}
    # At the beginning of a row they would be an option of the line break before.
    | {"[": "{[}", "*": "{*}"}
)


def table_text(lines: Sequence[Sequence[str]], right: Collection[int] = (), table_format: str = "plain") -> str:
    """Returns a table as text. Markdown and LaTeX leave out columns without any text.

    Args:
      lines: the head, then the rows, all of one length.
      right: numbers of the columns that are aligned right.
      table_format: one of FORMATS.
    """
    if table_format == "plain":
        return _aligned(lines, right)
    shown = [i for i, column in enumerate(zip(*lines, strict=True)) if any(column)]
    write: Callable[..., str] = {"markdown": _markdown, "latex": _latex}[table_format]
    return write([[line[i] for i in shown] for line in lines], [i in right for i in shown])


def _aligned(lines: Sequence[Sequence[str]], right: Collection[int]) -> str:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            text.rjust(width) if i in right else text.ljust(width)
            for i, (text, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def _markdown(lines: Sequence[Sequence[str]], is_right: Sequence[bool]) -> str:
    head, *rows = (f"| {' | '.join(text.translate(_MARKDOWN) for text in line)} |" for line in lines)
    return "\n".join([head, f"| {' | '.join('---:' if right else '---' for right in is_right)} |", *rows])


def _latex(lines: Sequence[Sequence[str]], is_right: Sequence[bool]) -> str:
    """Returns a tabular, which needs no package."""
    head, *rows = (" & ".join(text.translate(_LATEX) for text in line) + r" \\" for line in lines)
    columns = "".join("r" if right else "l" for right in is_right)
    return "\n".join(
        [rf"\begin{{tabular}}{{{columns}}}", r"\hline", head, r"\hline", *rows, r"\hline", r"\end{tabular}"]
    )
