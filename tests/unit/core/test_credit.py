"""The credit pool: bounded, fair, and never stuck (R6)."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from zmqbroker.core.credit import CreditPool
from zmqbroker.core.session import Session

POOL = 1 << 20


def connected(pool: CreditPool, number: int) -> Session:
    session = Session(number, "t")
    session.conn = number.to_bytes(4, "little")
    pool.join(session, True)
    return session


def everybody(_: Session) -> bool:
    return True


def publish(pool: CreditPool, session: Session, size: int) -> bool:
    """Ask if needed, send, become durable, as a producer and a broker do."""
    pool.want(session, session.received_bytes + size)
    pool.share_out(everybody)
    if not pool.use(session, size):
        return False
    pool.free(session, size)
    pool.top_up(session)
    return True


def test_r06_idle_producers_that_came_first_cannot_keep_credit_from_those_that_work() -> None:
    """Seen with 10,000 agents: the first hundred held a quarter MiB each for ever, and the rest stood still."""
    pool = CreditPool(POOL, floor_bytes_max=POOL // 4)
    sessions = [connected(pool, i) for i in range(1000)]
    assert pool.outstanding_bytes <= POOL
    for _ in range(50):
        for session in sessions[500:]:
            assert publish(pool, session, 3000)
    assert pool.outstanding_bytes <= POOL


def test_r06_a_batch_of_half_the_pool_is_served_though_all_others_hold_their_floor() -> None:
    pool = CreditPool(POOL, floor_bytes_max=POOL // 4)
    sessions = [connected(pool, i) for i in range(300)]
    for session in sessions[1:]:
        publish(pool, session, 1000)
    assert publish(pool, sessions[0], POOL // 2)


def test_r06_what_is_above_the_credit_is_not_taken() -> None:
    pool = CreditPool(POOL, floor_bytes_max=POOL // 4)
    session = connected(pool, 1)
    assert not pool.use(session, session.granted_bytes + 1)
    assert session.received_bytes == 0


def test_r06_whoever_may_have_nothing_is_passed_over_and_served_later() -> None:
    pool = CreditPool(POOL, floor_bytes_max=4096)
    full, free = connected(pool, 1), connected(pool, 2)
    pool.want(full, 100_000)
    pool.want(free, 100_000)
    pool.share_out(lambda s: s is free)
    assert free.granted_bytes == 100_000
    assert full.granted_bytes <= 4096
    pool.share_out(everybody)
    assert full.granted_bytes == 100_000


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["use", "want", "free", "leave", "top"]), st.integers(0, 7), st.integers(1, POOL // 2)
        )
    )
)
def test_r06_credit_is_conserved_whatever_happens(steps: list[tuple[str, int, int]]) -> None:
    pool = CreditPool(POOL, floor_bytes_max=POOL // 4)
    sessions = [connected(pool, i) for i in range(8)]
    for what, i, size in steps:
        session = sessions[i]
        if what == "use":
            pool.use(session, size)
        elif what == "want":
            pool.want(session, session.received_bytes + size)
            pool.share_out(everybody)
        elif what == "free":
            pool.free(session, size)
        elif what == "top":
            pool.top_up(session)
        else:
            pool.leave(session)
            pool.join(session, True)
        assert 0 <= pool.ahead_bytes <= pool.outstanding_bytes <= POOL
        assert pool.outstanding_bytes == sum(s.granted_bytes - s.freed_bytes for s in sessions)
        assert pool.ahead_bytes == sum(s.granted_bytes - s.received_bytes for s in sessions)
