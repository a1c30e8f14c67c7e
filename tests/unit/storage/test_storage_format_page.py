"""docs/storage-format.md and the code say the same."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

import pytest

from zmqbroker.storage import interface, record, segment
from zmqbroker.storage.index import COLUMN_TYPES

PAGE = Path(__file__).parents[3] / "docs" / "storage-format.md"


@pytest.fixture(scope="module")
def text() -> str:
    return PAGE.read_text()


def rows(text: str, heading: str) -> list[list[str]]:
    part = text.split(f"### {heading}\n")[1].split("\n### ")[0]
    return [
        [cell.strip() for cell in line.strip("|").split("|")] for line in part.splitlines() if re.match(r"\| \d", line)
    ]


def test_the_page_has_every_field_of_the_record_header_where_it_lies(text: str) -> None:
    told = {row[2]: (int(row[0]), int(row[1])) for row in rows(text, "Record") if len(row) == 4}
    fields = record.HEADER.fields
    assert fields is not None
    assert told == {name: (offset, dtype.itemsize) for name, (dtype, offset, *_) in fields.items()}
    assert f"{record.HEADER_BYTES} bytes" in text


def test_the_page_has_every_kind_of_record(text: str) -> None:
    told = {row[1]: int(row[0]) for row in rows(text, "Record") if len(row) == 3}
    known = {
        name[5:]: value
        for module in (interface, record)
        for name, value in vars(module).items()
        if name.startswith("KIND_")
    }
    assert told == known


def test_the_page_has_the_head_and_the_columns_as_they_are(text: str) -> None:
    sizes = [(int(row[0]), int(row[1])) for row in rows(text, "Head")]
    assert sizes[-1] == (2048, 44)
    assert sum(size for _, size in sizes[:-1]) == segment._HEAD.size + 4 == 44
    assert all(a + size == b for (a, size), (b, _) in pairwise(sizes[:-1]))
    columns = " | ".join(f"{name} u{8 * int(kind[-1])}[n]" for name, kind in COLUMN_TYPES)
    assert columns in text


def test_a_snapshot_keeps_the_next_offsets_beside_the_state() -> None:
    assert segment.unpack_snapshot(segment.pack_snapshot([1, 2**40, 0], b"state")) == ([1, 2**40, 0], b"state")
