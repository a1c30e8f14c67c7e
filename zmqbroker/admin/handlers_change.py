"""Commands that change something."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields, replace
from typing import TYPE_CHECKING, Any, Final

from zmqbroker import protocol
from zmqbroker.admin.places import positions
from zmqbroker.admin.protocol import AdminError
from zmqbroker.core.broker import Core
from zmqbroker.core.config import RECONNECT_GRACE_S_MIN, BrokerConfig, GroupConfig, TopicConfig
from zmqbroker.core.group import Group
from zmqbroker.core.operating import QUOTAS
from zmqbroker.core.session import Session
from zmqbroker.core.state import Consumer
from zmqbroker.storage.backup import copy_log
from zmqbroker.storage.interface import TopicLog

if TYPE_CHECKING:
    from zmqbroker.admin.handlers import Admin

OPEN_WAIT_S: Final = 10.0
_LEVELS: Final = {"debug": 10, "info": 20, "warning": 30, "error": 40}


def wait(admin: Admin, until: Callable[[], Any], seconds: float, what: str) -> Any:
    """Ask ``until`` again and again; its answer once it is true. Raises :class:`AdminError` after ``seconds``."""
    deadline = time.monotonic() + seconds
    while not (found := until()):
        if time.monotonic() > deadline:
            raise AdminError("failed", f"{what} was not done within {seconds:.0f} s", "the broker's log tells more")
        admin.sleep(0.01)
    return found


# -- topics


def _settings(config: TopicConfig, **given: Any) -> TopicConfig:
    """``config`` with what was given changed."""
    names = {
        "fsync": "fsync",
        "retention_bytes": "retention_bytes",
        "disk_max": "disk_bytes_max",
        "overflow": "overflow",
        "segment_bytes": "segment_bytes",
    }
    changes: dict[str, Any] = {to: given[name] for name, to in names.items() if given.get(name) is not None}
    for name, to in (("fsync_interval", "fsync_interval_ms"), ("retention", "retention_ms")):
        if given.get(name) is not None:
            changes[to] = int(given[name] * 1000)
    return replace(config, **changes)


def topic_create(admin: Admin, topic: str, partitions: int, storage: str, **given: Any) -> dict[str, Any]:
    if not protocol.valid_topic(topic):
        raise AdminError("bad_argument", f"{topic!r} is no topic name", "letters, digits, . _ - and at most 200")

    def create(core: Core) -> TopicConfig:
        if topic in core.topics:
            raise AdminError("refused", f"topic {topic} exists", f"`topic edit {topic}` changes its settings")
        config = replace(_settings(core.state.topic_config, **given), partitions=partitions, storage=storage)
        core.state.open(topic, config)
        return config

    config = admin.core(create)
    wait(admin, lambda: admin.core(lambda core: topic in core.topics), OPEN_WAIT_S, f"opening topic {topic}")
    return {"topic": topic, "settings": asdict(config)}


def topic_edit(admin: Admin, topic: str, dry_run: bool, **given: Any) -> dict[str, Any]:
    def edit(core: Core) -> tuple[TopicConfig, TopicConfig]:
        found = admin.topic(core, topic)
        before, after = found.config, _settings(found.config, **given)
        if not dry_run:
            core.operating.edit_topic(found, after)
        return before, after

    before, after = admin.core(edit)
    if not dry_run and before != after:
        admin.broker.keep_settings(topic, after)
    old, new = asdict(before), asdict(after)
    changed = {name: {"from": old[name], "to": new[name]} for name in old if old[name] != new[name]}
    return {"topic": topic, "changed": changed, "dry_run": dry_run}


def topic_delete(admin: Admin, topic: str, dry_run: bool) -> dict[str, Any]:
    def look(core: Core) -> dict[str, Any]:
        found = admin.topic(core, topic)
        return {
            "topic": topic,
            "groups": sorted(found.groups),
            "disk_bytes": found.disk_bytes,
            "messages": sum(p.next_offset - p.first_offset for p in found.partitions),
        }

    found = admin.core(look)
    if not dry_run:
        admin.core(lambda core: core.operating.forget_topic(admin.topic(core, topic)))
        admin.broker.remove_topic(topic)
    return {**found, "deleted": not dry_run}


def drain(admin: Admin, topic: str | None) -> dict[str, Any]:
    return _drain(admin, topic, True)


def undrain(admin: Admin, topic: str | None) -> dict[str, Any]:
    return _drain(admin, topic, False)


def _drain(admin: Admin, topic: str | None, draining: bool) -> dict[str, Any]:
    def change(core: Core) -> list[str]:
        chosen = [admin.topic(core, topic)] if topic else list(core.topics.values())
        for t in chosen:
            core.operating.drain(t, draining)
        return sorted(t.name for t in chosen)

    return {"draining": draining, "topics": admin.core(change)}


def purge(admin: Admin, topic: str, before: str | None, keep: int | None, dry_run: bool) -> dict[str, Any]:
    log = admin.log(topic)
    if (before is None) == (keep is None):
        raise AdminError("bad_argument", "purge needs --before or --keep", "`purge TOPIC --before latest` drops all")
    stats = log.stats()
    ends = (
        [max(0, end - keep) for end in stats.synced_offsets]
        if keep is not None
        else positions(log, before or "", admin.now_s)
    )
    told = {"topic": topic, "before": ends, "dry_run": dry_run}
    if dry_run:
        gone = sum(max(0, end - first) for end, first in zip(ends, stats.first_offsets, strict=True))
        return {**told, "offsets": gone}
    gone = admin.core(lambda core: core.operating.purge(admin.topic(core, topic), ends))
    admin.broker.writer.maintain(topic, ends, 1 << 62, None)
    return {**told, "offsets": gone}


def snapshot(admin: Admin, topic: str | None) -> dict[str, Any]:
    def ask(core: Core) -> list[str]:
        chosen = [admin.topic(core, topic)] if topic else list(core.topics.values())
        for t in chosen:
            t.wants_roll = True
        return sorted(t.name for t in chosen)

    return {"topics": admin.core(ask)}


def backup(admin: Admin, to: str, topic: str | None) -> dict[str, Any]:
    names = admin.core(lambda core: [admin.topic(core, topic).name] if topic else sorted(core.topics))
    copied = {}
    for name in names:
        config = admin.core(lambda core: {n: t.config for n, t in core.topics.items()}).get(name)
        if config is not None and config.storage == "disk":
            copied[name] = copy_log(f"{admin.broker.config.data_dir}/{name}", f"{to}/{name}")
    return {"to": to, "bytes": copied}


# -- groups


def group_pause(admin: Admin, topic: str, group: str) -> dict[str, Any]:
    return _pause(admin, topic, group, True)


def group_resume(admin: Admin, topic: str, group: str) -> dict[str, Any]:
    return _pause(admin, topic, group, False)


def _pause(admin: Admin, topic: str, group: str, paused: bool) -> dict[str, Any]:
    admin.core(lambda core: core.operating.pause(*admin.group(core, topic, group), paused))
    return {"topic": topic, "group": group, "paused": paused}


def group_delete(admin: Admin, topic: str, group: str, dry_run: bool) -> dict[str, Any]:
    def delete(core: Core) -> dict[str, Any]:
        t, g = admin.group(core, topic, group)
        found = {"topic": topic, "group": group, "members": len(g.members), "outstanding_ranges": len(g.ranges)}
        if not dry_run:
            core.operating.delete_group(t, g)
        return found

    return {**admin.core(delete), "deleted": not dry_run}


def group_reset(admin: Admin, topic: str, group: str, to: str, partition: int | None, dry_run: bool) -> dict[str, Any]:
    places = positions(admin.log(topic), to, admin.now_s)

    def reset(core: Core) -> list[dict[str, Any]]:
        t, g = admin.group(core, topic, group)
        if partition is not None and partition >= len(places):
            raise AdminError("bad_argument", f"topic {topic} has {len(places)} partitions", "they count from 0")
        ends = [at if partition in (None, p) else g.parts[p].floor for p, at in enumerate(places)]
        plan = [{"partition": p, "from": g.parts[p].floor, "to": ends[p]} for p in range(len(ends))]
        if not dry_run:
            core.operating.reset_group(t, g, ends)
        return plan

    return {"topic": topic, "group": group, "plan": admin.core(reset), "dry_run": dry_run}


def replay(
    admin: Admin, topic: str, into: str, from_: str, to: str, partition: int | None, rate: int | None, dry_run: bool
) -> dict[str, Any]:
    log = admin.log(topic)
    config, settled = admin.core(lambda core: settled_spans(admin.group(core, topic, into)[1]))
    starts, ends = positions(log, from_, admin.now_s), positions(log, to, admin.now_s)
    if partition is not None:
        ends = [end if p == partition else 0 for p, end in enumerate(ends)]
    ranges = cuts(log, settled, starts, ends, min(config.max_rows, rate or config.max_rows), config.max_bytes)
    told = {"topic": topic, "into": into, "ranges": len(ranges), "rows": sum(r[3] for r in ranges), "dry_run": dry_run}
    if not dry_run:
        step = 1 if rate else max(1, len(ranges))
        for i in range(0, len(ranges), step):
            if i and rate:
                admin.sleep(ranges[i - 1][3] / rate)
            _replay(admin, topic, into, ranges[i : i + step])
    return told


def settled_spans(group: Group) -> tuple[GroupConfig, list[list[tuple[int, int]]]]:
    """By partition the spans [first, past) that the group has settled: what is outstanding or not sealed yet it gets
    anyway, and a range of other bounds over it would be left out whole."""
    settled = []
    for gp in group.parts:
        spans, at = [], 0
        for held in sorted(gp.outstanding.values(), key=lambda r: r.first):
            spans.append((at, held.first))
            at = max(at, held.last + 1)
        settled.append([*spans, (at, gp.sealed_next)])
    return group.config, settled


def cuts(
    log: TopicLog,
    settled: Sequence[Sequence[tuple[int, int]]],
    starts: Sequence[int],
    ends: Sequence[int],
    rows_max: int,
    bytes_max: int,
) -> list[tuple[int, int, int, int, int]]:
    """Ranges (partition, first, last, rows, bytes) over what is settled in [start, end) of each partition."""
    ranges = []
    for p, spans in enumerate(settled):
        for first, past in spans:
            at, end = max(first, starts[p]), min(past, ends[p])
            while at < end:
                cut = log.cut(p, at, end, rows_max, bytes_max)
                if cut.rows or cut.bytes:
                    ranges.append((p, at, cut.last, cut.rows, cut.bytes))
                at = cut.last + 1
    return ranges


def _replay(admin: Admin, topic: str, group: str, ranges: list[tuple[int, int, int, int, int]]) -> None:
    admin.core(lambda core: core.operating.replay(*admin.group(core, topic, group), ranges))


# -- peers, limits, logs


def kick(admin: Admin, client: str, dry_run: bool) -> dict[str, Any]:
    def end(core: Core) -> int:
        found = []
        for conn, peer in core.state.peers.items():
            ids = {f"p-{peer.id:016x}"} if isinstance(peer, Session) else set()
            if isinstance(peer, Consumer):
                ids = {f"c-{peer.member.id:016x}"}
            if client in ids:
                found.append(conn)
        if not found:
            raise AdminError("not_found", f"there is no client {client}", "`clients` lists them")
        for conn in () if dry_run else found:
            core.operating.kick(conn)
        return len(found)

    return {"client": client, "conversations": admin.core(end), "dry_run": dry_run}


def quota_set(admin: Admin, name: str, value: str) -> dict[str, Any]:
    kinds = {f.name: f.type for f in fields(BrokerConfig)}
    if name not in (*QUOTAS, "ingress_pool_bytes"):
        known = ", ".join(sorted((*QUOTAS, "ingress_pool_bytes")))
        raise AdminError("not_found", f"{name} is no limit that can be changed", f"one of {known}")
    try:
        parsed: Any = (
            _boolean(value) if kinds[name] == "bool" else float(value) if kinds[name] == "float" else int(value)
        )
    except ValueError:
        raise AdminError("bad_argument", f"{name} needs a {kinds[name]}, not {value!r}") from None
    if not isinstance(parsed, bool) and parsed <= 0:
        raise AdminError("bad_argument", f"{name} must be above 0")
    if name == "reconnect_grace_s" and parsed < RECONNECT_GRACE_S_MIN:
        raise AdminError("bad_argument", f"{name} must be at least {RECONNECT_GRACE_S_MIN:g}", "leases need it")
    before = admin.core(lambda core: getattr(core.state.config, name))
    admin.core(lambda core: core.operating.set_quota(name, parsed))
    return {"name": name, "from": before, "to": parsed}


def _boolean(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ValueError(text)
    return text.lower() == "true"


def config_reload(admin: Admin) -> dict[str, Any]:
    keys = admin.broker.keys
    if keys is None:
        raise AdminError("refused", "this broker has no allow-list", "give it one with --allow-list")
    keys.allow.refresh()
    if keys.allow.error:
        raise AdminError("refused", keys.allow.error, "correct the file: the entries before it still stand")
    return {"allow_list": str(keys.allow.path), "clients": len(keys.allow.entries())}


def log_level(admin: Admin, level: str | None) -> dict[str, Any]:
    # The package's own logger: libraries go on saying nothing but what is wrong.
    log = logging.getLogger("zmqbroker")
    before = logging.getLevelName(log.getEffectiveLevel()).lower()
    if level is not None:
        log.setLevel(_LEVELS[level])
    return {"level": level or before, "from": before}
