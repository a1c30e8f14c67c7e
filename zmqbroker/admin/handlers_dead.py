"""Dead letters: list, look, give back, drop (R26).

A letter that was dropped, or given back and stored, becomes a gap of the dead-letter topic: it is read no more, and the
gap says why.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from zmqbroker.admin.handlers_change import wait
from zmqbroker.admin.places import positions
from zmqbroker.admin.protocol import AdminError
from zmqbroker.core.broker import Core
from zmqbroker.core.state import dead_letter_topic, open_envelope
from zmqbroker.storage.interface import TopicLog

if TYPE_CHECKING:
    from zmqbroker.admin.handlers import Admin

PAGE: Final = 500
DURABLE_WAIT_S: Final = 30.0
SUFFIX: Final = ".dlq"


class Letter(NamedTuple):
    offset: int
    time_ms: int
    origin: dict[str, Any]
    payload: bytes


def letters_of(log: TopicLog, start: int = 0) -> Iterator[Letter]:
    """The dead letters that are still there, in order."""
    end = log.stats().synced_offsets[0]
    at = start
    while at < end:
        cut = log.cut(0, at, min(end, at + PAGE), 1 << 62, 8 << 20)
        chunk = log.read(0, at, cut.last)
        begin = 0
        for record in chunk.records:
            size = int(record["length"])
            body = chunk.body[begin : begin + size]
            begin += size
            try:
                origin, payload = open_envelope(body)
            except ValueError:
                origin, payload = {"reason": "not a dead letter"}, memoryview(body)
            yield Letter(int(record["offset"]), int(record["time_ms"]), dict(origin), bytes(payload))
        at = cut.last + 1


def _log(admin: Admin, topic: str) -> TopicLog:
    name = topic if topic.endswith(SUFFIX) else dead_letter_topic(topic)
    if not admin.core(lambda core: name in core.topics):
        admin.core(lambda core: admin.topic(core, topic))
        raise AdminError("not_found", f"topic {topic} has no dead letters", "`dlq ls` lists those that have")
    return admin.log(name)


def dlq_ls(admin: Admin) -> list[dict[str, Any]]:
    names = admin.core(lambda core: sorted(n for n in core.topics if n.endswith(SUFFIX)))
    found = []
    for name in names:
        letters = list(letters_of(admin.log(name)))
        found.append(
            {
                "topic": name.removesuffix(SUFFIX),
                "letters": len(letters),
                "rows": sum(_rows(x) for x in letters),
                "oldest": admin.iso(min((x.time_ms for x in letters), default=None)),
                "newest": admin.iso(max((x.time_ms for x in letters), default=None)),
            }
        )
    return found


def _rows(letter: Letter) -> int:
    rows = letter.origin.get("rows", 0)
    return rows if isinstance(rows, int) else 0


def dlq_peek(admin: Admin, topic: str, count: int, from_: str) -> list[dict[str, Any]]:
    log = _log(admin, topic)
    start = positions(log, from_, admin.now_s)[0]
    if from_ == "latest":
        start = max(0, start - count)
    found: list[dict[str, Any]] = []
    for letter in letters_of(log, start):
        if len(found) == count:
            break
        origin = letter.origin
        found.append(
            {
                "letter": letter.offset,
                "time": admin.iso(letter.time_ms),
                "group": origin.get("group"),
                "partition": origin.get("partition"),
                "offset": origin.get("offset"),
                "rows": _rows(letter),
                "bytes": len(letter.payload),
                "session": origin.get("session"),
                "seq": origin.get("seq"),
                "reason": origin.get("reason"),
            }
        )
    return found


def dlq_stats(admin: Admin, topic: str) -> list[dict[str, Any]]:
    letters: Counter[tuple[Any, Any]] = Counter()
    rows: Counter[tuple[Any, Any]] = Counter()
    for letter in letters_of(_log(admin, topic)):
        key = (letter.origin.get("group"), letter.origin.get("reason"))
        letters[key] += 1
        rows[key] += _rows(letter)
    return [{"group": k[0], "reason": k[1], "letters": n, "rows": rows[k]} for k, n in letters.most_common()]


def dlq_drop(admin: Admin, topic: str, offset: int | None, dry_run: bool) -> dict[str, Any]:
    log = _log(admin, topic)
    chosen = [x.offset for x in letters_of(log, offset or 0) if offset is None or x.offset == offset]
    if offset is not None and not chosen:
        raise AdminError("not_found", f"there is no dead letter {offset}", f"`dlq peek {topic}`")
    if not dry_run:
        _take(admin, topic, chosen, "dropped by an operator")
    return {"topic": topic, "letters": len(chosen), "dropped": not dry_run}


def _take(admin: Admin, topic: str, offsets: list[int], reason: str) -> None:
    """These letters are no more."""
    name = topic if topic.endswith(SUFFIX) else dead_letter_topic(topic)

    def lose(core: Core) -> None:
        letters = admin.topic(core, name)
        for first, last in _runs(offsets):
            core.operating.lose(letters, 0, first, last, reason)

    admin.core(lose)


def _runs(offsets: list[int]) -> list[tuple[int, int]]:
    runs: list[tuple[int, int]] = []
    for offset in offsets:
        if runs and offset == runs[-1][1] + 1:
            runs[-1] = (runs[-1][0], offset)
        else:
            runs.append((offset, offset))
    return runs


def dlq_redrive(
    admin: Admin, topic: str, offset: int | None, group: str | None, target: str | None, rate: int | None, dry_run: bool
) -> dict[str, Any]:
    """To the group it came from, as a doubtful range under its old address; the letter stays until that is stored.

    To ``target``: a new record there, and the letter is done with.
    """
    log = _log(admin, topic)
    origin_topic = topic.removesuffix(SUFFIX)
    given: list[int] = []
    kept = Counter[str]()
    for letter in list(letters_of(log, offset or 0)):
        if offset not in (None, letter.offset) or group not in (None, letter.origin.get("group")):
            continue
        problem = ""
        if target:
            _give_to_topic(admin, topic, letter, target, dry_run)
        else:
            problem = _give_back(admin, origin_topic, letter, dry_run)
        if problem:
            kept[problem] += 1
            continue
        given.append(letter.offset)
        if rate and not dry_run:
            admin.sleep(1 / rate)
    if target and given and not dry_run:
        # Only when they are durable there may they go here.
        ends = admin.core(lambda core: [p.next_offset for p in admin.topic(core, target).partitions])
        wait(admin, lambda: admin.core(lambda core: _durable(admin, core, target, ends)), DURABLE_WAIT_S, "a redrive")
        _take(admin, topic, given, f"redriven into {target} by an operator")
    if offset is not None and not given and not kept:
        raise AdminError("not_found", f"there is no dead letter {offset}", f"`dlq peek {topic}`")
    return {"topic": origin_topic, "redriven": len(given), "kept": dict(kept), "target": target, "dry_run": dry_run}


def _durable(admin: Admin, core: Core, topic: str, ends: list[int]) -> bool:
    return all(p.durable_offset >= end for p, end in zip(admin.topic(core, topic).partitions, ends, strict=True))


def _give_back(admin: Admin, topic: str, letter: Letter, dry_run: bool) -> str:
    """Why it could not be given back; empty where it was."""
    origin = letter.origin

    def redrive(core: Core) -> str:
        found = core.topics.get(topic)
        if found is None or origin.get("log") != found.uuid.hex():
            return "its topic began anew: use --target"
        group = found.groups.get(str(origin.get("group")))
        if group is None:
            return "its group is gone: use --target"
        if dry_run:
            return ""
        made = core.operating.redrive(
            found,
            group,
            letter.offset,
            int(origin["partition"]),
            int(origin["offset"]),
            _rows(letter),
            len(letter.payload),
        )
        return "" if made is not None else "it is on its way already"

    return str(admin.core(redrive))


def _give_to_topic(admin: Admin, topic: str, letter: Letter, target: str, dry_run: bool) -> None:
    """Append the payload to another topic. A batch keeps its address: that stands in its own header."""
    name = topic if topic.endswith(SUFFIX) else dead_letter_topic(topic)

    def append(core: Core) -> None:
        found, letters = admin.topic(core, target), admin.topic(core, name)
        if not dry_run:
            core.operating.redrive_into(found, letters, letter.offset, _rows(letter), letter.payload)

    admin.core(append)
