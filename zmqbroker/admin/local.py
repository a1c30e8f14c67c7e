"""Commands that live in the shell: live views, publishing, contexts, restore."""

from __future__ import annotations

import secrets
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from telemetry import __version__
from zmqbroker.admin import parsing
from zmqbroker.admin.protocol import AdminError, Answer
from zmqbroker.admin.rows import decoded
from zmqbroker.client import Producer
from zmqbroker.storage.backup import restore_logs

if TYPE_CHECKING:
    from zmqbroker.admin.shell import Shell

TOP_COLUMNS = (
    "topic",
    "group",
    "in_rows_per_s",
    "out_rows_per_s",
    "lag_rows",
    "oldest_age_seconds",
    "in_flight",
    "members",
    "dead",
)
PUBLISH_TIMEOUT_S = 10.0


def help(shell: Shell, command: list[str] | None = None) -> str:
    return parsing.help_text(command or [])


def version() -> str:
    return __version__


# -- live


def looks(shell: Shell, interval: float, rounds: int | None, once: bool = False) -> Iterator[list[dict[str, Any]]]:
    """One table a look: rates since the look before."""
    before: dict[tuple[str, str], tuple[int, int]] = {}
    last = 0.0
    number = 0
    while True:
        topics = _by_group(shell)
        now = shell.clock()
        rows = []
        after = {}
        for row in topics:
            key = (row["topic"], row["group"])
            after[key] = (row.pop("published"), row.pop("settled"))
            old = before.get(key)
            seconds = now - last
            row["in_rows_per_s"] = round((after[key][0] - old[0]) / seconds, 1) if old else row["in_rows_per_s"]
            row["out_rows_per_s"] = round((after[key][1] - old[1]) / seconds, 1) if old else 0.0
            rows.append({name: row[name] for name in TOP_COLUMNS})
        before, last = after, now
        yield rows
        number += 1
        if once or (rounds is not None and number >= rounds):
            return
        shell.sleep(interval)


def _by_group(shell: Shell) -> list[dict[str, Any]]:
    topics = {t["topic"]: t for t in shell.ask("topics").result}
    rows = []
    for name, t in topics.items():
        info = shell.ask("topic info", topic=name).result
        base = {
            "topic": name,
            "in_rows_per_s": t["throughput_rows_per_sec"],
            "dead": t["dead"],
            "published": info["published_rows"],
        }
        groups = list(shell.ask("groups", topic=name).result)
        for g in groups:
            told = shell.ask("group info", topic=name, group=g["group"]).result
            rows.append(
                {
                    **base,
                    "group": g["group"],
                    "lag_rows": g["lag_rows"],
                    "oldest_age_seconds": g["oldest_age_seconds"],
                    "in_flight": g["in_flight"],
                    "members": g["members"],
                    "settled": told["settled_rows"],
                }
            )
        if not groups:
            rows.append(
                {
                    **base,
                    "group": "",
                    "lag_rows": t["rows"],
                    "oldest_age_seconds": t["oldest_age_seconds"],
                    "in_flight": 0,
                    "members": 0,
                    "settled": 0,
                }
            )
    return rows


def top(shell: Shell, interval: float = 1.0, once: bool = False, rounds: int | None = None) -> Answer | None:
    if not shell.terminal or once:
        for rows in looks(shell, interval, rounds, once):
            shell.show(rows)
        return None
    from zmqbroker.admin.screen import live

    live(shell, looks(shell, 0.0, None), interval, rounds)
    return None


def watch(shell: Shell, command: list[str], interval: float = 1.0, rounds: int | None = None) -> Answer | None:
    number = 0
    while True:
        code = shell.run(command)
        if code == 2:
            raise AdminError("bad_argument", "the watched command cannot be run")
        number += 1
        if rounds is not None and number >= rounds:
            return None
        shell.sleep(interval)


def tail(
    shell: Shell,
    topic: str,
    count: int = 10,
    partition: int | None = None,
    follow: bool = False,
    interval: float = 1.0,
    filter: list[str] | None = None,
    decode: str = "auto",
) -> None:
    page = shell.ask("peek", topic=topic, count=count, partition=partition, **{"from": "latest"}).result
    while True:
        rows = decoded(page["records"], decode, filter or [])
        if rows:
            shell.show(rows)
        if not follow:
            return
        behind = [p for p, at in page["next"].items() if at < page["ends"][p]]
        if not behind:
            shell.sleep(interval)
        records, after, ends = [], {}, {}
        for p, at in page["next"].items():
            more = shell.ask("peek", topic=topic, count=500, partition=int(p), **{"from": f"offset:{at}"}).result
            records += more["records"]
            after.update(more["next"])
            ends.update(more["ends"])
        page = {"records": records, "next": after, "ends": ends}


# -- publishing


def _data_url(shell: Shell, url: str | None) -> str:
    return url or str(shell.ask("status").result["data_addresses"][0])


def produce(
    shell: Shell,
    topic: str,
    text: str | None = None,
    file: str | None = None,
    rows: int = 1,
    key: str | None = None,
    url: str | None = None,
) -> dict[str, Any]:
    if text is not None and file is not None:
        raise AdminError("bad_argument", "give a text or a file, not both")
    try:
        payload = text.encode() if text is not None else Path(file).read_bytes() if file else sys.stdin.buffer.read()
    except OSError as e:
        raise AdminError("failed", f"cannot read {file}: {e.strerror}") from None
    with Producer(_data_url(shell, url), topic, name="admin", keys=shell.keys) as producer:
        receipt = producer.publish(payload, rows, key.encode() if key else None, timeout=PUBLISH_TIMEOUT_S)
        if not receipt.wait(PUBLISH_TIMEOUT_S):
            raise AdminError(
                "failed",
                "it was not acked in time: it may be stored or not",
                f"`trace {topic} {producer.session}/{receipt.seq}`",
            )
        return {"topic": topic, "bytes": len(payload), "session": producer.session, "seq": receipt.seq}


def bench(shell: Shell, messages: int = 5000, size: int = 1000, url: str | None = None) -> dict[str, Any]:
    topic = f"admin-bench-{secrets.token_hex(4)}"
    payload = secrets.token_bytes(size)
    waits: list[float] = []
    try:
        with Producer(_data_url(shell, url), topic, name="admin-bench", keys=shell.keys) as producer:
            for _ in range(20):
                start = time.perf_counter()
                producer.publish(payload, 1, timeout=PUBLISH_TIMEOUT_S).wait(PUBLISH_TIMEOUT_S)
                waits.append(time.perf_counter() - start)
            start = time.perf_counter()
            for _ in range(messages):
                producer.publish(payload, 1, timeout=PUBLISH_TIMEOUT_S)
            if not producer.flush(60):
                raise AdminError("failed", "not everything was acked within 60 s", "`doctor` may tell why")
            seconds = time.perf_counter() - start
    finally:
        shell.ask("topic delete", topic=topic)
    return {
        "messages": messages,
        "bytes_each": size,
        "messages_per_s": round(messages / seconds),
        "mb_per_s": round(messages * size / seconds / 1e6, 2),
        "ack_alone_p50_ms": round(1000 * statistics.median(waits), 3),
        "ack_alone_max_ms": round(1000 * max(waits), 3),
    }


# -- files of this machine


def restore(shell: Shell, from_: str, data_dir: str, topic: str | None = None) -> dict[str, Any]:
    return {"data_dir": data_dir, "bytes": restore_logs(from_, data_dir, topic)}


def context_ls(shell: Shell) -> list[dict[str, Any]]:
    return shell.contexts.ls()


def context_add(shell: Shell, name: str, url: str, key: str | None = None, server_key: str | None = None) -> Any:
    shell.contexts.add(name, url, key, server_key)
    return shell.contexts.ls()


def context_select(shell: Shell, name: str) -> Any:
    shell.contexts.select(name)
    shell.connect()
    return shell.contexts.ls()


def context_rm(shell: Shell, name: str) -> Any:
    shell.contexts.rm(name)
    return shell.contexts.ls()


def function(name: str) -> Callable[..., Any]:
    """The function of a local command."""
    found: Callable[..., Any] = globals()[name]
    return found
