"""Options: each is a flag, an environment variable and a default, told once.

The value of an option is, in this order: the flag, the process's own variable (prefix + flag in capitals:
``BROKER_DATA_DIR``), the shared variable (``CLICKHOUSE_URL``), the default. An empty variable counts as unset.
A secret may also come from a file (``--password-file``, ``STORE_PASSWORD_FILE``) and is told to
:mod:`telemetry.logs`, which keeps it out of every log line.

A bad value, an unknown option or a missing one is a :class:`UsageError`: one line on stderr, exit code 2.
"""

from __future__ import annotations

import argparse
import difflib
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, NoReturn

from telemetry import __version__, logs
from telemetry.values import (
    directory,
    duration_seconds,
    flag,
    host_port,
    non_negative_float,
    non_negative_int,
    path,
    positive_float,
    positive_int,
    size_bytes,
    url,
)

__all__ = [
    "COMMON",
    "Command",
    "CommandLine",
    "Option",
    "Positional",
    "UsageError",
    "common",
    "directory",
    "duration_seconds",
    "exit_usage",
    "flag",
    "host_port",
    "non_negative_float",
    "non_negative_int",
    "path",
    "positive_float",
    "positive_int",
    "size_bytes",
    "url",
    "usage_errors",
]

USAGE_EXIT_CODE: Final = 2

_METAVARS: Final[dict[Callable[[str], Any], str]] = {
    positive_int: "N",
    non_negative_int: "N",
    duration_seconds: "TIME",
    size_bytes: "SIZE",
    url: "URL",
    host_port: "HOST:PORT",
}


class UsageError(Exception):
    """The caller asked for something that cannot be: the message is one line that names the thing and what to do."""


def exit_usage(prog: str, error: object) -> NoReturn:
    """Print ``prog: error`` as one line on stderr and exit with code 2."""
    line = " ".join(str(error).split())
    print(f"{prog}: {logs.redacted(line)}", file=sys.stderr, flush=True)
    raise SystemExit(USAGE_EXIT_CODE)


@contextmanager
def usage_errors(prog: str) -> Iterator[None]:
    """For ``main()``: a :class:`UsageError` from anywhere inside becomes one line and exit code 2."""
    try:
        yield
    except UsageError as error:
        exit_usage(prog, error)


@dataclass(frozen=True)
class Option:
    """One option.

    ``type`` turns text into the value and raises ``ValueError`` with a message that goes on from the text
    ("is not a whole number above 0"). ``type=flag`` makes a switch: ``--insecure`` and ``--no-insecure``.
    ``multiple`` gives a tuple: the flag repeats, and both flag and variable split at commas.
    ``default`` is the value itself, not text. ``env`` is the variable shared between processes.
    """

    flag: str
    help: str
    default: Any = None
    type: Callable[[str], Any] = str
    unit: str = ""
    env: str = ""
    secret: bool = False
    choices: Sequence[str] | None = None
    multiple: bool = False
    required: bool = False
    short: str = ""
    metavar: str = ""

    @property
    def name(self) -> str:
        """The attribute of the parsed namespace."""
        return self.flag.replace("-", "_")

    def variables(self, prefix: str) -> tuple[str, ...]:
        """Environment variables that set this option, the strongest first (without the ``_FILE`` forms)."""
        own = f"{prefix}_{self.name.upper()}" if prefix else self.name.upper()
        return (own, self.env) if self.env and self.env != own else (own,)

    @property
    def default_text(self) -> str:
        """The default for people; "none" where there is none, and never a secret."""
        if self.secret:
            return "not shown" if self.default else "none"
        if self.default is None or self.default == "" or self.default == ():
            return "none"
        if isinstance(self.default, bool):
            return "on" if self.default else "off"
        if isinstance(self.default, tuple):
            return ",".join(map(str, self.default))
        return f"{self.default:g}" if isinstance(self.default, float) else str(self.default)


@dataclass(frozen=True)
class Positional:
    """One positional argument; ``nargs`` as in argparse: "" (exactly one), "?", "*", "+", "..." (all that follows)."""

    name: str
    help: str
    nargs: str = ""
    type: Callable[[str], Any] = str
    choices: Sequence[str] | None = None


@dataclass(frozen=True)
class Command:
    """A sub-command: ``prog NAME`` with options of its own beside those of the program."""

    help: str
    options: Sequence[Option] = ()
    positionals: Sequence[Positional] = ()


COMMON: Final[tuple[Option, ...]] = (
    Option(
        "log-level",
        "least severe log line that is written",
        "info",
        str.lower,
        env="LOG_LEVEL",
        choices=("debug", "info", "warning", "error"),
    ),
    Option(
        "log-format",
        "json, text, or auto: text on a terminal, else json",
        "auto",
        str.lower,
        env="LOG_FORMAT",
        choices=("auto", "text", "json"),
    ),
    Option(
        "http",
        "address of /health, /healthz, /readyz and /metrics; port 0 picks a free one; 'off' for none",
        "127.0.0.1:0",
        host_port,
    ),
    Option("drain-timeout", "longest time to finish work after SIGTERM or SIGINT", 10.0, duration_seconds, "seconds"),
    Option("insecure", "listen beyond loopback without keys", False, flag),
)
"""Options that every process has."""


def common(http: str) -> tuple[Option, ...]:
    """:data:`COMMON` with the process's own default HTTP address."""
    return tuple(replace(option, default=http) if option.flag == "http" else option for option in COMMON)


CommandLike = Command | tuple[str, Sequence[Option], Sequence[Positional]]


class CommandLine:
    """The command line of one program.

    ``prefix`` is that of its variables ("BROKER"). With ``commands`` the namespace has ``command``; without a
    command on the line it is ``default_command``, or a usage error where that is None ("" is allowed: no command).
    Options of the program may stand before or after the command.
    """

    def __init__(
        self,
        prog: str,
        prefix: str,
        summary: str,
        options: Sequence[Option] = (),
        commands: Mapping[str, CommandLike] | None = None,
        *,
        positionals: Sequence[Positional] = (),
        default_command: str | None = None,
    ) -> None:
        self.prog = prog
        self.prefix = prefix.rstrip("_").upper()
        self.summary = summary
        self.options = tuple(options)
        self.positionals = tuple(positionals)
        self.default_command = default_command
        self.commands: dict[str, Command] = {
            name: command if isinstance(command, Command) else Command(*command)
            for name, command in (commands or {}).items()
        }

    def options_of(self, command: str) -> tuple[Option, ...]:
        """Every option that counts under ``command``; a command's own option replaces the program's of that name."""
        own = tuple(self.commands[command].options) if command in self.commands else ()
        names = {option.flag for option in own}
        return tuple(option for option in self.options if option.flag not in names) + own

    def parse(self, argv: Sequence[str] | None = None, environ: Mapping[str, str] = os.environ) -> argparse.Namespace:
        """Parse; on a usage error print one line to stderr and exit with code 2."""
        with usage_errors(self.prog):
            return self.parse_or_raise(sys.argv[1:] if argv is None else argv, environ)
        raise AssertionError("unreachable")

    def parse_or_raise(self, argv: Sequence[str], environ: Mapping[str, str]) -> argparse.Namespace:
        """As :meth:`parse`, but raises :class:`UsageError`."""
        given = vars(self._parser().parse_args(list(argv)))
        command = given.get("command") or self.default_command or ""
        if self.commands and not given.get("command") and self.default_command is None:
            raise UsageError(f"which command? One of: {', '.join(self.commands)} (--help tells more)")
        values: dict[str, Any] = {"command": command} if self.commands else {}
        for positional in self.commands[command].positionals if command in self.commands else self.positionals:
            values[positional.name.replace("-", "_")] = _positional_value(positional, given)
        for option in self.options_of(command):
            values[option.name] = value = self._value(option, given, environ)
            if option.secret:
                logs.hide(value)
        return argparse.Namespace(**values)

    def _value(self, option: Option, given: Mapping[str, Any], environ: Mapping[str, str]) -> Any:
        found = _from_flags(option, given) or _from_environ(option, self.prefix, environ)
        if found is None:
            if option.required:
                variables = " or ".join(option.variables(self.prefix))
                raise UsageError(f"--{option.flag} is needed (or {variables} in the environment)")
            return option.default
        source, texts = found
        if not option.multiple:
            return _convert(option, source, texts[-1])
        return tuple(_convert(option, source, part) for text in texts for part in text.split(",") if part)

    def _parser(self) -> argparse.ArgumentParser:
        parser = _Parser(prog=self.prog, description=self.summary, allow_abbrev=False, formatter_class=_Help)
        parser.add_argument("--version", action="version", version=f"{self.prog} {__version__}")
        for option in self.options:
            self._add(parser, option)
        if not self.commands:
            _add_positionals(parser, self.positionals)
            return parser
        sub = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")
        for name, command in self.commands.items():
            child = sub.add_parser(
                name, help=command.help, description=command.help, allow_abbrev=False, formatter_class=_Help
            )
            _add_positionals(child, command.positionals)
            for option in self.options_of(name):
                self._add(child, option)
        return parser

    def _add(self, parser: argparse.ArgumentParser, option: Option) -> None:
        flags = [f"-{option.short}"] if option.short else []
        # SUPPRESS: an option left out after the command must not wipe out the one given before it.
        common: dict[str, Any] = {"dest": option.name, "default": argparse.SUPPRESS}
        text = self._help(option)
        if option.type is flag:
            parser.add_argument(*flags, f"--{option.flag}", action="store_const", const=["true"], help=text, **common)
            parser.add_argument(
                f"--no-{option.flag}", action="store_const", const=["false"], help=argparse.SUPPRESS, **common
            )
            return
        metavar = option.metavar or ("|".join(option.choices) if option.choices else _metavar(option))
        parser.add_argument(*flags, f"--{option.flag}", action="append", metavar=metavar, help=text, **common)
        if option.secret:
            parser.add_argument(
                f"--{option.flag}-file",
                action="append",
                metavar="FILE",
                dest=f"{option.name}_file",
                default=argparse.SUPPRESS,
                help=f"file that holds --{option.flag}",
            )

    def _help(self, option: Option) -> str:
        notes = [option.unit] if option.unit else []
        if option.required:
            notes.append("needed")
        else:
            notes.append(f"default: {option.default_text}")
        variables = option.variables(self.prefix)
        if option.secret:
            variables += (f"{variables[0]}_FILE",)
        notes.append(f"env: {', '.join(variables)}")
        return f"{option.help} [{'; '.join(notes)}]".replace("%", "%%")


class _Help(argparse.HelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30, width=110)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        unknown = re.match(r"unrecognized arguments: (--[\w-]+)", message)
        if unknown:
            close = difflib.get_close_matches(unknown[1], [f for a in self._all_actions() for f in a.option_strings], 1)
            hint = f"; did you mean {close[0]}?" if close else " (--help lists them)"
            raise UsageError(f"unknown option {unknown[1]}{hint}")
        raise UsageError(message.replace("argument ", "", 1) if message.startswith("argument ") else message)

    def _all_actions(self) -> Iterator[argparse.Action]:
        for action in self._actions:
            yield action
            if isinstance(action, argparse._SubParsersAction):
                for child in action.choices.values():
                    yield from child._actions


def _add_positionals(parser: argparse.ArgumentParser, positionals: Sequence[Positional]) -> None:
    for positional in positionals:
        parser.add_argument(
            positional.name.replace("-", "_"),
            metavar=positional.name.upper(),
            nargs=positional.nargs or None,
            help=positional.help.replace("%", "%%"),
        )


def _positional_value(positional: Positional, given: Mapping[str, Any]) -> Any:
    raw = given.get(positional.name.replace("-", "_"))
    label = positional.name.upper()

    def convert(text: str) -> Any:
        if positional.choices is not None and text not in positional.choices:
            raise UsageError(f"{label}: {text!r} is none of {', '.join(positional.choices)}")
        try:
            return positional.type(text)
        except ValueError as error:
            raise UsageError(f"{label}: {text!r} {error}") from None

    if isinstance(raw, list):
        return [convert(text) for text in raw]
    return None if raw is None else convert(raw)


def _from_flags(option: Option, given: Mapping[str, Any]) -> tuple[str, list[str]] | None:
    texts, files = given.get(option.name), given.get(f"{option.name}_file") if option.secret else None
    if texts and files:
        raise UsageError(f"give --{option.flag} or --{option.flag}-file, not both")
    if texts:
        return f"--{option.flag}", texts
    if files:
        return f"--{option.flag}-file", [_read_secret(f"--{option.flag}-file", files[-1])]
    return None


def _from_environ(option: Option, prefix: str, environ: Mapping[str, str]) -> tuple[str, list[str]] | None:
    for variable in option.variables(prefix):
        if environ.get(variable):
            return variable, [environ[variable]]
        if option.secret and environ.get(f"{variable}_FILE"):
            return f"{variable}_FILE", [_read_secret(f"{variable}_FILE", environ[f"{variable}_FILE"])]
    return None


def _read_secret(source: str, name: str) -> str:
    try:
        return Path(name).read_text("utf-8").rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise UsageError(f"{source}: cannot read {name}: {reason}") from None


def _convert(option: Option, source: str, text: str) -> Any:
    shown = "the value" if option.secret else repr(text)
    try:
        value = option.type(text)
    except ValueError as error:
        # A message may repeat the text: a secret's does not get out.
        raise UsageError(f"{source}: {shown} {'is not valid' if option.secret else error}") from None
    if option.choices is not None and value not in option.choices:
        raise UsageError(f"{source}: {shown} is none of {', '.join(option.choices)}")
    return value


def _metavar(option: Option) -> str:
    return _METAVARS.get(option.type, option.flag.rpartition("-")[2].upper())
