"""Content codings and ClickHouse's framing: what goes in comes out, what is damaged or grows is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clickhouse.embedded import codecs

CODINGS = ["lz4", "zstd", "gzip", "deflate", "bz2", "xz"]


@pytest.mark.parametrize("coding", CODINGS)
@given(pieces=st.lists(st.binary(max_size=500), max_size=10))
def test_what_was_compressed_comes_back(coding: str, pieces: list[bytes]) -> None:
    compressor = codecs.compressor(coding)
    packed = b"".join([compressor.compress(piece) for piece in pieces] + [compressor.flush()])
    assert codecs.decompress(packed, coding, 1 << 20) == b"".join(pieces)


@pytest.mark.parametrize("coding", CODINGS)
def test_a_bomb_is_refused_without_being_unpacked(coding: str) -> None:
    compressor = codecs.compressor(coding)
    packed = compressor.compress(bytes(50 << 20)) + compressor.flush()
    with pytest.raises(codecs.CodingError, match="beyond"):
        codecs.decompress(packed, coding, 1 << 20)


@pytest.mark.parametrize("coding", CODINGS)
def test_a_cut_body_is_refused(coding: str) -> None:
    compressor = codecs.compressor(coding)
    packed = compressor.compress(b"row\n" * 1000) + compressor.flush()
    with pytest.raises(codecs.CodingError):
        codecs.decompress(packed[:-3], coding, 1 << 20)


@given(data=st.binary(max_size=3000), coding=st.sampled_from(CODINGS))
def test_garbage_is_refused_and_nothing_else(data: bytes, coding: str) -> None:
    try:
        codecs.decompress(data, coding, 1 << 16)
    except codecs.CodingError:
        pass


@given(st.binary(max_size=5000))
def test_framing_comes_back(data: bytes) -> None:
    framing = codecs.Framing()
    packed = framing.compress(data) + framing.flush()
    assert codecs.unframe(packed, 1 << 20) == data


@given(st.binary(min_size=1, max_size=3000), st.data())
def test_a_damaged_frame_is_refused(body: bytes, data: st.DataObject) -> None:
    packed = bytearray(codecs.frame(body))
    at = data.draw(st.integers(0, len(packed) - 1))
    packed[at] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(codecs.CodingError):
        codecs.unframe(bytes(packed), 1 << 20)


@pytest.mark.parametrize(
    ("accepted", "chosen"), [("gzip, zstd", "zstd"), ("gzip;q=0, deflate", "deflate"), ("identity", ""), ("", "")]
)
def test_the_fastest_accepted_coding_is_chosen(accepted: str, chosen: str) -> None:
    assert codecs.choose(accepted) == chosen
