"""When the breaker opens, who probes, how long the waits are: with a clock and chance of the test's own."""

from __future__ import annotations

import pytest

from consumers.breaker import Breaker, BreakerPolicy, Release, Retry, State

POLICY = BreakerPolicy(failures_to_open=2, wait_s_min=1.0, wait_s_max=8.0, jitter=0.2)


@pytest.fixture
def breaker() -> Breaker:
    return Breaker(POLICY, random=lambda: 0.5)


def test_one_failure_is_tried_again_at_once_and_does_not_open_it(breaker):
    assert breaker.failed("a", 0.0, "reset") == Retry(0.0)
    assert breaker.closed
    assert breaker.worked("a") is False
    assert breaker.failed("a", 1.0, "reset") == Retry(0.0), "a success in between starts the count again"


def test_r23_when_it_opens_one_is_the_probe_and_the_others_release(breaker):
    breaker.failed("a", 0.0, "refused")
    assert breaker.failed("b", 0.0, "refused") == Retry(1.0)
    assert breaker.state is State.OPEN
    assert breaker.failed("a", 0.1, "refused") == Release()
    assert breaker.failed("c", 0.1, "refused") == Release()


def test_waits_double_up_to_the_limit_and_start_small_after_a_success(breaker):
    breaker.failed("a", 0.0, "x")
    waits = [breaker.failed("a", 0.0, "x") for _ in range(6)]
    assert waits == [Retry(1.0), Retry(2.0), Retry(4.0), Retry(8.0), Retry(8.0), Retry(8.0)]
    assert breaker.worked("a") is True
    breaker.failed("a", 0.0, "x")
    assert breaker.failed("a", 0.0, "x") == Retry(1.0)


@pytest.mark.parametrize(("chance", "wait"), [(0.0, 0.8), (0.5, 1.0), (0.999999, 1.2)])
def test_waits_vary_so_that_collectors_do_not_knock_together(chance, wait):
    breaker = Breaker(POLICY, random=lambda: chance)
    breaker.failed("a", 0.0, "x")
    retry = breaker.failed("a", 0.0, "x")
    assert isinstance(retry, Retry)
    assert retry.after_s == pytest.approx(wait, abs=1e-5)


def test_a_probe_may_try_only_when_its_wait_is_over_and_is_half_open_then(breaker):
    breaker.failed("a", 0.0, "x")
    breaker.failed("a", 0.0, "x")
    assert not breaker.may_probe("a", 0.9)
    assert not breaker.may_probe("b", 5.0), "there is one probe"
    assert breaker.may_probe("a", 1.0)
    assert breaker.state is State.HALF_OPEN
    breaker.failed("a", 1.0, "x")
    assert breaker.state is State.OPEN


def test_when_the_probe_leaves_the_next_to_ask_takes_its_place(breaker):
    breaker.failed("a", 0.0, "x")
    breaker.failed("a", 0.0, "x")
    breaker.left("b")
    assert not breaker.may_probe("b", 5.0)
    breaker.left("a")
    assert breaker.may_probe("b", 5.0)


def test_success_of_anyone_closes_it(breaker):
    breaker.failed("a", 0.0, "x")
    breaker.failed("a", 0.0, "x")
    assert breaker.worked("b") is True
    assert breaker.closed
    assert breaker.reason == ""
