"""The wire protocol: its parsers let nothing but ProtocolError out, and ``docs/protocol.md`` says what the code says."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zmqbroker import protocol
from zmqbroker.errors import ProtocolError
from zmqbroker.protocol import HEADER_BYTES, MESSAGES, Code, Type

PAGE = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text()


@given(st.binary(max_size=200))
def test_any_bytes_are_a_header_or_a_protocol_error(frame: bytes) -> None:
    try:
        header = protocol.unpack(frame)
    except ProtocolError as e:
        assert e.code in (Code.BAD_MESSAGE, Code.BAD_VERSION)  # noqa: PT017
    else:
        assert len(frame) == HEADER_BYTES
        assert header.magic == protocol.MAGIC


@given(st.binary(max_size=200), st.integers(0, 1 << 32))
def test_any_bytes_are_ranges_or_a_protocol_error(frame: bytes, count: int) -> None:
    try:
        assert len(protocol.unpack_ranges(frame, count)) == count
    except ProtocolError as e:
        assert e.code == Code.BAD_MESSAGE  # noqa: PT017


@given(st.binary(max_size=200), st.integers(0, 1 << 32))
def test_any_bytes_are_offsets_or_a_protocol_error(frame: bytes, count: int) -> None:
    try:
        assert len(protocol.unpack_offsets(frame, count)) == count
    except ProtocolError as e:
        assert e.code == Code.BAD_MESSAGE  # noqa: PT017


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(), lambda c: st.lists(c, max_size=3)
)


@given(st.binary(max_size=200) | _JSON.map(lambda x: json.dumps(x).encode()))
def test_any_bytes_are_options_or_a_protocol_error(frame: bytes) -> None:
    try:
        assert isinstance(protocol.unpack_options(frame), dict)
    except ProtocolError as e:
        assert e.code == Code.BAD_MESSAGE  # noqa: PT017


def test_deeply_nested_and_oversized_options_are_protocol_errors() -> None:
    for frame in (b"[" * 60_000, b'{"a":' * 10_000, b'{"a": "' + b"x" * 70_000 + b'"}', b"1" * 60_000):
        with pytest.raises(ProtocolError):
            protocol.unpack_options(frame)


@given(
    st.integers(0, 255), st.integers(0, (1 << 32) - 1), st.integers(0, 255), st.integers(0, 0xFFFF),
    st.lists(st.integers(0, (1 << 32) - 1), min_size=9, max_size=9),
)  # fmt: skip
def test_a_packed_header_is_read_as_it_was(
    type_: int, generation: int, flags: int, partition: int, fields: list[int]
) -> None:
    named = dict(zip("nabcdefgh", fields, strict=True))
    header = protocol.unpack(protocol.pack(type_, generation, flags=flags, partition=partition, **named))
    assert (header.type, header.generation, header.flags, header.partition) == (type_, generation, flags, partition)
    assert {name: getattr(header, name) for name in named} == named


@given(st.lists(st.tuples(st.integers(0, (1 << 64) - 1), st.integers(0, (1 << 64) - 1)), max_size=20))
def test_packed_ranges_are_read_as_they_were(ranges: list[tuple[int, int]]) -> None:
    assert protocol.unpack_ranges(protocol.pack_ranges(ranges), len(ranges)) == ranges


@given(st.text(max_size=220))
def test_a_topic_name_is_a_safe_name_of_a_directory(name: str) -> None:
    if protocol.valid_topic(name):
        assert "/" not in name
        assert name not in ("", ".", "..")
        assert len(name.encode()) <= protocol.TOPIC_BYTES_MAX


def _section(title: str) -> str:
    found = re.search(rf"^### {title}\n(.*?)(?=^##|\Z)", PAGE, re.M | re.S)
    assert found is not None, f"docs/protocol.md has no section {title}"
    return found[1]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda m: m.type.name)
def test_the_page_says_of_each_message_what_the_code_says(message: protocol.Message) -> None:
    section = _section(message.type.name)
    assert f"Type {int(message.type)}" in section
    assert f"sent by: {message.sender}" in section
    fields = dict(re.findall(r"^\| `(\w+)` \| (.*?) \|$", section, re.M))
    assert fields == message.fields
    frames = re.findall(r"^Frame \d+: (.*)$", section, re.M)
    assert tuple(frames) == message.frames
    answer = re.search(r"^Answer: (.*)$", section, re.M)
    assert (answer[1] if answer else "") == message.answer


def test_every_type_has_a_message_and_every_message_a_section() -> None:
    assert sorted(m.type for m in MESSAGES) == sorted(Type)
    assert len(re.findall(r"^### [A-Z]+$", PAGE, re.M)) == len(MESSAGES)


def test_the_page_lists_every_code_with_its_number() -> None:
    listed = {name: int(number) for number, name in re.findall(r"^\| (\d+) \| `([A-Z_]+)` \|", PAGE, re.M)}
    assert listed == {code.name: int(code) for code in Code}


def test_the_page_tells_the_sizes_that_the_code_has() -> None:
    assert f"{HEADER_BYTES} bytes" in PAGE
    assert f"{protocol.RECORD.itemsize} bytes" in PAGE
    assert f"{protocol.INLINE_BYTES_MAX} bytes" in PAGE
    assert f"`{protocol.MAGIC.decode()}`" in PAGE
