"""Every command, told once: arguments, help, what destroys. Parser, completion, help text and the page are made of it.

A command without ``local`` is answered by the broker (a function of the same name in a ``handlers_*`` module); a local
one lives in the shell.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from telemetry.values import duration_seconds, non_negative_int, positive_float, positive_int, size_bytes


@dataclass(frozen=True)
class Argument:
    """One argument: positional where ``flag`` is false. ``complete`` says what to offer: topic, group, choices."""

    name: str
    help: str
    flag: bool = True
    type: Callable[[str], Any] = str
    default: Any = None
    required: bool = False
    switch: bool = False
    many: bool = False
    choices: tuple[str, ...] = ()
    complete: str = ""
    short: str = ""


@dataclass(frozen=True)
class Command:
    """One command. ``destroys`` names the argument to type for confirmation; such commands have ``--dry-run``."""

    name: str
    help: str
    arguments: tuple[Argument, ...] = ()
    destroys: str = ""
    changes: bool = False
    local: bool = False

    @property
    def function(self) -> str:
        return self.name.replace(" ", "_").replace("-", "_")


def _offset(text: str) -> int:
    try:
        return non_negative_int(text)
    except ValueError:
        raise ValueError("is no offset: a whole number from 0") from None


TOPIC: Final = Argument("topic", "name of the topic", flag=False, required=True, complete="topic")
MAYBE_TOPIC: Final = Argument("topic", "name of the topic (all where it is left out)", flag=False, complete="topic")
GROUP: Final = Argument("group", "name of the consumer group", flag=False, required=True, complete="group")
MAYBE_GROUP: Final = Argument("group", "name of the consumer group", flag=False, complete="group")
PARTITION: Final = Argument("partition", "only this partition", type=non_negative_int)
COUNT: Final = Argument("count", "how many records", type=positive_int, default=10, short="n")
DRY_RUN: Final = Argument("dry-run", "say what would be done, and do nothing", switch=True)
YES: Final = Argument("yes", "do it without asking", switch=True)
INTERVAL: Final = Argument("interval", "seconds between two looks", type=positive_float, default=1.0, short="i")
WHEN: Final = "earliest, latest, an offset, or a time: 2026-01-31T12:00:00Z, unix seconds, now-1h"

_SETTINGS: Final = (
    Argument("fsync", "when a batch is acked", choices=("commit", "interval", "never")),
    Argument("fsync-interval", "longest time without a sync, for fsync=interval", type=duration_seconds),
    Argument("retention", "keep-for-replay after every durable group has acked", type=duration_seconds),
    Argument("retention-bytes", "keep-for-replay by size; 0: by time alone", type=size_bytes),
    Argument("disk-max", "size at which producers get no more credit", type=size_bytes),
    Argument("overflow", "at the disk limit", choices=("stop", "drop-oldest")),
    Argument("segment-bytes", "size of a segment, from the next start on", type=size_bytes),
)

COMMANDS: Final[tuple[Command, ...]] = (
    Command("status", "the broker at a glance"),
    Command(
        "top",
        "live rates, lag and ages; q ends it",
        (
            INTERVAL,
            Argument("once", "print one look and end", switch=True),
            Argument("rounds", "end after so many looks", type=positive_int),
        ),
        local=True,
    ),
    Command("topics", "every topic, with what waits in it"),
    Command("topic info", "one topic: settings, partitions, groups", (TOPIC,)),
    Command(
        "topic create",
        "make a topic",
        (
            TOPIC,
            Argument("partitions", "number of partitions", type=positive_int, default=4),
            Argument("storage", "where it lives", choices=("disk", "memory"), default="disk"),
            *_SETTINGS,
        ),
        changes=True,
    ),
    Command("topic edit", "change a topic's settings", (TOPIC, *_SETTINGS, DRY_RUN), changes=True),
    Command(
        "topic delete", "remove a topic with all that is in it", (TOPIC, DRY_RUN, YES), destroys="topic", changes=True
    ),
    Command("partitions", "offsets and sizes of each partition", (MAYBE_TOPIC,)),
    Command("groups", "consumer groups with lag", (MAYBE_TOPIC,)),
    Command("group info", "one group: members, ranges, position by partition", (TOPIC, GROUP)),
    Command(
        "group reset",
        "move a group to another place; a new generation of the group begins",
        (TOPIC, GROUP, Argument("to", WHEN, required=True), PARTITION, DRY_RUN, YES),
        destroys="group",
        changes=True,
    ),
    Command("group pause", "deliver nothing more to a group; it keeps its place", (TOPIC, GROUP), changes=True),
    Command("group resume", "go on delivering", (TOPIC, GROUP), changes=True),
    Command(
        "group delete", "forget a group and its place", (TOPIC, GROUP, DRY_RUN, YES), destroys="group", changes=True
    ),
    Command(
        "lag",
        "what each group has not acked yet, in rows and in seconds",
        (
            MAYBE_TOPIC,
            MAYBE_GROUP,
            Argument("watch", "look again and again", switch=True),
            INTERVAL,
            Argument("max-rows", "exit 1 where a group has more", type=non_negative_int),
            Argument("max-age", "exit 1 where the oldest is older", type=duration_seconds),
        ),
    ),
    Command("members", "consumers and what they hold", (MAYBE_TOPIC, MAYBE_GROUP)),
    Command("clients", "every connected producer and consumer"),
    Command(
        "kick",
        "end a client's conversation; it may come back",
        (Argument("client", "its id, as `clients` shows it", flag=False, required=True), DRY_RUN, YES),
        destroys="client",
        changes=True,
    ),
    Command(
        "peek",
        "look at records without taking them",
        (
            TOPIC,
            COUNT,
            PARTITION,
            Argument("from", WHEN, default="earliest"),
            Argument("filter", "only rows with NAME=VALUE, for decoded rows (repeat)", many=True),
            Argument(
                "decode", "yes: rows of batches, no: records, auto", choices=("auto", "yes", "no"), default="auto"
            ),
        ),
    ),
    Command(
        "tail",
        "follow a topic as it grows",
        (
            TOPIC,
            COUNT,
            PARTITION,
            Argument("follow", "go on until interrupted", switch=True, short="f"),
            INTERVAL,
            Argument("filter", "only rows with NAME=VALUE, for decoded rows (repeat)", many=True),
            Argument(
                "decode", "yes: rows of batches, no: records, auto", choices=("auto", "yes", "no"), default="auto"
            ),
        ),
        local=True,
    ),
    Command(
        "produce",
        "publish a message: text, a file, or standard input",
        (
            TOPIC,
            Argument("text", "the payload", flag=False),
            Argument("file", "a file that holds the payload"),
            Argument("rows", "rows it counts as", type=positive_int, default=1),
            Argument("key", "decides the partition"),
            Argument("url", "data address (else the broker's own)"),
        ),
        changes=True,
        local=True,
    ),
    Command(
        "replay",
        "deliver old records once more to one group",
        (
            TOPIC,
            Argument("into", "the group that gets them", required=True, complete="group"),
            Argument("from", WHEN, default="earliest"),
            Argument("to", WHEN + " (exclusive)", default="latest"),
            PARTITION,
            Argument("rate", "rows a second, at most", type=positive_int),
            DRY_RUN,
            YES,
        ),
        destroys="topic",
        changes=True,
    ),
    Command(
        "purge",
        "drop a topic's records for every group",
        (
            TOPIC,
            Argument("before", WHEN),
            Argument("keep", "keep the last so many of each partition", type=non_negative_int),
            DRY_RUN,
            YES,
        ),
        destroys="topic",
        changes=True,
    ),
    Command("dlq ls", "topics with dead letters"),
    Command(
        "dlq peek",
        "dead letters: where they come from and why",
        (TOPIC, COUNT, Argument("from", WHEN, default="earliest")),
    ),
    Command("dlq stats", "dead letters by group and reason", (TOPIC,)),
    Command(
        "dlq redrive",
        "give dead letters back to the group they came from",
        (
            TOPIC,
            Argument("offset", "only the letter at this offset of the dead-letter topic", type=_offset),
            Argument("group", "only letters of this group", complete="group"),
            Argument("target", "publish into this topic instead", complete="topic"),
            Argument("rate", "letters a second, at most", type=positive_int),
            DRY_RUN,
            YES,
        ),
        destroys="topic",
        changes=True,
    ),
    Command(
        "dlq drop",
        "drop dead letters for good",
        (TOPIC, Argument("offset", "only the letter at this offset", type=_offset), DRY_RUN, YES),
        destroys="topic",
        changes=True,
    ),
    Command("drain", "give producers no more credit; consumers go on", (MAYBE_TOPIC,), changes=True),
    Command("undrain", "give producers credit again", (MAYBE_TOPIC,), changes=True),
    Command("quota get", "limits of the broker"),
    Command(
        "quota set",
        "change a limit until the next start",
        (
            Argument("name", "name of the limit", flag=False, required=True, complete="quota"),
            Argument("value", "its new value", flag=False, required=True),
        ),
        changes=True,
    ),
    Command("config get", "settings in force", (Argument("name", "only this one", flag=False),)),
    Command("config reload", "read the allow-list again", changes=True),
    Command(
        "log-level",
        "see or change how much is logged",
        (Argument("level", "the new level", flag=False, choices=("debug", "info", "warning", "error")),),
        changes=True,
    ),
    Command(
        "snapshot",
        "write the state of topics into their logs now, and begin new segments",
        (MAYBE_TOPIC,),
        changes=True,
    ),
    Command(
        "backup",
        "copy topics on disk to a directory of the broker's machine",
        (Argument("to", "the directory", required=True), Argument("topic", "only this topic", complete="topic")),
        changes=True,
    ),
    Command(
        "restore",
        "put a backup into a data directory that no broker holds",
        (
            Argument("from", "the backup", required=True),
            Argument("data-dir", "the data directory", required=True),
            Argument("topic", "only this topic"),
        ),
        changes=True,
        local=True,
    ),
    Command("gaps", "offsets that are no more, and why", (MAYBE_TOPIC,)),
    Command(
        "trace",
        "what became of one batch",
        (TOPIC, Argument("batch", "SESSION/SEQ, or PARTITION:OFFSET", flag=False, required=True)),
    ),
    Command(
        "bench",
        "publish into a topic of its own and time the acks",
        (
            Argument("messages", "how many", type=positive_int, default=5000),
            Argument("size", "bytes each", type=size_bytes, default=1000),
            Argument("url", "data address"),
        ),
        changes=True,
        local=True,
    ),
    Command("doctor", "checks, with what to do about each; exit 1 where one fails"),
    Command("check", "the same as doctor"),
    Command("metrics", "counters and gauges, in the Prometheus text format"),
    Command(
        "events",
        "what the broker has logged of late",
        (Argument("count", "how many", type=positive_int, default=50, short="n"),),
    ),
    Command(
        "audit",
        "who changed what by this socket",
        (Argument("count", "how many", type=positive_int, default=50, short="n"),),
    ),
    Command("context ls", "saved addresses", local=True),
    Command(
        "context add",
        "save an address under a name",
        (
            Argument("name", "the name", flag=False, required=True),
            Argument("url", "admin address", flag=False, required=True),
            Argument("key", "own NAME.key_secret"),
            Argument("server-key", "the broker's public key, or its file"),
        ),
        local=True,
    ),
    Command(
        "context select",
        "use a saved address from now on",
        (Argument("name", "the name", flag=False, required=True, complete="context"),),
        local=True,
    ),
    Command(
        "context rm",
        "forget a saved address",
        (Argument("name", "the name", flag=False, required=True, complete="context"),),
        local=True,
    ),
    Command(
        "watch",
        "run a command again and again",
        (
            INTERVAL,
            Argument("rounds", "end after so many", type=positive_int),
            Argument("command", "the command with its arguments", flag=False, many=True, required=True),
        ),
        local=True,
    ),
    Command("help", "what there is", (Argument("command", "more of this command", flag=False, many=True),), local=True),
    Command("version", "versions of shell and broker"),
)

BY_NAME: Final = {command.name: command for command in COMMANDS}


def find(words: list[str]) -> tuple[Command | None, list[str]]:
    """The command that ``words`` begin with, and the words after it."""
    for length in (2, 1):
        command = BY_NAME.get(" ".join(words[:length])) if len(words) >= length else None
        if command is not None:
            return command, words[length:]
    return None, words
