"""`vgg-jax completion SHELL`: a script by which bash or zsh completes commands, flags and values.

    vgg-jax completion bash > ~/.local/share/bash-completion/completions/vgg-jax
    vgg-jax completion zsh > ~/.vgg-jax.zsh && echo 'source ~/.vgg-jax.zsh' >> ~/.zshrc

Begin a new shell afterwards. Write the script again after an update of the package.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator

from vgg_jax.commands import cli, configuration

flags = cli.Flags()
_SHELLS = ("bash", "zsh")
# The last word is taken from the line, since bash breaks words at "=" and zsh does not.
_SCRIPT = """# Completes vgg-jax in bash and zsh; made by: vgg-jax completion SHELL
if [ -n "$ZSH_VERSION" ]; then
  autoload -Uz compinit bashcompinit && compinit && bashcompinit
fi
_vgg_jax_words() {
  case "$1" in
%s
  esac
}
_vgg_jax_files() {
  [ -n "$ZSH_VERSION" ] && setopt localoptions nonomatch
  local file
  for file in "$1"*; do
    [ -d "$file" ] && file="$file/"
    [ -z "$ZSH_VERSION" ] && [ -e "$file" ] && file="$(printf %%q "$file")"
    [ "$file" = "$1*" ] || COMPREPLY+=("$file")
  done
}
_vgg_jax() {
  local line="${COMP_LINE:0:$COMP_POINT}" word before=""
  word="${line##*[[:space:]]}"
  local command="${COMP_WORDS[1]}"
  COMPREPLY=()
  case "$word" in
    --*=*)
      [ -n "$ZSH_VERSION" ] && before="${word%%%%=*}="
      local words="$(_vgg_jax_words "$command ${word%%%%=*}")"
      if [ -n "$words" ]; then
        COMPREPLY=($(compgen -W "$words" -- "${word#*=}"))
      else
        _vgg_jax_files "${word#*=}"
      fi
      COMPREPLY=("${COMPREPLY[@]/#/$before}") ;;
    -*) COMPREPLY=($(compgen -W "$(_vgg_jax_words "$command")" -- "$word")) ;;
    *)
      if [ "$COMP_CWORD" -eq 1 ]; then
        COMPREPLY=($(compgen -W "$(_vgg_jax_words commands)" -- "$word"))
      else
        _vgg_jax_files "$word"
      fi ;;
  esac
}
complete -o nospace -F _vgg_jax vgg-jax"""


def main(arguments: list[str]) -> None:
    if len(arguments) != 1 or arguments[0] not in _SHELLS:
        cli.fail(f"say for which shell, {' or '.join(_SHELLS)}: vgg-jax completion bash")
    print(_SCRIPT % "\n".join(f"    {case!r}) echo {' '.join(words)!r} ;;" for case, words in _cases()))


def _cases() -> Iterator[tuple[str, list[str]]]:
    """Yields what may follow: ("commands", names), ("COMMAND", its flags) and ("COMMAND FLAG", the flag's values)."""
    from vgg_jax.__main__ import COMMANDS

    yield "commands", list(COMMANDS)
    for name, command in COMMANDS.items():
        values = importlib.import_module(f"vgg_jax.{command.module}").flags.values
        offered = [f"--{flag}" if values[flag].boolean else f"--{flag}=" for flag in values]
        keys = _keys() if name == "train" else {}
        yield name, sorted(offered) + [f"--config.{key}=" for key in keys] + ["--help"]
        if "config" in values:
            yield f"{name} --config", list(configuration.configurations())
        for flag in values:
            if choices := getattr(values[flag].parser, "enum_values", None):
                yield f"{name} --{flag}", list(choices)
        yield from ((f"{name} --config.{key}", list(choices)) for key, choices in keys.items() if choices)


def _keys() -> dict[str, tuple[str, ...]]:
    """Returns the keys of configurations and what each can be, () where that is not a choice."""
    from vgg_jax.recipe import KEYS

    return {
        key: ("True", "False") if isinstance(declared.default, bool) else declared.choices
        for key, declared in KEYS.items()
    }
