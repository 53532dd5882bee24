"""The command reference, made of the Typer app: each command with its usage, arguments, options and examples."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from typer.main import get_command

INTRODUCTION = """# Commands

Made from the program's own `--help`. Results go to stdout, progress and errors to stderr; an error is one line and a
non-zero exit code. Commands find what was made last, in `runs/`.
"""


def walk(group: Any = None, names: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Each command of the app with its name as it is typed, in the order of `--help`."""
    if group is None:
        from weightsearch.cli import app

        group = get_command(app)
    for name, command in group.commands.items():
        if getattr(command, "hidden", False):
            continue
        if hasattr(command, "commands"):
            yield from walk(command, (*names, name))
        else:
            yield " ".join((*names, name)), command


def options(command: Any) -> list[Any]:
    return [one for one in command.params if one.param_type_name == "option" and not one.hidden]


def arguments(command: Any) -> list[Any]:
    return [one for one in command.params if one.param_type_name == "argument" and not one.hidden]


def page() -> str:
    commands = list(walk())
    lines = [INTRODUCTION, "| command | does |", "|---|---|"]
    for name, command in commands:
        lines.append(f"| [`{name}`](#{anchor(name)}) | {cell(command.help.partition(chr(10) * 2)[0])} |")
    return "\n".join(lines) + "\n\n" + "\n\n".join(section(name, command) for name, command in commands) + "\n"


def anchor(name: str) -> str:
    return name.replace(" ", "-")


def section(name: str, command: Any) -> str:
    parts = [f"## `{name}` {{ #{anchor(name)} }}", command.help]
    usage = " ".join(["weightsearch", name, *map(argument_name, arguments(command)), "[OPTIONS]"])
    parts.append(f"```\n{usage}\n```")
    rows = [(f"`{argument_name(one)}`", described(one)) for one in arguments(command)]
    rows += [(option_names(one), described(one)) for one in options(command)]
    parts.append(
        "\n".join(
            ["| argument or option | what for |", "|---|---|", *(f"| {names} | {text} |" for names, text in rows)]
        )
    )
    examples = [line for line in (command.epilog or "").partition("Example:")[2].splitlines() if line.strip()]
    if examples:
        parts.append("\n".join(["```sh", *(line.strip() for line in examples), "```"]))
    return "\n\n".join(parts)


def argument_name(argument: Any) -> str:
    if argument.metavar:
        return str(argument.metavar)
    name = argument.name.upper().rstrip("_")
    return f"{name if argument.required else f'[{name}]'}{'...' if argument.nargs == -1 else ''}"


def option_names(option: Any) -> str:
    """`--quiet`, `-q`; what takes a value with a word for it: `--where WHERE`."""
    value = "" if option.is_flag else f" {option.metavar or option.opts[0].lstrip('-').upper()}"
    return ", ".join(f"`{name}{value}`" for name in [*option.opts, *option.secondary_opts])


def described(parameter: Any) -> str:
    """Its help and its default, in words; defaults that are computed say how."""
    text = cell(parameter.help or "")
    shown = getattr(parameter, "show_default", None)
    default = shown if isinstance(shown, str) else parameter.default
    if default in (None, "", False, (), []) or callable(default) or getattr(parameter, "required", False):
        return text
    default = f"{default}" if isinstance(shown, str) else f"`{getattr(default, 'value', default)}`"
    return f"{text} *Default: {default}.*".strip()


def cell(text: str) -> str:
    return " ".join(text.split()).replace("|", r"\|").replace("*", r"\*").replace("<", "&lt;")
