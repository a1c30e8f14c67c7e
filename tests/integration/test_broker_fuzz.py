"""Raw sockets send a real broker what no client sends; it serves the others as before (long: tests.simulation.fuzz)."""

from __future__ import annotations

import random

import pytest

from tests.simulation.fuzz import play


@pytest.mark.timeout(120)
@pytest.mark.parametrize("seed", [1, random.SystemRandom().randrange(1 << 32)])
def test_garbage_of_every_kind_neither_ends_nor_stalls_the_broker(seed: int) -> None:
    assert play(8000, seed) == "", f"again: python -m tests.simulation.fuzz --messages 8000 --seed {seed}"
