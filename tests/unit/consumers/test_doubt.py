"""The decision about one block, first step by step, then against a model of a store under random faults."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field

import pytest

from consumers.doubt import (
    STRANGE_ANSWERS_MAX,
    Abandoned,
    Action,
    Ask,
    BlockInsert,
    Connected,
    Counted,
    Fence,
    Fenced,
    Finished,
    Insert,
    Inserted,
    LeaseOver,
    Lost,
    Reconnect,
    Refused,
    UnexpectedEvent,
)
from consumers.merge import Address

A, B, C = Address(1, 1), Address(1, 2), Address(1, 3)
ALL = (A, B, C)
ROWS = {A: 10, B: 20, C: 30}


def block(doubtful: bool = False) -> BlockInsert:
    return BlockInsert(ROWS, boot_id="boot-1", doubtful=doubtful)


def test_a_certain_block_is_inserted_without_a_question():
    insert = block()
    assert insert.start() == Insert(ALL, part=False)
    assert insert.handle(Inserted()) == Finished({}, 0, ())


def test_r13_a_doubtful_block_that_is_there_is_not_inserted():
    insert = block(doubtful=True)
    assert insert.start() == Ask(ALL)
    assert insert.handle(Counted(ROWS)) == Finished({}, 60, ())


def test_r13_a_doubtful_block_that_is_not_there_is_fenced_asked_again_inserted_and_checked():
    insert = block(doubtful=True)
    insert.start()
    assert insert.handle(Counted({})) == Fence()
    assert insert.handle(Fenced()) == Ask(ALL)
    assert insert.handle(Counted({})) == Insert(ALL, part=False)
    assert insert.handle(Inserted()) == Ask(ALL)
    assert insert.handle(Counted(ROWS)) == Finished({}, 0, ())


def test_r14_what_the_fence_let_through_is_not_inserted_again():
    """An insert that runs while we ask may commit a moment before we kill it."""
    insert = block(doubtful=True)
    insert.start()
    insert.handle(Counted({}))
    insert.handle(Fenced())
    assert insert.handle(Counted(ROWS)) == Finished({}, 60, ())


def test_r13_of_a_partly_stored_range_only_the_rest_is_inserted_and_it_is_alarmed_about():
    insert = block(doubtful=True)
    insert.start()
    insert.handle(Counted({A: 10}))
    insert.handle(Fenced())
    assert insert.handle(Counted({A: 10})) == Insert((B, C), part=True)
    insert.handle(Inserted())
    finished = insert.handle(Counted(ROWS))
    assert isinstance(finished, Finished)
    assert finished.found_rows == 10
    assert len(finished.alarms) == 1


def test_r15_a_partly_stored_batch_is_dead_and_alarmed_about_and_never_inserted():
    insert = block(doubtful=True)
    insert.start()
    finished = insert.handle(Counted({A: 10, B: 7, C: 30}))
    assert isinstance(finished, Finished)
    assert list(finished.dead) == [B]
    assert "7 of 20" in finished.dead[B]
    assert finished.alarms


@pytest.mark.parametrize("boot", ["boot-1", "boot-2"])
def test_r13_after_a_lost_answer_the_store_is_asked_before_anything_is_sent_again(boot):
    insert = block()
    insert.start()
    assert insert.handle(Lost(sent=True, reason="reset")) == Reconnect("reset", broken=True)
    assert insert.handle(Connected(boot)) == Ask(ALL)


def test_r12_a_new_boot_makes_what_was_sent_before_doubtful():
    insert = block()
    insert.start()
    insert.handle(Lost(sent=False, reason="closed"))
    assert insert.handle(Connected("boot-2")) == Ask(ALL)


def test_nothing_sent_and_the_same_boot_leaves_no_doubt():
    insert = block()
    insert.start()
    insert.handle(Lost(sent=False, reason="closed"))
    assert insert.handle(Connected("boot-1")) == Insert(ALL, part=False)


def test_r12_nothing_is_sent_when_the_lease_is_over():
    insert = block()
    insert.start()
    gone = insert.handle(LeaseOver())
    assert isinstance(gone, Abandoned)
    assert not gone.failure


def test_a_refusal_that_passes_is_waited_for_and_never_kills_a_batch():
    insert = block()
    insert.start()
    for _ in range(3 * STRANGE_ANSWERS_MAX):
        assert insert.handle(Refused(False, "too many parts")) == Reconnect("too many parts", broken=False)
        assert insert.handle(Connected("boot-1")) == Ask(ALL)
        insert.handle(Counted({}))
        insert.handle(Fenced())
        assert insert.handle(Counted({})) == Insert(ALL, part=False)


def test_a_store_that_cannot_answer_a_question_is_waited_for_and_no_batch_is_blamed():
    """A broken part makes reading fail with a code that would blame the data of an insert."""
    insert = block(doubtful=True)
    insert.start()
    for _ in range(3 * STRANGE_ANSWERS_MAX):
        assert insert.handle(Refused(True, "cannot read all data")) == Reconnect("cannot read all data", broken=False)
        assert insert.handle(Connected("boot-1")) == Ask(ALL)
    assert insert.handle(Counted(ROWS)) == Finished({}, 60, ())


def test_strange_answers_hand_the_range_back_as_failed():
    insert = block()
    insert.start()
    for _ in range(STRANGE_ANSWERS_MAX - 1):
        insert.handle(Lost(True, "code 4242", strange=True))
        insert.handle(Connected("boot-1"))
    gone = insert.handle(Lost(True, "code 4242", strange=True))
    assert isinstance(gone, Abandoned)
    assert gone.failure


def test_of_refused_data_only_the_culprit_goes_to_the_dead_letters():
    insert = block()
    store = ModelStore(poison={B})
    finished = drive(insert, store, insert.start())
    assert isinstance(finished, Finished)
    assert list(finished.dead) == [B]
    assert store.rows == Counter({A: 1, C: 1})


def test_rows_that_vanish_after_a_confirmed_insert_are_an_alarm_and_no_acknowledgement():
    insert = block(doubtful=True)
    insert.start()
    insert.handle(Counted({}))
    insert.handle(Fenced())
    insert.handle(Counted({}))
    insert.handle(Inserted())
    gone = insert.handle(Counted({A: 10}))
    assert isinstance(gone, Abandoned)
    assert gone.alarm


def test_an_event_that_cannot_come_is_a_defect_and_says_so():
    insert = block()
    insert.start()
    with pytest.raises(UnexpectedEvent):
        insert.handle(Fenced())
    with pytest.raises(ValueError, match="at least one batch"):
        BlockInsert({}, boot_id="b", doubtful=False)


# --- the model ------------------------------------------------------------------------------------------------------


@dataclass
class Flight:
    boot: int
    token: tuple
    addresses: tuple[Address, ...]


@dataclass
class ModelStore:
    """A store that keeps whole inserts or nothing, knows tokens within a boot, and may trust a dead boot's token."""

    poison: set[Address] = field(default_factory=set)
    boot: int = 1
    rows: Counter = field(default_factory=Counter)
    tokens: set[tuple] = field(default_factory=set)
    flights: list[Flight] = field(default_factory=list)

    @property
    def boot_id(self) -> str:
        return f"boot-{self.boot}"

    def commit(self, flight: Flight) -> None:
        if flight in self.flights:
            self.flights.remove(flight)
            if flight.token not in self.tokens:
                self.tokens.add(flight.token)
                self.rows.update(flight.addresses)

    def restart(self, rng: random.Random) -> None:
        for flight in self.flights:
            if rng.random() < 0.3:
                self.tokens.add(flight.token)  # killed between the record of the token and the part
        self.flights.clear()
        self.boot += 1

    def count(self, addresses) -> dict[Address, int]:
        return {address: self.rows[address] * ROWS_OF(address) for address in addresses}


def ROWS_OF(address: Address) -> int:
    return 10 * address.seq


def drive(insert: BlockInsert, store: ModelStore, action: Action) -> Action:
    """Do what is decided, without faults, to the end."""
    while not isinstance(action, Finished | Abandoned):
        match action:
            case Insert(addresses, part):
                if store.poison & set(addresses):
                    action = insert.handle(Refused(True, "bad value"))
                    continue
                flight = Flight(store.boot, (store.boot, addresses if part else "whole"), addresses)
                store.flights.append(flight)
                store.commit(flight)
                action = insert.handle(Inserted())
            case Ask(addresses):
                action = insert.handle(Counted(store.count(addresses)))
            case Fence():
                store.flights.clear()
                action = insert.handle(Fenced())
            case Reconnect():
                action = insert.handle(Connected(store.boot_id))
    return action


@dataclass
class Attempt:
    """One collector at one delivery of a range (first to last seq) under a lease."""

    name: tuple[int, int]
    insert: BlockInsert
    action: Action
    boot: int
    lease: bool = True
    flight: Flight | None = None


class World:
    """A broker that delivers one range again and again, whole or split, to collectors that die at any point."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.addresses = tuple(Address(1, seq) for seq in range(1, self.rng.randint(2, 6)))
        self.store = ModelStore(poison=set(self.rng.sample(self.addresses, self.rng.choice([0, 0, 0, 1]))))
        self.dead: set[Address] = set()
        self.zombies: list[Attempt] = []
        self.ranges = [(self.addresses[0].seq, self.addresses[-1].seq)]

    def begin(self, bounds: tuple[int, int], repeat: bool) -> Attempt:
        expected = {a: ROWS_OF(a) for a in self.addresses if bounds[0] <= a.seq <= bounds[1]}
        insert = BlockInsert(expected, boot_id=self.store.boot_id, doubtful=repeat)
        return Attempt(bounds, insert, insert.start(), self.store.boot)

    def step(self, attempt: Attempt, faults: bool) -> bool:
        """One action of one collector; True when it has come to its end."""
        rng, store = self.rng, self.store
        if faults:
            for flight in list(store.flights):
                if rng.random() < 0.2:
                    store.commit(flight)
            if rng.random() < 0.03:
                store.restart(rng)
        connected = attempt.boot == store.boot
        match attempt.action:
            case Finished(dead):
                if attempt.lease:
                    self.dead |= set(dead)
                    self.ranges.remove(attempt.name)
                return True
            case Abandoned():
                return True
            case Insert(addresses, part):
                event = self._insert(attempt, addresses, part, faults, connected)
            case Reconnect():
                attempt.boot = store.boot
                event = Connected(store.boot_id)
            case _ if not connected or (faults and rng.random() < 0.05):
                event = Lost(False, "gone")
            case Ask(addresses):
                event = Counted(store.count(addresses))
            case Fence():
                first, last = attempt.name
                for flight in list(store.flights):
                    if any(first <= a.seq <= last for a in flight.addresses):
                        if rng.random() < 0.5:
                            store.commit(flight)
                        else:
                            store.flights.remove(flight)
                event = Fenced()
        attempt.action = attempt.insert.handle(event)
        return False

    def _insert(self, attempt, addresses, part, faults, connected):
        store, rng = self.store, self.rng
        if not attempt.lease:
            return LeaseOver()
        if not connected:
            return Lost(False, "gone")
        if store.poison & set(addresses):
            return Refused(True, "bad value")
        flight = Flight(store.boot, (attempt.name, store.boot, addresses if part else "whole"), addresses)
        store.flights.append(flight)
        if faults and rng.random() < 0.4:
            return Lost(True, "answer lost")  # it stays in flight: it may commit at any later step, or die
        store.commit(flight)
        return Inserted()

    def run(self) -> None:
        repeat = False
        for _round in range(self.rng.randint(1, 8)):
            if not self.ranges:
                break
            attempt = self.begin(self.rng.choice(self.ranges), repeat)
            for _ in range(self.rng.randint(1, 15)):
                if self.zombies and self.rng.random() < 0.3:
                    zombie = self.rng.choice(self.zombies)
                    if self.step(zombie, faults=True):
                        self.zombies.remove(zombie)
                if self.step(attempt, faults=True):
                    break
            else:
                attempt.lease = False  # it is slow or stopped: the broker gives the range to another
                if self.rng.random() < 0.5:
                    self.zombies.append(attempt)
            repeat = True
            if self.rng.random() < 0.2 and attempt.name in self.ranges and attempt.name[0] < attempt.name[1]:
                self.ranges.remove(attempt.name)
                middle = self.rng.randint(attempt.name[0], attempt.name[1] - 1)
                self.ranges += [(attempt.name[0], middle), (middle + 1, attempt.name[1])]
        while self.ranges:  # calm at last
            attempt = self.begin(self.ranges[0], repeat)
            while not self.step(attempt, faults=False):
                pass
            assert attempt.name not in self.ranges, f"a calm attempt did not finish: {attempt.action}"
        for zombie in self.zombies:
            for _ in range(50):
                if self.step(zombie, faults=False):
                    break
        for flight in list(self.store.flights):
            self.store.commit(flight)


@pytest.mark.parametrize("block_of_seeds", range(8))
def test_r14_rows_are_stored_once_whatever_dies_and_however_the_range_is_split(block_of_seeds):
    """A batch is stored once or dead; a zombie's insert, a lost answer or a restart between makes no difference."""
    for seed in range(block_of_seeds * 500, block_of_seeds * 500 + 500):
        world = World(seed)
        world.run()
        for address in world.addresses:
            stored, dead = world.store.rows[address], address in world.dead
            assert (stored, dead) in ((1, False), (0, True)), (
                f"seed {seed}: {address} stored {stored} times, dead {dead}"
            )
            assert not dead or address in world.store.poison, f"seed {seed}: {address} is innocent"
