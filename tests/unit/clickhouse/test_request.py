"""Bodies: whole or refused, and never more of them at a time than there is room for."""

from __future__ import annotations

import io
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clickhouse.embedded.engine import EngineError
from clickhouse.embedded.request import BodyCut, Budget, parse_target, read_body


def read(data: bytes, headers: dict[str, str], bytes_max: int = 1 << 20, seconds: float = 60) -> bytes:
    return read_body(io.BytesIO(data), headers, bytes_max, time.monotonic() + seconds, lambda size: None)


def chunked(pieces: list[bytes]) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces if piece) + b"0\r\n\r\n"


CHUNKED = {"Transfer-Encoding": "chunked"}


@given(st.lists(st.binary(max_size=50), max_size=8))
def test_chunks_make_the_body(pieces: list[bytes]) -> None:
    assert read(chunked(pieces), CHUNKED) == b"".join(pieces)


@given(st.lists(st.binary(min_size=1, max_size=50), min_size=1, max_size=8), st.data())
def test_a_body_that_ends_early_is_refused_wherever_it_ends(pieces: list[bytes], data: st.DataObject) -> None:
    whole = chunked(pieces)
    end = data.draw(st.integers(0, len(whole) - 1))
    with pytest.raises(BodyCut):
        read(whole[:end], CHUNKED)
    plain = b"".join(pieces)
    with pytest.raises(BodyCut):
        read(plain[:-1], {"Content-Length": str(len(plain))})


@given(st.binary(max_size=100))
def test_garbage_for_chunks_is_refused_and_nothing_else(data: bytes) -> None:
    try:
        read(data, CHUNKED)
    except (BodyCut, EngineError):
        pass


def test_a_body_too_long_or_too_late_is_refused() -> None:
    with pytest.raises(EngineError) as caught:
        read(b"x" * 100, {"Content-Length": "100"}, bytes_max=99)
    assert caught.value.code == 307
    with pytest.raises(EngineError):
        read(chunked([b"x" * 60, b"y" * 60]), CHUNKED, bytes_max=99)
    with pytest.raises(BodyCut, match="longer"):
        read(b"x", {"Content-Length": "1"}, seconds=-1)
    with pytest.raises(BodyCut):
        read(b"x", {"Content-Length": "-1"})


def test_bodies_together_keep_within_the_budget_and_one_alone_may_exceed_it() -> None:
    budget = Budget(100)
    with budget.reserve() as first:
        first(150)
        with budget.reserve() as second, pytest.raises(EngineError) as caught:
            second(1)
        assert caught.value.code == 241
    with budget.reserve() as third:
        third(60)
        with budget.reserve() as fourth:
            fourth(40)


def test_of_a_repeated_parameter_the_last_counts() -> None:
    assert parse_target("/?a=1&b=%20x&a=2&c") == ("/", {"a": "2", "b": " x", "c": ""})
