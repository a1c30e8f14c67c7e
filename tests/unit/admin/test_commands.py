"""The table of commands, and what is made of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from telemetry.options import UsageError
from zmqbroker.admin import local
from zmqbroker.admin.commands import BY_NAME, COMMANDS, find
from zmqbroker.admin.handlers import HANDLERS, checked
from zmqbroker.admin.parsing import help_text, parse, usage
from zmqbroker.admin.protocol import AdminError

FIELD_COMMANDS = """
status | top | topics | topic info | topic create | topic delete | topic edit | partitions | groups | group info
group reset | group pause | group resume | group delete | lag | members | clients | kick | peek | tail | produce
replay | purge | dlq ls | dlq peek | dlq stats | dlq redrive | dlq drop | drain | undrain | quota get | quota set
config get | config reload | log-level | snapshot | backup | restore | gaps | trace | bench | doctor | check | metrics
events | audit | context ls | context add | context select | watch | help | version
"""


def test_every_command_that_operators_know_from_elsewhere_is_there() -> None:
    words = [name.strip() for line in FIELD_COMMANDS.strip().splitlines() for name in line.split("|")]
    assert [name for name in words if name not in BY_NAME] == []


@pytest.mark.parametrize("command", COMMANDS, ids=lambda c: c.name)
def test_every_command_is_answered_by_the_broker_or_by_the_shell(command) -> None:
    if command.local:
        assert callable(local.function(command.function))
    else:
        assert command.name in HANDLERS


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.destroys], ids=lambda c: c.name)
def test_whatever_destroys_can_be_looked_at_first_and_must_be_confirmed(command) -> None:
    names = {a.name for a in command.arguments}
    assert {"dry-run", "yes"} <= names
    assert command.destroys in names
    assert command.changes


@pytest.mark.parametrize("command", COMMANDS, ids=lambda c: c.name)
def test_every_command_has_help_with_each_of_its_arguments(command) -> None:
    text = help_text(command.name.split())
    assert usage(command) in text
    for argument in command.arguments:
        assert argument.help in text


def test_words_find_the_longest_command() -> None:
    command, rest = find(["topic", "info", "t", "-o", "json"])
    assert command is not None
    assert (command.name, rest) == ("topic info", ["t", "-o", "json"])


def test_arguments_get_their_types_and_options_may_stand_anywhere() -> None:
    command, args = parse(
        ["peek", "-n", "5", "t", "--from", "now-1h", "--filter", "gpu=0", "--filter", "x=y", "-o", "json"]
    )
    assert command.name == "peek"
    assert args["count"] == 5
    assert args["filter"] == ["gpu=0", "x=y"]
    assert (args["topic"], args["from"], args["output"]) == ("t", "now-1h", "json")


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["topcs"], "did you mean topics?"),
        (["group"], "needs one of: info, reset"),
        ([], "which command"),
        (["peek"], "topic"),
        (["peek", "t", "-n", "0"], "is not a whole number above 0"),
        (["topic", "create", "t", "--fsync", "maybe"], "invalid choice"),
        (["status", "--wat"], "--wat"),
        (["group", "reset", "t", "g"], "--to"),
    ],
)
def test_what_cannot_be_understood_says_what_to_do(words: list[str], hint: str) -> None:
    with pytest.raises(UsageError, match=hint):
        parse(words)


def test_the_broker_checks_arguments_itself() -> None:
    peek = BY_NAME["peek"]
    assert checked(peek, {"topic": "t", "count": "7"})["count"] == 7
    assert checked(peek, {"topic": "t"})["from_"] == "earliest"
    for given, reason in (
        ({}, "needs topic"),
        ({"topic": "t", "count": -1}, "above 0"),
        ({"topic": "t", "decode": "perhaps"}, "none of auto, yes, no"),
        ({"topic": "t", "colour": "red"}, "no argument colour"),
    ):
        with pytest.raises(AdminError, match=reason):
            checked(peek, given)


def test_asking_for_help_of_a_command_is_not_running_it() -> None:
    command, args = parse(["topic", "delete", "--help"])
    assert command.name == "help"
    assert "delete" in help_text(args["command"])


def test_the_page_lists_every_command_as_it_is(root: Path) -> None:
    page = (root / "docs" / "admin.md").read_text().replace("\\|", "|")
    assert [c.name for c in COMMANDS if f"| `{usage(c)}` | {c.help}" not in page] == []
