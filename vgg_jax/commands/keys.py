"""The keys of configurations as text: by section, with values and the comments of their fields.

Read from the source, so that --help answers without JAX.
"""

from __future__ import annotations

import ast
import functools
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

_PACKAGE = Path(__file__).parents[1]
_WIDTH = 100


class Declared(NamedTuple):
    """A key as its field declares it."""

    section: str  # the docstring of its class, one line
    default: str  # as Python writes it; "" where the source names a constant
    comment: str


@functools.cache
def declared() -> dict[str, Declared]:
    """Returns the keys of all configurations by name, in the order of `recipe.Recipe`."""
    return dict(_fields("recipe.py", "Recipe"))


def suggestions(flag: str) -> list[str]:
    """Returns the keys that a flag without `config.` can mean: num_epochs, or learning_rate for its section's."""
    return [key for key in declared() if key == flag or key.endswith(f".{flag}")]


def keys_text(values: Mapping[str, Any] | None = None) -> str:
    """Returns every key with its value and its comment, by section.

    Args:
      values: of a configuration, by key; None for the defaults.
    """
    lines, section = list[str](), ""
    # Keys of no section come first, as each section's stand together.
    for key, field in sorted(declared().items(), key=lambda item: "." in item[0]):
        if field.section != section:
            section = field.section
            lines += ["", section, ""]
        value = field.default if values is None else repr(values.get(key))
        lines.append(f"  config.{key}{f' = {value}' if value else ''}")
        lines += textwrap.wrap(field.comment, _WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return "\n".join(lines).strip("\n")


def _fields(file: str, cls: str, prefix: str = "", section: str = "") -> Iterator[tuple[str, Declared]]:
    source = (_PACKAGE / file).read_text()
    lines = source.splitlines()
    node = next(node for node in ast.parse(source).body if isinstance(node, ast.ClassDef) and node.name == cls)
    section = section or (ast.get_docstring(node) or "").splitlines()[0]
    for field in node.body:
        if not (isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and field.value):
            continue
        name, value = f"{prefix}{field.target.id}", field.value
        arguments = value.args if isinstance(value, ast.Call) else [value]
        called = value.func.id if isinstance(value, ast.Call) and isinstance(value.func, ast.Name) else ""
        if called == "part":
            yield from _fields(file, ast.unparse(arguments[0]), f"{name}.")
        elif called == "_network_keys":
            yield from _fields("models/spec.py", "NetworkSpec", prefix, section)
        elif called == "key" or isinstance(value, ast.Constant):
            text = "" if isinstance(arguments[0], ast.Name) else ast.unparse(arguments[0])
            yield name, Declared(section, text, _comment(lines, field.lineno - 1))


def _comment(lines: list[str], at: int) -> str:
    """Returns the comment above a field's line, and the one at its end."""
    above = at
    while lines[above - 1].lstrip().startswith("#"):
        above -= 1
    words = [line.strip().removeprefix("# ") for line in lines[above:at]]
    return " ".join([*words, lines[at].partition("  # ")[2]]).strip()
