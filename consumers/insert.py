"""Step 5, insert: do what :mod:`consumers.doubt` decides about each block of a range, over one connection.

One (range, day) is one INSERT is one block. This module holds no policy: it turns actions into calls and what
comes of them into events.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Protocol

from clickhouse.errors import ERROR_CODES, OutcomeUnknown, StoreError, StoreRefused
from consumers.dictionary import DictionaryKeys
from consumers.doubt import (
    Abandoned,
    Ask,
    BlockInsert,
    Connected,
    Counted,
    Event,
    Fence,
    Fenced,
    Finished,
    Insert,
    Inserted,
    LeaseOver,
    Lost,
    Reconnect,
    Refused,
)
from consumers.merge import Address, DayBlock
from consumers.ports import StoreSession
from consumers.ranges import RangeAddress
from consumers.rejects import RejectBlock


class Job(Protocol):
    """One block to be stored once."""

    @property
    def what(self) -> str:
        """Names the block within its range, in tokens and query ids."""

    @property
    def expected(self) -> Mapping[Address, int]:
        """Rows of each batch in the block."""

    def insert(self, session: StoreSession, part: Sequence[Address] | None, token: str, query_id: str) -> None: ...

    def count(self, session: StoreSession, addresses: Sequence[Address]) -> Mapping[Address, int]: ...


class Link(Protocol):
    """The way to the store of one worker (:class:`consumers.link.StoreLink`)."""

    @property
    def session(self) -> StoreSession: ...

    def again(self, lease: Lease, reason: str, broken: bool) -> StoreSession:
        """Wait for the store; raises :class:`consumers.link.GiveBack` when the range is to go back instead."""

    def worked(self) -> None: ...


class Lease(Protocol):
    """The right to work on a range."""

    def holds(self) -> bool: ...

    def inserting(self) -> None: ...

    def waiting(self) -> None: ...


class SamplesJob:
    """The accepted rows of one day."""

    def __init__(self, block: DayBlock, dictionaries: Sequence[DictionaryKeys]) -> None:
        self.what = day_name(block.day)
        self._block = block
        self._dictionaries = dictionaries
        self._probes = {Address(probe.session, probe.seq): probe for probe in block.probes()}
        self.expected = {address: probe.rows for address, probe in self._probes.items()}

    def insert(self, session: StoreSession, part: Sequence[Address] | None, token: str, query_id: str) -> None:
        session.insert_devices(self._dictionaries)
        block = self._block if part is None else self._block.only(part)
        session.insert_block(block, token=token, query_id=query_id)

    def count(self, session: StoreSession, addresses: Sequence[Address]) -> Mapping[Address, int]:
        return session.count_block([self._probes[address] for address in addresses])


class RejectsJob:
    """The rejected rows of one day of append."""

    def __init__(self, block: RejectBlock) -> None:
        self.what = f"rejects/{day_name(block.day)}"
        self._block = block
        self.expected = block.expected

    def insert(self, session: StoreSession, part: Sequence[Address] | None, token: str, query_id: str) -> None:
        block = self._block if part is None else self._block.only(part)
        session.insert_rejects(block, token=token, query_id=query_id)

    def count(self, session: StoreSession, addresses: Sequence[Address]) -> Mapping[Address, int]:
        return session.count_rejects(self._block, addresses)


def write(
    job: Job,
    address: RangeAddress,
    *,
    doubtful: bool,
    link: Link,
    lease: Lease,
    on_insert: Callable[[float], None],
) -> Finished | Abandoned:
    """Store one block, however long the store is away. ``on_insert`` is told the seconds of each INSERT that worked.

    Raises :class:`consumers.link.GiveBack` when the range is to be given back while the store is away.
    """
    decision = BlockInsert(job.expected, boot_id=link.session.boot_id, doubtful=doubtful)
    action = decision.start()
    while True:
        match action:
            case Finished() | Abandoned():
                if isinstance(action, Finished):
                    link.worked()
                return action
            case Reconnect(reason, broken):
                event: Event = Connected(link.again(lease, reason, broken).boot_id)
            case Insert(addresses, part):
                lease.inserting()
                event = _insert(job, address, addresses if part else None, link.session, lease, on_insert)
                if isinstance(event, Inserted):
                    link.worked()
            case Ask(addresses):
                event = _ask(lambda: Counted(job.count(link.session, addresses)))
            case Fence():
                event = _ask(lambda: _fence(address, link.session))
        action = decision.handle(event)


def _insert(
    job: Job,
    address: RangeAddress,
    part: Sequence[Address] | None,
    session: StoreSession,
    lease: Lease,
    on_insert: Callable[[float], None],
) -> Event:
    token = address.token(job.what, session.boot_id, part)
    query_id = address.query_id(job.what)
    if not lease.holds():
        return LeaseOver()
    started_s = time.perf_counter()
    try:
        job.insert(session, part, token, query_id)
    except StoreRefused as e:
        return Refused(e.permanent, str(e))
    except OutcomeUnknown as e:
        return Lost(sent=True, reason=str(e), strange=e.code != 0 and e.code not in ERROR_CODES)
    except StoreError as e:
        return Lost(sent=False, reason=str(e))
    on_insert(time.perf_counter() - started_s)
    return Inserted()


def _ask(question: Callable[[], Event]) -> Event:
    """Questions change nothing: whatever went wrong with one, nothing new is in doubt."""
    try:
        return question()
    except StoreRefused as e:
        return Refused(e.permanent, str(e))
    except StoreError as e:
        return Lost(sent=False, reason=str(e))


def _fence(address: RangeAddress, session: StoreSession) -> Fenced:
    for query_id in address.overlapping(session.running_inserts(address.query_prefix)):
        session.kill(query_id)
    return Fenced()


def day_name(day: int) -> str:
    """ISO date of a day since the epoch."""
    return (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(days=day)).date().isoformat()
