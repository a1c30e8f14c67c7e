"""``docs/guarantees.md``: every rule has its tests, and every test that the page names exists."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "guarantees.md").read_text()
TESTS = {
    name for path in (ROOT / "tests").rglob("test_*.py") for name in re.findall(r"def (test_\w+)", path.read_text())
}
RULES = range(1, 31)


def _rows() -> dict[int, str]:
    return {int(number): row for number, row in re.findall(r"^\| R(\d+) \| (.*) \|$", PAGE, re.M)}


def test_every_test_that_the_page_names_exists() -> None:
    named = {name for row in _rows().values() for name in re.findall(r"`(test_\w+)`", row)}
    assert named
    assert named <= TESTS


def test_every_rule_is_told_has_a_home_and_a_test_that_bears_its_number() -> None:
    told = {int(number) for number in re.findall(r"^- \*\*R(\d+) ", PAGE, re.M)}
    assert told == set(RULES)
    rows = _rows()
    for rule in RULES:
        assert f"`test_r{rule:02}_" in rows[rule], f"R{rule} names no test"


def test_every_file_that_the_page_names_exists() -> None:
    for row in _rows().values():
        for name in re.findall(r"`([\w/]+\.py)`", row.split(" | ")[0]):
            places = [ROOT / name, ROOT / "zmqbroker" / name]
            assert any(place.is_file() for place in places), f"{name} does not exist"
