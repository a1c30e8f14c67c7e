"""The fenced commands of README and docs, and what says how each is kept true.

The info string of a fence tells: ``sh`` alone is run as it stands by tests/e2e/test_documented_commands.py,
``sh by=tests/…`` by that test, ``sh skip=some-reason`` by none, for that reason.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final, NamedTuple

ROOT: Final = Path(__file__).resolve().parents[2]
PAGES: Final = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
OWN_TEST: Final = {"docs/api.md": "tests/e2e/api/test_examples.py"}
"""Pages whose plain fences are all run by a test of their own."""


class Fence(NamedTuple):
    """One fenced block. ``line`` counts from 1; ``by`` and ``skip`` come from the info string, "" if not told."""

    page: str
    line: int
    language: str
    by: str
    skip: str
    text: str

    @property
    def title(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def commands(self) -> list[str]:
        """Its command lines: continued lines joined, comments and empty lines left out."""
        lines = re.sub(r"\\\n\s*", " ", self.text).splitlines()
        return [line for line in lines if line.strip() and not line.lstrip().startswith("#")]


def fences() -> list[Fence]:
    """Every fence of every page, in order."""
    found = []
    for page in PAGES:
        name, text = str(page.relative_to(ROOT)), page.read_text("utf-8")
        for match in re.finditer(r"^```([^\n`]*)\n(.*?)^```$", text, re.M | re.S):
            language, *words = match[1].split() or [""]
            told = dict(word.split("=", 1) for word in words)
            line = text[: match.start()].count("\n") + 1
            by = told.get("by", OWN_TEST.get(name, "") if not told else "")
            found.append(Fence(name, line, language, by, told.get("skip", ""), match[2]))
    return found


def run_as_they_stand() -> list[Fence]:
    """The shell blocks that are run by the test of all pages."""
    return [fence for fence in fences() if fence.language == "sh" and not fence.by and not fence.skip]
