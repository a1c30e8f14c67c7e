"""What every simulated world has: producers, a store, a network, time, chance, and a drain at the end.

One seed, one history. ``run(steps)`` raises :class:`Violation` where a promise is broken; the message ends with the
command that plays the same history again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

from consumers.merge import Address
from tests.simulation.clockwork import Clockwork, Violation
from tests.simulation.network import Frames, Server, SimulatedLink, flip_payload
from tests.simulation.store import Store


@dataclass
class Profile:
    """What kind of world a seed makes."""

    producers: int = 2
    collectors: int = 2
    producer_buffer_bytes: int = 20_000
    payload_bytes_max: int = 400
    store_refuses_now: float = 0.0
    store_answers_lost: float = 0.0
    corrupt_in_transit: float = 0.0
    slow_work: float = 0.0
    poison: int = 0
    """One batch in so many is refused by the store for good."""
    fault_pause_s: float = 1.5
    faults: dict[str, float] = field(default_factory=dict)


class StageChecks(Protocol):
    """What a world looks after."""

    @property
    def progress(self) -> int:
        """Grows while anything gets done."""

    def published(self, session: int, seq: int, rows: int) -> None: ...

    def acked(self, session: int, seq: int) -> None: ...

    def finished(self) -> str:
        """What is still open when everything should have drained; "" when nothing is."""


class Actor(Protocol):
    link: SimulatedLink
    dead: bool


class Stage:
    """See the module. ``draining``: faults and publishing have stopped, everything must come to rest."""

    again: ClassVar[str] = "python -m tests.simulation"
    profile: Profile
    checks: StageChecks
    servers: Sequence[Server]
    """Who listens, by the addresses that clients try in turn."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.clock = Clockwork(seed)
        self.draining = False
        self.queries = 0
        self.cured: set[Address] = set()
        """Batches that the store takes now: somebody has changed what refused them."""
        self._wall_ms = 1_760_000_000_000
        self._connections = self._incarnations = self._sessions = 0
        self.store = Store(self)

    # --- what the parts ask

    def chance(self, probability: float) -> bool:
        return probability > 0 and not self.draining and self.clock.rng.random() < probability

    def wall_ms(self) -> int:
        return self._wall_ms + int(self.clock.now * 1000)

    def next_connection_id(self) -> bytes:
        self._connections += 1
        return b"\0" + self._connections.to_bytes(4, "little")

    def next_incarnation(self) -> int:
        self._incarnations += 1
        return self._incarnations

    def new_session(self) -> int:
        self._sessions += 1
        return self._sessions * 1_000_003

    def batch(self, session: int, seq: int) -> tuple[bytes, int]:
        """Payload and rows of a batch: the same whenever it is asked for."""
        mix = (session * 2_654_435_761 + seq * 40_503) & 0xFFFFFFFF
        size = mix % self.profile.payload_bytes_max
        text = b"%d/%d/" % (session, seq)
        return (text * (size // len(text) + 1))[:size], 1 + (mix >> 8) % 20

    def is_poison(self, address: Address) -> bool:
        if not self.profile.poison or address in self.cured:
            return False
        return (address.session + address.seq * 7919) % self.profile.poison == 0

    def cure(self, session: int, seq: int) -> None:
        self.cured.add(Address(session, seq))

    def corrupt_in_transit(self, frames: Frames) -> Frames:
        if self.chance(self.profile.corrupt_in_transit):
            return flip_payload(frames, self.clock.rng.randrange(1 << 16))
        return frames

    # --- what befalls it

    def _fault(self) -> None:
        if self.draining:
            return
        names = list(self.profile.faults)
        name = self.clock.rng.choices(names, [self.profile.faults[n] for n in names])[0]
        getattr(self, f"_{name}")()
        self.clock.after(self.profile.fault_pause_s * self.clock.between(0.2, 2), self._fault)

    def actors(self) -> Sequence[Actor]:
        """Whose connections may break."""
        raise NotImplementedError

    def _break_connection(self) -> None:
        links = [a.link for a in self.actors() if not a.dead]
        for link in self.clock.rng.sample(links, k=min(len(links), self.clock.rng.randint(1, 3))):
            link.break_connection()

    def _restart_store(self) -> None:
        if self.store.up:
            self.store.stop()
            self.clock.after(self.clock.between(0.1, 15.0), self.store.start)

    def _slow_store(self) -> None:
        self.store.slow = not self.store.slow

    # --- running

    def run(self, steps: int) -> None:
        """Play ``steps`` events, then let everything drain and check that it does."""
        try:
            while self.clock.steps < steps and self.clock.step():
                pass
            self._drain()
        except Violation as e:
            raise Violation(f"{e}\n{self.replay(steps)}") from e
        except Exception as e:
            raise Violation(f"{type(e).__name__}: {e}\n{self.replay(steps)}") from e

    def replay(self, steps: int) -> str:
        return f"at step {self.clock.steps}; again: {self.again} --seed {self.seed} --steps {steps}"

    def repair(self) -> str:
        """Bring back what is down, again and again while the world drains; what is still down, or ""."""
        raise NotImplementedError

    def _drain(self) -> None:
        self.draining = True
        if not self.store.up:
            self.store.start()
        self.store.slow = False
        progress, deadline_s = -1, self.clock.now
        steps_max = 20 * self.clock.steps + 200_000
        look_s = self.clock.now + 70.0  # pauses that were begun last up to a minute
        while True:
            while self.clock.now < look_s and self.clock.step():
                if self.clock.steps > steps_max:
                    raise Violation(f"{steps_max} events, and no rest: {self.checks.finished()}")
            open_ = self.repair() or self.checks.finished()
            if not open_:
                return
            if self.checks.progress != progress:
                progress, deadline_s = self.checks.progress, self.clock.now + 150.0
            elif self.clock.now > deadline_s:
                raise Violation(f"no progress for 150 s after the last fault: {open_}")
            look_s = self.clock.now + 5.0
