"""Commands about the broker itself: checks, metrics, events, audit, settings."""

from __future__ import annotations

import shutil
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

from prometheus_client import generate_latest

from telemetry import __version__
from zmqbroker import protocol
from zmqbroker.admin.handlers_look import stats
from zmqbroker.admin.protocol import AdminError, Answer

if TYPE_CHECKING:
    from zmqbroker.admin.handlers import Admin

AGE_WARNING_S: Final = 300.0


def doctor(admin: Admin) -> Answer:
    found = stats(admin)
    checks: list[dict[str, str]] = []

    def add(check: str, state: str, finding: str, do: str = "") -> None:
        checks.append({"check": check, "state": state, "finding": finding, "do": do})

    for name, t in found["topics"].items():
        if t["stopped"]:
            add("log", "problem", f"topic {name} is stopped: {t['stopped']}", "check the disk, then restart the broker")
        elif t["disk_full"]:
            add(
                "disk",
                "problem",
                f"topic {name} is at its limit: producers wait",
                f"see `lag {name}`; raise disk-max, or free space",
            )
        if t["draining"]:
            add("drain", "warning", f"topic {name} is drained: its producers wait", f"`undrain {name}`")
        if t["dead"]:
            add("dead letters", "warning", f"topic {name} has {t['dead']}", f"`dlq stats {name}`, then redrive or drop")
        durable = [g for g in t["groups"].values() if g["durable"]]
        if not durable and t["messages"] and not name.endswith(".dlq"):
            add(
                "groups",
                "warning",
                f"topic {name} has no durable group: it holds everything",
                "start a collector, or `purge`",
            )
        for g in durable:
            where = f"group {g['group']} of {name}"
            if g["paused"]:
                add("groups", "warning", f"{where} is paused", f"`group resume {name} {g['group']}`")
            elif g["lag_rows"] and not g["members"]:
                add(
                    "groups",
                    "problem",
                    f"{where} has {g['lag_rows']} rows waiting and no member",
                    "start its consumers",
                )
            elif g["oldest_age_seconds"] > AGE_WARNING_S:
                add(
                    "lag",
                    "warning",
                    f"{where}: the oldest waits for {g['oldest_age_seconds']:.0f} s",
                    "more consumers, or a faster store",
                )
            if g["lost_messages"]:
                add(
                    "gaps",
                    "warning",
                    f"{where}: {g['lost_messages']} messages were dropped before it took them",
                    "more consumers, or a larger --disk-max",
                )
    lost = admin.core(lambda core: {t.name: t.lost_messages for t in core.topics.values() if t.lost_messages})
    for name, count in lost.items():
        add("gaps", "warning", f"topic {name}: {count} offsets are no more", f"`gaps {name}` says why")
    if found["credit_outstanding_bytes"] >= found["credit_pool_bytes"]:
        add(
            "credit",
            "warning",
            "the credit pool is given out: producers wait",
            "`quota set ingress_pool_bytes …`, or a faster disk",
        )
    counters = found["counters"]
    for name, what in (
        ("bad_checksums", "payloads that changed on their way"),
        ("garbage", "messages of no protocol"),
        ("over_credit", "messages above their credit"),
    ):
        if counters[name]:
            add("peers", "warning", f"{counters[name]} {what} since the start", "`clients` and `events` may tell whose")
    keys = admin.broker.keys
    if keys is not None and (keys.refused or keys.denied):
        finding = f"{keys.refused} handshakes and {keys.denied} conversations were refused since the start"
        add("keys", "warning", finding, "see the allow-list: a key, or a role, is missing")
    if keys is not None and keys.allow.error:
        add("keys", "problem", f"the allow-list was not taken: {keys.allow.error}", "correct the file")
    free = shutil.disk_usage(admin.broker.config.data_dir)
    if free.free < max(1 << 30, free.total // 20):
        add("disk", "warning", f"{free.free >> 20} MiB are free in {admin.broker.config.data_dir}", "free some")
    writer = admin.broker.writer
    if writer.commits:
        mean_ms = 1000 * writer.sync_seconds / writer.commits
        add(
            "sync",
            "ok" if mean_ms < 50 else "warning",
            f"{mean_ms:.2f} ms a commit over {writer.commits} commits",
            "" if mean_ms < 50 else "the disk is slow to sync",
        )
    if all(c["state"] == "ok" for c in checks):
        add("broker", "ok", f"{len(found['topics'])} topics, nothing to report")
    return Answer(checks, any(c["state"] == "problem" for c in checks))


check = doctor


def metrics(admin: Admin) -> str:
    if admin.registry is not None:
        return generate_latest(admin.registry).decode()
    found = stats(admin)
    return "".join(f"zmqbroker_{name}_total {value}\n" for name, value in found["counters"].items())


def events(admin: Admin, count: int) -> list[dict[str, Any]]:
    return [
        {"time": admin.iso(t * 1000), "level": level, "event": text}
        for t, level, text in list(admin.events.lines)[-count:]
    ]


def audit(admin: Admin, count: int) -> list[dict[str, Any]]:
    return list(admin.audit)[-count:]


def version(admin: Admin) -> dict[str, Any]:
    return {"broker": __version__, "protocol": protocol.VERSION}


def quota_get(admin: Admin) -> dict[str, Any]:
    return dict(
        admin.core(
            lambda core: {**asdict(core.state.config), "credit_outstanding_bytes": core.state.pool.outstanding_bytes}
        )
    )


def config_get(admin: Admin, name: str | None) -> dict[str, Any]:
    config = admin.broker.config
    keys = admin.broker.keys
    found: dict[str, Any] = {
        "data_dir": str(config.data_dir),
        "bind": list(admin.broker.endpoints),
        "admin_bind": admin.endpoint,
        "allow_list": str(keys.allow.path) if keys else None,
        **admin.core(
            lambda core: {
                **asdict(core.state.config),
                **{f"topic.{k}": v for k, v in asdict(core.state.topic_config).items()},
            }
        ),
    }
    if name is None:
        return found
    if name not in found:
        raise AdminError("not_found", f"there is no setting {name}", "`config get` lists them")
    return {name: found[name]}
