"""A model of the store, by what was measured of the real one (GUARANTEES): atomic inserts, tokens that are exact within
a boot, inserts that go on after their answer is lost, restarts that end what runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from consumers.doubt import Connected, Counted, Event, Fenced, Inserted, Lost, Refused
from consumers.merge import Address
from tests.simulation.clockwork import Violation

if TYPE_CHECKING:
    from tests.simulation.stage import Stage

Reply = Callable[[Event], None]


class Running(NamedTuple):
    query_id: str
    token: str
    rows: Mapping[Address, int]
    reply: Reply
    answers: bool


class Store:
    """Rows by batch. Every answer comes later, if it comes."""

    def __init__(self, world: Stage) -> None:
        self.world = world
        self.rows: dict[Address, int] = {}
        self.boot = 1
        self.up = True
        self.slow = False
        self._tokens: set[str] = set()
        self._running: dict[int, Running] = {}
        self._next = 0
        self.inserts = self.deduplicated = 0

    @property
    def boot_id(self) -> str:
        return f"boot-{self.boot}"

    def insert(self, token: str, query_id: str, rows: Mapping[Address, int], boot: str, reply: Reply) -> None:
        clock = self.world.clock
        if not self.up or boot != self.boot_id:
            clock.after(0.01, lambda: reply(Lost(sent=False, reason="the store is away")))
            return
        if self.world.chance(self.world.profile.store_refuses_now):
            clock.after(0.01, lambda: reply(Refused(False, "too many parts")))
            return
        if any(self.world.is_poison(address) for address in rows):
            clock.after(0.01, lambda: reply(Refused(True, "cannot parse")))
            return
        self._next += 1
        number = self._next
        answers = not self.world.chance(self.world.profile.store_answers_lost)
        self._running[number] = Running(query_id, token, dict(rows), reply, answers)
        took_s = clock.between(1.0, 20.0) if self.slow and self.world.chance(0.5) else clock.between(0.005, 0.3)
        if not answers:
            # The connection breaks first; the insert itself runs on.
            clock.after(clock.between(0.001, 0.2), lambda: reply(Lost(sent=True, reason="the answer was lost")))
            took_s *= clock.between(0.1, 10.0)
        clock.after(took_s, lambda: self._commit(number))

    def _commit(self, number: int) -> None:
        insert = self._running.pop(number, None)
        if insert is None:
            return
        self._apply(insert)
        if insert.answers:
            insert.reply(Inserted())

    def _apply(self, insert: Running) -> None:
        self.inserts += 1
        if insert.token in self._tokens:
            self.deduplicated += 1
            return
        self._tokens.add(insert.token)
        for address, rows in insert.rows.items():
            if self.rows.get(address, 0):
                raise Violation(f"stored twice: {address}, by {insert.query_id} with token {insert.token}")
            self.rows[address] = rows

    def count(self, addresses: Sequence[Address], boot: str, reply: Reply) -> None:
        def answer() -> None:
            if not self.up or boot != self.boot_id:
                reply(Lost(sent=False, reason="the store is away"))
            else:
                reply(Counted({a: self.rows[a] for a in addresses if a in self.rows}))

        self.world.clock.after(self.world.clock.between(0.001, 0.05), answer)

    def fence(self, overlaps: Callable[[list[str]], list[str]], boot: str, reply: Reply) -> None:
        """KILL QUERY ... SYNC of what overlaps: each has ended when this answers, killed or committed."""

        def answer() -> None:
            if not self.up or boot != self.boot_id:
                reply(Lost(sent=False, reason="the store is away"))
                return
            hit = set(overlaps([i.query_id for i in self._running.values()]))
            for number in [n for n, i in self._running.items() if i.query_id in hit]:
                insert = self._running.pop(number)
                if self.world.chance(0.3):  # it was past the point where it could be killed
                    self._apply(insert)
                if insert.answers:
                    insert.reply(Lost(sent=True, reason="killed"))
            reply(Fenced())

        self.world.clock.after(self.world.clock.between(0.001, 0.05), answer)

    def connect(self, reply: Reply) -> None:
        """Answer once the store is there."""

        def try_() -> None:
            if self.up:
                reply(Connected(self.boot_id))
            else:
                self.world.clock.after(0.5, try_)

        self.world.clock.after(self.world.clock.between(0.01, 0.1), try_)

    def stop(self) -> None:
        """The process dies: each running insert has just committed or never will."""
        self.up = False
        running, self._running = self._running, {}
        for insert in running.values():
            if self.world.chance(0.4):
                self._apply(insert)
            if insert.answers:
                self.world.clock.after(0.01, lambda i=insert: i.reply(Lost(sent=True, reason="the store died")))

    def start(self) -> None:
        self.boot += 1
        self.up = True
