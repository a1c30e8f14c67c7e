"""From words to a command and its arguments; help text. Made of :data:`.commands.COMMANDS`."""

from __future__ import annotations

import argparse
import difflib
from typing import Any, NoReturn

from telemetry.options import UsageError
from zmqbroker.admin.commands import BY_NAME, COMMANDS, Argument, Command, find

OUTPUTS = ("table", "json", "ndjson", "csv", "yaml")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{self.prog}: {message}; `help {self.prog}` tells more")


def parse(words: list[str]) -> tuple[Command, dict[str, Any]]:
    """Raises :class:`UsageError`. The arguments hold ``output`` and ``no_color`` too, where they were given."""
    command, rest = find(words)
    if command is None:
        raise UsageError(_unknown(words))
    if "-h" in rest or "--help" in rest:
        return BY_NAME["help"], {"command": command.name.split()}
    parser = _Parser(prog=command.name, add_help=False, allow_abbrev=False)
    parser.add_argument("-o", "--output", choices=OUTPUTS)
    parser.add_argument("--no-color", action="store_true", default=None)
    for argument in command.arguments:
        _add(parser, argument)
    found = {name: value for name, value in vars(parser.parse_args(rest)).items() if value is not None}
    return command, found


def _add(parser: argparse.ArgumentParser, argument: Argument) -> None:
    options: dict[str, Any] = {}
    if argument.switch:
        options.update(action="store_true", default=None)
    else:
        options.update(type=_typed(argument), choices=argument.choices or None)
    if argument.flag:
        flags = [f"-{argument.short}"] if argument.short else []
        if argument.many:
            options["action"] = "append"
        required = argument.required
        parser.add_argument(
            *flags, f"--{argument.name}", dest=argument.name.replace("-", "_"), required=required, **options
        )
    elif argument.many:
        parser.add_argument(argument.name, nargs=argparse.REMAINDER, **options)
    else:
        parser.add_argument(argument.name, nargs=None if argument.required else "?", **options)


def _typed(argument: Argument) -> Any:
    def convert(text: str) -> Any:
        try:
            return argument.type(text)
        except ValueError as e:
            raise argparse.ArgumentTypeError(f"{text!r} {e}") from None

    return convert


def _unknown(words: list[str]) -> str:
    if not words:
        return "which command? `help` lists them"
    below = [c.name for c in COMMANDS if c.name.startswith(f"{words[0]} ")]
    if below:
        return f"{words[0]} needs one of: {', '.join(name.split()[1] for name in below)}"
    close = difflib.get_close_matches(" ".join(words[:2]), list(BY_NAME), 1) or difflib.get_close_matches(
        words[0], list(BY_NAME), 1
    )
    return f"there is no command {words[0]!r}" + (f"; did you mean {close[0]}?" if close else "; `help` lists them")


def usage(command: Command) -> str:
    """One line."""
    parts = [command.name]
    for argument in command.arguments:
        if argument.flag:
            text = f"--{argument.name}" + ("" if argument.switch else f" {_metavar(argument)}")
        else:
            text = argument.name.upper() + (" …" if argument.many else "")
        parts.append(text if argument.required else f"[{text}]")
    return " ".join(parts)


def _metavar(argument: Argument) -> str:
    return "|".join(argument.choices) if argument.choices else argument.name.rpartition("-")[2].upper()


def help_text(words: list[str]) -> str:
    """Of one command, of all below a word, or of everything. Raises :class:`UsageError`."""
    if not words:
        width = max(len(c.name) for c in COMMANDS)
        lines = [f"  {c.name:<{width}}  {c.help}" for c in COMMANDS]
        return "\n".join(["Commands (`help COMMAND` tells more; -o table|json|ndjson|csv|yaml everywhere):", *lines])
    command, _ = find(words)
    if command is None:
        below = [c for c in COMMANDS if c.name.startswith(f"{words[0]} ")]
        if not below:
            raise UsageError(_unknown(words))
        return "\n".join(f"  {c.name}  {c.help}" for c in below)
    lines = [usage(command), "", f"  {command.help}"]
    for argument in command.arguments:
        name = f"--{argument.name}" if argument.flag else argument.name.upper()
        default = f" [default: {argument.default}]" if argument.default not in (None, False) else ""
        lines.append(f"  {name:<18} {argument.help}{default}")
    if command.destroys:
        lines.append(
            f"\n  It destroys: you are asked to type the {command.destroys}; --yes spares it, --dry-run only tells."
        )
    return "\n".join(lines)
