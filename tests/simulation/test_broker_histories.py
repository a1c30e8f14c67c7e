"""Random histories of the whole broker. Seeds that once broke a promise are played for ever; a few are new each time.

``SEEDS=200 make simulate`` plays that many fresh ones. A failure prints the command that plays it again.
"""

from __future__ import annotations

import os
import random
import time

import pytest

from tests.simulation.clockwork import Violation
from tests.simulation.world import World

ONCE_BROKEN = [1, 5, 12, 13, 17, 100, 135, 207, 418, 432, 441, 1142, 1143, 1199, 2038, 5021]
"""What each found stands in the history of this repository."""
ONCE_BROKEN_OPERATED = [26, 101, 204, 233, 338, 359, 30233, 40544]
"""The same, since there are operators, rot and drop-oldest."""
FRESH = int(os.environ.get("SEEDS", "0")) or 6
FRESH_BUDGET_S = 20.0


@pytest.mark.parametrize("seed", ONCE_BROKEN)
@pytest.mark.timeout(120)
def test_a_history_that_once_broke_a_promise_keeps_them_all(seed: int) -> None:
    World(seed, operated=False).run(2500)


@pytest.mark.parametrize("seed", ONCE_BROKEN_OPERATED)
@pytest.mark.timeout(120)
def test_a_history_with_an_operator_that_once_broke_a_promise_keeps_them_all(seed: int) -> None:
    World(seed).run(5000)


@pytest.mark.timeout(3600)
def test_fresh_histories_keep_every_promise() -> None:
    first = random.SystemRandom().randrange(1 << 40)
    started_s = time.monotonic()
    for seed in range(first, first + FRESH):
        World(seed).run(5000 if "SEEDS" in os.environ else 2500)
        if "SEEDS" not in os.environ and time.monotonic() - started_s > FRESH_BUDGET_S:
            break


def test_the_same_seed_is_the_same_history() -> None:
    worlds = [World(4), World(4)]
    for world in worlds:
        world.run(1500)
    a, b = worlds
    assert (a.clock.steps, a.clock.now, a.checks.deliveries) == (b.clock.steps, b.clock.now, b.checks.deliveries)
    assert a.store.rows == b.store.rows


def test_a_history_stores_and_buries_what_was_published() -> None:
    """A world in which nothing gets through would keep every promise, too."""
    world = World(12)
    world.run(3000)
    assert len(world.checks.acked_) > 100
    assert len(world.store.rows) > 100
    assert world.checks.deliveries > 50


class TestTheChecksCanFail:
    """A check that no defect can trip proves nothing."""

    def test_an_ack_before_the_log_is_found(self) -> None:
        world = next(w for w in map(World, range(1, 50)) if w.profile.topic.fsync == "commit")
        with pytest.raises(Violation, match="in no log"):
            world.checks.acked(session=77, seq=1)

    def test_rows_stored_twice_are_found(self) -> None:
        world = World(3)
        world.profile.store_answers_lost = world.profile.store_refuses_now = 0.0
        world.profile.poison = 0
        for token in ("a", "b"):
            world.store.insert(token, token, {(1, 1): 5}, world.store.boot_id, lambda event: None)  # type: ignore[dict-item]
        with pytest.raises(Violation, match="stored twice"):
            while True:
                world.clock.step()

    def test_a_broker_that_forgets_its_sessions_is_found(self) -> None:
        """Without exact acks a resend becomes a second record."""
        from zmqbroker.core.session import Session

        knows, Session.learn = Session.learn, lambda self, seq, lowest: None  # type: ignore[method-assign,assignment]
        try:
            with pytest.raises(Violation):
                for seed in range(1, 20):
                    World(seed).run(3000)
        finally:
            Session.learn = knows  # type: ignore[method-assign]

    def test_a_settlement_without_rows_in_the_store_is_found(self) -> None:
        from zmqbroker.client.consuming import ConsumerConversation

        world = World(2)
        settle = ConsumerConversation.settle
        world.store.insert = lambda token, query, rows, boot, reply: reply(_inserted())  # type: ignore[method-assign]
        with pytest.raises(Violation, match=r"neither stored nor dead|are not there"):
            world.run(3000)
        assert ConsumerConversation.settle is settle


def _inserted() -> object:
    from consumers.doubt import Inserted

    return Inserted()
