"""Dead letters: list, look, give back, drop (R26).

A letter that was dropped, or given back and stored, becomes a gap of the dead-letter topic: it is read no more, and the
gap says why.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from crc32c import crc32c

from zmqbroker.admin.places import positions
from zmqbroker.admin.protocol import AdminError
from zmqbroker.core.broker import Core
from zmqbroker.core.state import dead_letter_topic, open_envelope
from zmqbroker.core.topic import KIND_DATA
from zmqbroker.protocol import RECORD_STRUCT
from zmqbroker.storage.interface import TopicLog

if TYPE_CHECKING:
    from zmqbroker.admin.handlers import Admin

PAGE: Final = 500
SUFFIX: Final = ".dlq"


class Letter(NamedTuple):
    offset: int
    time_ms: int
    origin: dict[str, Any]
    payload: bytes


def _letters(log: TopicLog, start: int = 0) -> Iterator[Letter]:
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
        letters = list(_letters(admin.log(name)))
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
    for letter in _letters(log, start):
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
    for letter in _letters(_log(admin, topic)):
        key = (letter.origin.get("group"), letter.origin.get("reason"))
        letters[key] += 1
        rows[key] += _rows(letter)
    return [{"group": k[0], "reason": k[1], "letters": n, "rows": rows[k]} for k, n in letters.most_common()]


def dlq_drop(admin: Admin, topic: str, offset: int | None, dry_run: bool) -> dict[str, Any]:
    log = _log(admin, topic)
    chosen = [x.offset for x in _letters(log, offset or 0) if offset is None or x.offset == offset]
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
    given, kept = 0, Counter[str]()
    for letter in list(_letters(log, offset or 0)):
        if (offset is not None and letter.offset != offset) or (
            group is not None and letter.origin.get("group") != group
        ):
            continue
        if target:
            _give_to_topic(admin, letter, target, dry_run)
            problem = ""
        else:
            problem = _give_back(admin, origin_topic, letter, dry_run)
        if problem:
            kept[problem] += 1
            continue
        given += 1
        if not dry_run:
            if target:
                _take(admin, topic, [letter.offset], f"redriven into {target} by an operator")
            if rate:
                admin.sleep(1 / rate)
    if offset is not None and not given and not kept:
        raise AdminError("not_found", f"there is no dead letter {offset}", f"`dlq peek {topic}`")
    return {"topic": origin_topic, "redriven": given, "kept": dict(kept), "target": target, "dry_run": dry_run}


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


def _give_to_topic(admin: Admin, letter: Letter, target: str, dry_run: bool) -> None:
    """Append the payload to another topic, with the address that it had."""
    origin = letter.origin

    def append(core: Core) -> None:
        found = admin.topic(core, target)
        if dry_run:
            return
        part = found.partitions[int(origin.get("partition", 0)) % len(found.partitions)]
        session, seq, rows = int(origin.get("session", 0)), int(origin.get("seq", 0)), _rows(letter)
        wall_ms = core.state.wall_ms
        found.appends.append(
            (
                KIND_DATA,
                part.index,
                part.next_offset,
                session,
                seq,
                0,
                rows,
                wall_ms,
                crc32c(letter.payload),
                letter.payload,
            )
        )
        part.append(
            rows,
            RECORD_STRUCT.pack(part.next_offset, session, seq, 0, rows, wall_ms, len(letter.payload)),
            letter.payload,
        )
        found.messages_total += 1

    admin.core(append)
