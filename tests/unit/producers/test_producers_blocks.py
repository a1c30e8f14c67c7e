"""Byte blocks cut at line ends: every line in exactly one block, wherever the cuts fall."""

import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from producers.blocks import LINE_BYTES_MAX, FileBlocks, block_count, stream_blocks
from producers.errors import LineTooLong

HEADER = b"a,b\n"
LINES = st.lists(st.text(alphabet='x",\r', max_size=12), max_size=30)


def content(lines, ended):
    data = b"".join(line.encode() + b"\n" for line in lines)
    return data if ended or not lines else data[:-1]


@settings(max_examples=200, deadline=None)
@given(LINES, st.booleans(), st.integers(1, 40), st.data())
def test_blocks_cut_at_any_byte_give_each_line_exactly_once(tmp_path_factory, lines, ended, block_bytes, data):
    path = tmp_path_factory.mktemp("blocks", numbered=True) / "f.csv"
    body = content(lines, ended)
    path.write_bytes(HEADER + body)
    with FileBlocks(str(path), block_bytes, len(HEADER)) as blocks:
        count = block_count(blocks.size, block_bytes)
        split = data.draw(st.integers(0, count))
        parts = [*blocks.read(0, split), *blocks.read(split, count)]
        assert b"".join(part.data for part in parts) == body
        for part in parts:
            assert part.offset // block_bytes == part.number
            assert (HEADER + body)[part.offset : part.offset + len(part.data)] == part.data
            assert part.data.endswith(b"\n") or part is parts[-1]
            # Every line of a block begins within the block's own bytes.
            last = part.offset + (part.data[:-1].rfind(b"\n") + 1)
            assert last // block_bytes == part.number
        assert blocks.count_lines(0, blocks.size) == (HEADER + body).count(b"\n")


@settings(max_examples=200, deadline=None)
@given(LINES, st.booleans(), st.integers(1, 40), st.integers(1, 9))
def test_a_stream_gives_the_same_blocks_as_the_file(tmp_path_factory, lines, ended, block_bytes, step):
    path = tmp_path_factory.mktemp("blocks", numbered=True) / "f.csv"
    body = content(lines, ended)
    path.write_bytes(HEADER + body)
    stream = io.BytesIO(body)
    with FileBlocks(str(path), block_bytes, len(HEADER)) as blocks:
        expected = list(blocks.read(0, block_count(blocks.size, block_bytes)))
    got = stream_blocks(lambda n: stream.read(min(n, step)), block_bytes, source="f", offset=len(HEADER))
    assert list(got) == expected


def test_a_file_without_line_ends_is_refused_instead_of_read_whole(tmp_path):
    path = tmp_path / "binary"
    with path.open("wb") as f:
        f.truncate(LINE_BYTES_MAX * 2)
    with FileBlocks(str(path), 1 << 20, 10) as blocks, pytest.raises(LineTooLong, match="no line end within 16 MiB"):
        list(blocks.read(1, 3))
    with path.open("rb") as f, pytest.raises(LineTooLong):
        list(stream_blocks(f.read, 1 << 20, source="binary"))
