"""The dashboard in a real browser, in front of the real API.

Every page a test opens is watched: an error on the console, an exception or a request to another origin fails the
test, and a screenshot of how it ended is left in ``artifacts/dashboard``.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from tests.conftest import ROOT
from tests.helpers.fleet_stack import FleetStack, fleet_stack
from tests.helpers.tools import needed

FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
ARTIFACTS = ROOT / "artifacts" / "dashboard"
AXE = ROOT / "tests" / "e2e" / "vendor" / "axe-core" / "axe.min.js"
TIMEOUT_MS = 30_000
"""Of everything that is waited for: the machine may be busy, and what is right stays right."""
expect.set_options(timeout=TIMEOUT_MS)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Headless Chromium: ``CHROMIUM=path`` names another than the one of the package."""
    chromium = needed(os.environ.get("CHROMIUM", "chromium"), "chromium")
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=chromium, headless=True, args=FLAGS)
        yield found
        found.close()


@pytest.fixture(scope="session")
def stack(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FleetStack]:
    """Six hosts with 48 GPUs, of which one is stale and one lost, that go on reporting while the tests run."""
    with fleet_stack(tmp_path_factory.mktemp("dashboard")) as running:
        ended = threading.Event()

        def play() -> None:
            while not ended.wait(1.0):
                running.play()

        player = threading.Thread(target=play, name="player", daemon=True)
        player.start()
        yield running
        ended.set()
        player.join(15)


class Watch:
    """What went wrong on the pages of one test. ``allowed``: texts of errors that the test provokes."""

    def __init__(self, origin: str) -> None:
        self.origin = origin
        self.allowed: list[str] = []
        self.found: list[str] = []

    def add(self, page: Page) -> None:
        page.on(
            "console",
            lambda m: (
                m.type in ("error", "warning") and self._tell(f"console {m.type}: {m.text} ({m.location.get('url')})")
            ),
        )
        page.on("pageerror", lambda error: self._tell(f"exception: {error}"))
        page.on("request", lambda request: self._request(request.url))

    def _request(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("data", "blob") and f"{parts.scheme}://{parts.netloc}" != self.origin:
            self._tell(f"request outside the origin: {url}")

    def _tell(self, text: str) -> None:
        self.found.append(text)

    def bad(self) -> list[str]:
        return [text for text in self.found if not any(allowed in text for allowed in self.allowed)]


@pytest.fixture
def watch(stack: FleetStack) -> Iterator[Watch]:
    watched = Watch(stack.url)
    yield watched
    assert not watched.bad()


@pytest.fixture
def context(browser: Browser, request: pytest.FixtureRequest) -> Iterator[BrowserContext]:
    """A fresh profile; ``@pytest.mark.parametrize("context", [{...}], indirect=True)`` gives it options."""
    options: dict[str, Any] = {
        "viewport": {"width": 1440, "height": 900},
        "color_scheme": "light",
        "timezone_id": "America/New_York",
    }
    made = browser.new_context(**{**options, **getattr(request, "param", {})})
    made.set_default_timeout(TIMEOUT_MS)
    yield made
    made.close()


@pytest.fixture
def page(context: BrowserContext, watch: Watch, request: pytest.FixtureRequest) -> Iterator[Page]:
    """A watched page; how it looks at the end is kept."""
    opened = context.new_page()
    watch.add(opened)
    yield opened
    ARTIFACTS.mkdir(parents=True, exist_ok=True)
    opened.screenshot(path=ARTIFACTS / f"{request.node.name.replace('/', '_')}.png")


@pytest.fixture
def go(page: Page, stack: FleetStack) -> Any:
    """Open a view of the dashboard by its fragment."""

    def open_view(fragment: str) -> Page:
        page.goto(f"{stack.url}/{fragment}")
        return page

    return open_view
