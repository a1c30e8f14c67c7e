"""``python -m telemetry.configuration_page > docs/configuration.md``: every option of every process, from the code."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib import import_module
from typing import Final

from telemetry.options import CommandLine, Option

PARTS: Final = (
    "zmqbroker.cli",
    "zmqbroker.admin.shell",
    "producers.cli",
    "consumers.cli",
    "consumers.archive_cli",
    "clickhouse.cli",
    "api.cli",
)
"""Modules with a COMMAND_LINE. By name: this package is below them all and imports none."""

HEAD: Final = """# Configuration

Every option of every process, made from the code by `make docs`; a test holds both together. There is no configuration
file: an option is a flag, or a variable of the environment.

The value is the first of these that is given: the flag, the process's own variable (the first that a table tells), the
variable that several processes share (the second), the default. An empty variable counts as unset.

- Times are `250ms`, `30s`, `5m`, `1h`, `7d` or plain seconds; sizes `512kB`, `64MB`, `64MiB`, `10GiB` or plain bytes.
- A switch is on with `--flag`, off with `--no-flag`; its variable is `true` or `false`.
- An option that may be given several times takes commas in its variable.
- A secret is also read from a file (`--password-file`, `…_PASSWORD_FILE`), and is kept out of help and logs.
- A value that is wrong, and an option that does not exist, is one line on stderr and exit code 2.

What to set the ones that matter for speed to: [tuning](tuning.md). What must be set in production:
[deploying](deploy.md#production-checklist).
"""


def command_lines() -> list[CommandLine]:
    """Those of all parts."""
    return [import_module(part).COMMAND_LINE for part in PARTS]


def page() -> str:
    """The whole page."""
    return "\n".join([HEAD.rstrip("\n"), *(line for each in command_lines() for line in section(each))]) + "\n"


def section(line: CommandLine) -> Iterator[str]:
    """One program: what it is, its commands, a table of its options."""
    yield from ("", f"## {line.prog}", "", line.summary)
    if line.commands:
        yield from ("", "| command | what it does |", "| --- | --- |")
        yield from (f"| `{name}` | {_cell(command.help)} |" for name, command in line.commands.items())
    yield ""
    within = " commands |" if line.commands else ""
    yield f"| option |{within} default | unit | environment | meaning |"
    yield "|" + " --- |" * (6 if line.commands else 5)
    for option, commands in _options(line):
        where = ("all" if len(commands) == len(line.commands) else ", ".join(f"`{c}`" for c in commands)) + " | "
        yield (
            f"| `--{option.flag}` | {where if line.commands else ''}{_default(option)} | {option.unit} | "
            f"{', '.join(f'`{name}`' for name in _variables(option, line.prefix))} | {_meaning(option)} |"
        )


def _options(line: CommandLine) -> list[tuple[Option, list[str]]]:
    """Each option once, with the commands under which it counts; those that count under most come first."""
    found: list[tuple[Option, list[str]]] = []
    for command in line.commands or [""]:
        for option in line.options_of(command):
            known = next((commands for other, commands in found if other == option), None)
            if known is None:
                found.append((option, [command]))
            else:
                known.append(command)
    return sorted(found, key=lambda each: -len(each[1]))


def _default(option: Option) -> str:
    if option.required:
        return "needed"
    if option.unit == "bytes" and option.default and option.default % 2**20 == 0:
        mebibytes = option.default >> 20
        return f"{mebibytes >> 10} GiB" if mebibytes % 1024 == 0 else f"{mebibytes} MiB"
    return "" if option.default_text == "none" else f"`{_cell(option.default_text)}`"


def _variables(option: Option, prefix: str) -> tuple[str, ...]:
    own, *shared = option.variables(prefix)
    return (own, f"{own}_FILE", *shared) if option.secret else (own, *shared)


def _meaning(option: Option) -> str:
    choices = f" ({', '.join(f'`{choice}`' for choice in option.choices)})" if option.choices else ""
    return _cell(option.help) + choices + (" (several)" if option.multiple else "")


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


if __name__ == "__main__":
    sys.stdout.write(page())
