"""Random histories without a broker: nothing lost, nothing doubled, whoever dies or stands still (R7, R30)."""

from __future__ import annotations

import random

import pytest

from tests.simulation.clockwork import Violation
from tests.simulation.direct import DirectWorld
from zmqbroker.client.accepting import Accepting

ONCE_BROKEN = [941, 950, 1125, 1415]
FRESH = 6


@pytest.mark.parametrize("seed", ONCE_BROKEN)
def test_a_history_without_a_broker_that_once_broke_a_promise_keeps_them_all(seed: int) -> None:
    DirectWorld(seed).run(5000)


@pytest.mark.timeout(300)
def test_r30_fresh_histories_without_a_broker_keep_every_promise() -> None:
    first = random.SystemRandom().randrange(1 << 40)
    for seed in range(first, first + FRESH):
        DirectWorld(seed).run(3000)


def test_a_history_without_a_broker_stores_what_was_published_in_runs() -> None:
    """A world in which nothing gets through would keep every promise, too."""
    world = DirectWorld(5)
    world.run(3000)
    assert len(world.store.rows) > 100
    assert world.checks.batches > world.checks.deliveries


def test_an_insert_that_is_begun_after_the_lease_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Accepting, "holds", lambda self, delivery, now: True)
    with pytest.raises(Violation):
        for seed in (50, 161, *range(200, 400)):
            DirectWorld(seed).run(5000)


def test_a_repeat_that_is_taken_for_certain_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    delivery_of = Accepting._delivery

    def certain(self: Accepting, run):  # type: ignore[no-untyped-def]
        run.doubtful, run.attempt = False, 1
        return delivery_of(self, run)

    monkeypatch.setattr(Accepting, "_delivery", certain)
    with pytest.raises(Violation, match="stored twice"):
        for seed in range(1, 200):
            DirectWorld(seed).run(5000)
