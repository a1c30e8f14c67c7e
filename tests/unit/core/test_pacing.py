"""When the broker's loop rests between two turns."""

from __future__ import annotations

from zmqbroker.pacing import FULL_FROM, REST_S_MAX, Pacing


def after(turns: int, waited_s: float, worked_s: float, events: int = 3) -> float:
    """The rest after so many equal turns."""
    pacing = Pacing()
    return max(pacing.rest_s(waited_s, worked_s, events) for _ in range(turns))


def test_a_message_that_comes_alone_is_taken_without_a_rest() -> None:
    assert after(1000, 0.01, 0.0005) == 0.0
    assert after(1, 0.0, 0.001) == 0.0  # nor does one turn make it busy


def test_the_busier_the_loop_the_longer_it_rests_within_the_limit() -> None:
    rests = [after(1000, 1 - share, share) for share in (0.4, 0.6, 0.8, 1.0)]
    assert 0.0 < rests[0] < rests[1] < rests[2] < rests[3] <= REST_S_MAX


def test_full_turns_are_not_kept_waiting() -> None:
    assert after(1000, 0.0, 0.002, FULL_FROM) == 0.0


def test_it_is_idle_again_a_moment_after_the_load_is_gone() -> None:
    pacing = Pacing()
    for _ in range(1000):
        pacing.rest_s(0.0, 0.001, 3)
    assert pacing.rest_s(0.5, 0.001, 1) == 0.0
