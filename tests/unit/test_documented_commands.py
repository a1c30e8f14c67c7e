"""Every fenced command is run by a test or says why not, and is a command that exists."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from telemetry.options import UsageError
from tests.helpers.documents import PAGES, ROOT, Fence, fences, run_as_they_stand
from zmqbroker.admin.parsing import parse

FENCES = fences()
SHELL = [fence for fence in FENCES if fence.language == "sh"]
PROGRAMS = r"(zmqbroker|telemetry-\w+|curl|make|python|pip|docker|kubectl|systemctl|helm|git)\s"


def test_there_are_commands_that_are_run_as_they_stand() -> None:
    assert {fence.page for fence in run_as_they_stand()} >= {"docs/operations.md"}
    assert len(SHELL) > 20


@pytest.mark.parametrize("fence", FENCES, ids=lambda fence: fence.title)
def test_a_fence_with_commands_says_how_it_is_kept_true(fence: Fence) -> None:
    if fence.language == "":
        assert not re.search(rf"^\$?\s*{PROGRAMS}", fence.text, re.M), (
            f"{fence.title} has commands: begin it with ```sh, ```sh by=tests/… or ```sh skip=reason"
        )
    if fence.by:
        assert (ROOT / fence.by).exists(), f"{fence.title} names a test that is not there: {fence.by}"
    assert not (fence.by and fence.skip)


def shell_words(line: str) -> list[str]:
    """The words of a command line up to a pipe or the like; comments cut."""
    words = []
    for word in shlex.split(line, comments=True):
        if word in ("|", "||", "&&", "&", ">"):
            break
        words.append(word)
    return words


def admin_commands() -> list[tuple[str, list[str]]]:
    """Each ``zmqbroker admin …`` of a fence, and each in running text."""
    found = []
    for fence in SHELL:
        for line in fence.commands:
            words = shell_words(line)
            if words[:2] == ["zmqbroker", "admin"]:
                found.append((f"{fence.title}: {line.strip()}", words[2:]))
    for page in PAGES:
        for text in re.findall(r"`zmqbroker\s+admin\s+([^`…]+)`", page.read_text("utf-8")):
            if not text.startswith("-"):
                found.append((f"{page.name}: {' '.join(text.split())}", shlex.split(text)))
    return found


def test_every_command_of_the_operators_shell_that_is_told_can_be_parsed() -> None:
    told = admin_commands()
    assert len(told) > 30
    wrong = []
    for title, words in told:
        # In running text a command may be named without its arguments; a name that is none is wrong all the same.
        try:
            parse(words)
        except UsageError as error:
            if "the following arguments are required" not in str(error) or "-" in " ".join(words):
                wrong.append(f"{title}: {error}")
    assert not wrong, "\n".join(wrong)


def test_every_test_that_is_named_exists() -> None:
    names = set()
    for path in (ROOT / "tests").rglob("test_*.py"):
        names |= set(re.findall(r"def (test_\w+)", path.read_text("utf-8")))
    for page in PAGES:
        told = set(re.findall(r"`(test_\w{12,})`", page.read_text("utf-8")))
        assert told <= names, f"{page.name} names tests that are not there: {sorted(told - names)}"


def test_the_runbook_has_a_section_for_every_alert() -> None:
    rules = (ROOT / "deploy" / "prometheus" / "pipeline.rules.yaml").read_text("utf-8")
    page = Path(ROOT / "docs" / "operations.md").read_text("utf-8")
    alerts = re.findall(r"- alert: (\w+)", rules)
    assert len(alerts) > 15
    assert [alert for alert in alerts if f"`{alert}`" not in page] == []
    headings = set(re.findall(r"^## (.+)$", page, re.M))
    assert set(re.findall(r"docs/operations\.md, (\w+)", rules)) <= headings
