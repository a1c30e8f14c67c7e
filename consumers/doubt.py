"""Step 4, doubt: what to do about one block until every row of it is known to be stored once, or known why not.

The part that decides. It holds no connection and reads no clock: events go in, one action comes out, and the
thin shell in ``insert`` does it. One :class:`BlockInsert` lives for one attempt at one block (the rows of one
sealed range on one day).

The theory (GUARANTEES R2, R12-R15). An INSERT of one block either commits whole or not at all. Three things can
be unknown about it: whether an earlier attempt (ours before an answer was lost, or another collector's before
its lease ended) has committed, whether it still may, and whether the store has been restarted since.

    certain     nobody can have sent this block before: insert. One round trip, the usual case.
    doubtful    ask which batches are there, by the primary key of each batch's first row.
                  all there      nothing to insert
                  some or none   fence: kill whatever insert still runs over these offsets (an earlier attempt may
                                 have had other bounds: a split, a rest); ask again, because the killed one may have
                                 committed first; then insert what is missing. Its token names the present boot of
                                 the store, so a token that an earlier boot wrote down without the rows cannot
                                 swallow it, and two such inserts within this boot are one.
                  after inserting: ask once more before the acknowledgement.

The order of the two halves of a fence matters: the broker delivers a range again only when the old lease is over,
and a collector checks its lease right before it sends, so an insert that is not running now will not start.

A batch of which only a part is stored can only come of other validation rules or of rows removed by hand. It is
neither stored again nor acknowledged as stored: it goes to the dead letters, with an alarm (R15).
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Final, NamedTuple

from consumers.merge import Address

# --- events: what happened -----------------------------------------------------------------------------------------


class Counted(NamedTuple):
    """The store's answer to :class:`Ask`: rows stored by batch; a batch that is not named has none."""

    stored: Mapping[Address, int]


class Inserted(NamedTuple):
    """The store said that the insert committed (or that it knows the token)."""


class Fenced(NamedTuple):
    """No other insert over these offsets runs any more."""


class Lost(NamedTuple):
    """The connection is of no further use. ``sent``: an insert that may commit was on its way.

    ``strange``: the server did answer, with an error that says neither that the data is bad nor that it will pass.
    """

    sent: bool
    reason: str
    strange: bool = False


class Connected(NamedTuple):
    """There is a connection again, to this boot of the store."""

    boot_id: str


class Refused(NamedTuple):
    """The store answered with an error. ``permanent``: it refuses this very data, and would again."""

    permanent: bool
    reason: str


class LeaseOver(NamedTuple):
    """The broker may have given the range to another member: nothing may be sent any more."""


Event = Counted | Inserted | Fenced | Lost | Connected | Refused | LeaseOver

# --- actions: what to do next --------------------------------------------------------------------------------------


class Insert(NamedTuple):
    """Send these batches as one INSERT. ``part``: they are not the whole block, the token must name them."""

    addresses: tuple[Address, ...]
    part: bool


class Ask(NamedTuple):
    """Count the stored rows of these batches."""

    addresses: tuple[Address, ...]


class Fence(NamedTuple):
    """Kill every running insert over these offsets and day, and wait until it has ended."""


class Reconnect(NamedTuple):
    """Wait until the store answers again. ``broken``: the connection at hand is of no use any more."""

    reason: str
    broken: bool


class Finished(NamedTuple):
    """Every row is stored once, but for the batches in ``dead`` (address -> why)."""

    dead: dict[Address, str]
    found_rows: int
    """Rows that an earlier attempt had stored, and that were not inserted again."""
    alarms: tuple[str, ...]
    """What was seen that only a recorded split, other rules or a hand in the store can explain (R15)."""


class Abandoned(NamedTuple):
    """Stop here without an acknowledgement.

    ``failure``: the data may be to blame, so the broker should count it; False: only this member is out of it.
    ``alarm``: something happened that the rules say cannot.
    """

    reason: str
    failure: bool
    alarm: bool = False


Action = Insert | Ask | Fence | Reconnect | Finished | Abandoned


STRANGE_ANSWERS_MAX: Final = 5
"""After so many errors that no table explains, the range goes back to the broker as failed: data that makes the
store stumble must not hold a collector for ever. Refusals that are known to pass are waited for without limit."""


class Phase(Enum):
    """What the last action was about, so which events may come."""

    NEW = "new"
    ASKING = "asking"
    FENCING = "fencing"
    INSERTING = "inserting"
    WAITING = "waiting"
    VERIFYING = "verifying"
    OVER = "over"


class UnexpectedEvent(RuntimeError):
    """The shell reported something that the last action cannot lead to: a defect in this process."""


class BlockInsert:
    """Decides for one block. ``expected``: rows of each batch in it; ``doubtful``: an earlier attempt may exist.

    :meth:`start` gives the first action, :meth:`handle` the next one; nothing else changes the state.
    """

    def __init__(self, expected: Mapping[Address, int], *, boot_id: str, doubtful: bool) -> None:
        if not expected:
            raise ValueError("a block holds at least one batch")
        self._expected = dict(expected)
        self._boot_id = boot_id
        self.doubtful = doubtful
        self._sent = False  # has this attempt ever sent an insert?
        self._fenced = False
        self._split = False
        self._pieces: list[tuple[Address, ...]] = [tuple(self._expected)]
        self._found: dict[Address, int] = {}
        self._confirmed: set[Address] = set()
        self._alarms: list[str] = []
        self._strange = 0
        self._dead: dict[Address, str] = {}
        self._phase = Phase.NEW

    def start(self) -> Action:
        if self._phase is not Phase.NEW:
            raise UnexpectedEvent("start() after the start")
        return self._next()

    def handle(self, event: Event) -> Action:
        """Take one event, return the one thing to do next. Raises :class:`UnexpectedEvent`."""
        match event:
            case LeaseOver() if self._phase is not Phase.OVER:
                return self._abandon("the lease is over: another collector may hold this range", failure=False)
            case Lost(sent, reason, strange) if self._phase not in (Phase.OVER, Phase.WAITING):
                self.doubtful |= sent
                self._strange += strange
                if self._strange >= STRANGE_ANSWERS_MAX:
                    return self._abandon(f"{self._strange} times: {reason}", failure=True)
                return self._wait(reason, broken=True)
            case Refused(False, reason) if self._phase not in (Phase.OVER, Phase.WAITING):
                # An error answer should mean that nothing was stored; asking costs a few milliseconds and proves it.
                self.doubtful |= self._phase is Phase.INSERTING
                return self._wait(reason, broken=False)
            case Refused(True, reason) if self._phase is Phase.INSERTING:
                return self._isolate(reason)
            case Refused(True, reason) if self._phase in (Phase.ASKING, Phase.FENCING, Phase.VERIFYING):
                # A question holds no data that could be to blame: the store is ill (a part that cannot be read).
                return self._wait(reason, broken=False)
            case Connected(boot_id) if self._phase is Phase.WAITING:
                return self._connected(boot_id)
            case Counted(stored) if self._phase in (Phase.ASKING, Phase.VERIFYING):
                return self._counted(stored)
            case Fenced() if self._phase is Phase.FENCING:
                self._fenced = True
                return self._ask(Phase.ASKING)
            case Inserted() if self._phase is Phase.INSERTING:
                self._confirmed.update(self._pieces.pop(0))
                return self._next_piece()
        raise UnexpectedEvent(f"{event!r} while {self._phase.value}")

    # --- what each event leads to

    def _next(self) -> Action:
        return self._ask(Phase.ASKING) if self.doubtful else self._next_piece()

    def _next_piece(self) -> Action:
        if self._pieces:
            self._phase = Phase.INSERTING
            self._sent = True
            piece = self._pieces[0]
            return Insert(piece, part=len(piece) < len(self._expected))
        return self._ask(Phase.VERIFYING) if self.doubtful else self._finish()

    def _ask(self, phase: Phase) -> Action:
        self._phase = phase
        return Ask(tuple(address for address in self._expected if address not in self._dead))

    def _counted(self, stored: Mapping[Address, int]) -> Action:
        verifying = self._phase is Phase.VERIFYING
        missing = []
        for address, rows in self._expected.items():
            count = stored.get(address, 0)
            if address in self._dead:
                continue
            if count >= rows:
                if address not in self._confirmed:
                    self._found[address] = rows
            elif count:
                self._dead[address] = (
                    f"partly stored: {count} of {rows} rows, under other rules or after a repair by hand"
                )
                self._alarms.append(f"batch {address.session:016x}/{address.seq} is {self._dead[address]}")
            else:
                missing.append(address)
        if verifying and missing:
            return self._abandon(
                f"{len(missing)} of {len(self._expected)} batches are not there after a confirmed insert",
                failure=True,
                alarm=True,
            )
        if not missing:
            return self._finish()
        if self._found and not self._alarms:
            self._alarms.append(
                f"{len(self._found)} of {len(self._expected)} batches of one block were stored without the rest"
            )
        if not self._fenced:
            self._phase = Phase.FENCING
            return Fence()
        still = set(missing)
        self._pieces = [kept for piece in self._pieces if (kept := tuple(a for a in piece if a in still))]
        # A piece that a lost answer took from the list may have to come back.
        queued = {address for piece in self._pieces for address in piece}
        if again := tuple(a for a in missing if a not in queued):
            self._pieces.insert(0, again)
        if self._split:
            self._split = False
            self._halve_first()
        return self._next_piece()

    def _isolate(self, reason: str) -> Action:
        """The data is refused for good: find the batch that is to blame, store the others."""
        piece = self._pieces[0]
        if len(piece) == 1:
            self._pieces.pop(0)
            self._dead[piece[0]] = reason
            return self._next_piece() if len(self._dead) < len(self._expected) else self._finish()
        self.doubtful = True  # from here on the bounds are not those of the range: ask and fence first (R14)
        if self._fenced:
            self._halve_first()
            return self._next_piece()
        self._split = True
        return self._ask(Phase.ASKING)

    def _halve_first(self) -> None:
        piece = self._pieces[0]
        if len(piece) > 1:
            middle = len(piece) // 2
            self._pieces[:1] = [piece[:middle], piece[middle:]]

    def _wait(self, reason: str, broken: bool) -> Action:
        self._phase = Phase.WAITING
        return Reconnect(reason, broken)

    def _connected(self, boot_id: str) -> Action:
        if boot_id != self._boot_id:
            self._boot_id = boot_id
            self.doubtful |= self._sent
        self._fenced = False
        return self._next()

    def _finish(self) -> Action:
        self._phase = Phase.OVER
        return Finished(dict(self._dead), sum(self._found.values()), tuple(self._alarms))

    def _abandon(self, reason: str, failure: bool, alarm: bool = False) -> Action:
        self._phase = Phase.OVER
        return Abandoned(reason, failure, alarm)
