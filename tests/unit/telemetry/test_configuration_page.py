"""The page of every option, and what it is made from."""

from __future__ import annotations

import configparser
from pathlib import Path

from telemetry import configuration_page
from telemetry.configuration_page import PARTS, command_lines, page
from telemetry.options import CommandLine, Option


def test_the_page_of_options_is_the_code_as_it_is(root: Path) -> None:
    assert (root / "docs" / "configuration.md").read_text() == page(), "run: make docs"


def test_every_option_of_every_command_is_told_with_its_variables() -> None:
    for line in command_lines():
        text = "\n".join(configuration_page.section(line))
        for command in line.commands or [""]:
            for option in line.options_of(command):
                assert f"| `--{option.flag}` |" in text, f"{line.prog} {command}"
                assert all(f"`{variable}`" in text for variable in option.variables(line.prefix))


def test_every_installed_program_has_its_section(root: Path) -> None:
    config = configparser.ConfigParser()
    config.read(root / "setup.cfg")
    scripts = config["options.entry_points"]["console_scripts"].split("\n")
    modules = {script.partition("=")[2].strip().partition(":")[0] for script in scripts if script}
    assert modules <= set(PARTS)


def test_a_default_that_is_secret_is_not_told() -> None:
    line = CommandLine("p", "P", "", [Option("password", "of a user", "hunter2", secret=True, env="SHARED")])
    text = "\n".join(configuration_page.section(line))
    assert "hunter2" not in text
    assert "`P_PASSWORD`, `P_PASSWORD_FILE`, `SHARED`" in text
