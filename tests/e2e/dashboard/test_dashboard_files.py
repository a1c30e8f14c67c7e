"""What is served, judged without a browser: size, origin, licences, no inline code."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

from tests.conftest import ROOT

STATIC = ROOT / "api" / "dashboard" / "static"
SIZE_MAX = 300_000
OWN = sorted(path for path in STATIC.rglob("*") if path.is_file() and "vendor" not in path.parts)


def test_scripts_styles_and_pages_stay_below_300_kb() -> None:
    size = sum(path.stat().st_size for path in STATIC.rglob("*") if path.suffix in (".js", ".css", ".html"))
    print(f"\nscripts, styles and pages: {size:,} bytes, uncompressed")
    assert size < SIZE_MAX


def test_the_page_has_no_inline_script_style_or_handler_and_loads_only_files_beside_it() -> None:
    inline: list[str] = []
    loaded: list[str] = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            found = dict(attrs)
            if tag == "style" or (tag == "script" and not found.get("src")):
                inline.append(tag)
            inline.extend(name for name in found if name == "style" or name.startswith("on"))
            if tag in ("script", "link"):
                loaded.append(found.get("src") or found.get("href") or "")

    Reader().feed((STATIC / "index.html").read_text())
    assert not inline
    assert loaded
    for name in loaded:
        assert name.startswith("static/"), f"{name}: only relative addresses survive a path prefix"
        assert (STATIC / name.removeprefix("static/")).is_file(), name


def test_every_import_names_a_file_that_is_there() -> None:
    for path in OWN:
        if path.suffix != ".js":
            continue
        for name in re.findall(r'^(?:import|export) .*?from "([^"]+)"', path.read_text(), re.M):
            assert name.startswith("."), f"{path.name}: {name}"
            assert (path.parent / name).resolve().is_file(), f"{path.name}: {name}"


def test_the_page_asks_for_every_module_at_once() -> None:
    told = set(re.findall(r'rel="modulepreload" href="static/([^"]+)"', (STATIC / "index.html").read_text()))
    modules = {str(path.relative_to(STATIC)) for path in (STATIC / "js").rglob("*.js")}
    assert told == modules - {"js/main.js", "js/before-paint.js"}


def test_no_file_of_ours_names_another_origin_or_evaluates_text() -> None:
    for path in OWN:
        text = path.read_text().replace("http://www.w3.org/2000/svg", "")
        assert not re.search(
            r"https?://|//cdn|\beval\(|new Function|innerHTML|insertAdjacentHTML|document\.write", text
        ), path.name


def test_what_is_vendored_comes_with_its_licence() -> None:
    for folder in [*(STATIC / "vendor").iterdir(), *(ROOT / "tests" / "e2e" / "vendor").iterdir()]:
        assert (folder / "LICENSE").is_file(), folder.name


def test_files_stay_small_enough_to_read() -> None:
    long = [
        f"{path.relative_to(STATIC)}: {lines}" for path in OWN if (lines := len(path.read_text().splitlines())) > 400
    ]
    assert not long, Path("files over 400 lines want splitting: " + ", ".join(long))
