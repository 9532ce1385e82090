"""What the site makes from the code: tables of options and errors, and the reference of the command.

A page has a comment where one belongs; on GitHub, which runs no hooks, nothing is shown there::

    <!-- options: dcp_core.config.SaveOptions -->     the options that this dataclass adds to its base
    <!-- errors -->                                   every error, with its code, its meaning and what to do
    <!-- commands -->                                 every command of dcp-cloud

A fact that is missing, such as an option without a description, ends the build.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Iterable
from importlib import import_module
from typing import Any

import typer
from mkdocs.exceptions import PluginError

from dcp_core import errors
from dcp_core.cli import app

_MARKER = re.compile(r"^<!-- (options|errors|commands)(?:: ([\w.]+))? -->$", re.MULTILINE)
#: A reference of Sphinx's in a docstring, which Markdown does not know.
_ROLE = re.compile(r":(?:class|func|meth):<code>~?(?:[\w.]*\.)?(\w+)</code>|:mod:(<code>)")
_SIZES = (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10))


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put tables in the places of their comments."""
    return _MARKER.sub(lambda found: _generated(found[1], found[2]), markdown)


def on_page_content(html: str, **_: Any) -> str:
    """Show references of docstrings by their last name, and modules by their whole one."""
    return _ROLE.sub(lambda found: found[2] or f"<code>{found[1]}</code>", html)


def _generated(kind: str, name: str | None) -> str:
    if kind == "options" and name is not None:
        return option_table(name)
    if kind == "errors":
        return error_table()
    if kind == "commands":
        return command_reference()
    raise PluginError(f"<!-- {kind} --> needs the name of a class")


def option_table(name: str) -> str:
    """A row for each option that the dataclass ``name`` declares itself."""
    module, _, attribute = name.rpartition(".")
    kind = getattr(import_module(module), attribute)
    described = _attributes(inspect.getdoc(kind) or "")
    own = [field for field in dataclasses.fields(kind) if field.name in inspect.get_annotations(kind)]
    if set(described) != {field.name for field in own}:
        raise PluginError(f"{name}: its docstring describes {sorted(described)}, not its fields")
    rows = ((f"`{field.name}`", f"`{_shown(field.default)}`", described[field.name]) for field in own)
    return _table(("option", "default", ""), rows)


def _attributes(docstring: str) -> dict[str, str]:
    """Name → description, of the section ``Attributes`` of a docstring; ``a, b: text`` is of both."""
    _, _, section = docstring.partition("Attributes:\n")
    entries = re.findall(r"^    (\w+(?:, \w+)*): (.*(?:\n {5,}.*)*)", section, re.MULTILINE)
    return {name: _inline(text) for names, text in entries for name in names.split(", ")}


def _shown(default: Any) -> str:
    if isinstance(default, float):
        return f"{default:g}"
    if isinstance(default, int) and not isinstance(default, bool):
        for unit, size in _SIZES:
            if default and default % size == 0:
                return f"{default // size} {unit}"
    return repr(default).replace("'", '"')


def error_table() -> str:
    """A row for each error, in the order of the tree."""
    return _table(("error", "code", "also a", "what it means", "what to do"), map(_error_row, _errors()))


def _errors() -> list[type[errors.CloudCheckpointError]]:
    base = errors.CloudCheckpointError
    kinds = [kind for kind in vars(errors).values() if inspect.isclass(kind) and issubclass(kind, base)]
    return [kind for kind in kinds if kind is not base]


def _error_row(kind: type[errors.CloudCheckpointError]) -> tuple[str, ...]:
    meaning, *others = (inspect.getdoc(kind) or "").split("\n\n")
    if not others:
        raise PluginError(f"{kind.__name__}: its docstring does not say what to do")
    builtins = [f"`{base.__name__}`" for base in kind.__bases__ if base.__module__ == "builtins"]
    names = (f"`{kind.__name__}`", f"`{kind.code}`", ", ".join(builtins))
    return (*names, _inline(meaning), _inline(others[0]))


def command_reference() -> str:
    """A section for each command."""
    application, _ = app._application()
    group = typer.main.get_command(application)
    return "\n\n".join(_command(name, command) for name, command in group.commands.items())


def _command(name: str, command: Any) -> str:
    parameters = list(command.params)
    rows = [_parameter_row(one) for one in parameters if one.param_type_name == "option"]
    arguments = [one.name.upper() for one in parameters if one.param_type_name == "argument"]
    usage = " ".join(("dcp-cloud", name, *arguments, "[OPTIONS]"))
    table = _table(("option", "default", ""), rows)
    return f"## {name}\n\n    {usage}\n\n{inspect.cleandoc(command.help)}\n\n{table}"


def _parameter_row(option: Any) -> tuple[str, ...]:
    if not option.help:
        raise PluginError(f"{option.opts}: has no help")
    default = "" if option.is_flag else f"`{_shown(option.default)}`"
    return (", ".join(f"`{name}`" for name in option.opts), default, _inline(option.help))


def _table(heads: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [heads, ("---",) * len(heads), *rows]
    return "\n".join(f"| {' | '.join(one.replace('|', chr(92) + '|') for one in line)} |" for line in lines)


def _inline(text: str) -> str:
    """A paragraph of a docstring on one line, in Markdown."""
    return " ".join(text.split()).replace("``", "`")
