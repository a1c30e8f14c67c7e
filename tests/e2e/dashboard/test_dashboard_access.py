"""Where it is served: behind a path prefix, with keys, without server-sent events, with an API that lacks things."""

from __future__ import annotations

import http.client
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import BrowserContext, Page, expect

from api.auth import new_key
from tests.e2e.dashboard.conftest import Watch
from tests.helpers.fleet_stack import FleetStack

PREFIX = "/team/gpus"


@pytest.fixture(scope="module")
def prefixed(stack: FleetStack) -> Iterator[str]:
    """A reverse proxy that serves the API below a path, as an ingress would; the address with the prefix."""
    target = urlsplit(stack.url).netloc

    class Proxy(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.0"

        def do_GET(self) -> None:
            if not self.path.startswith(PREFIX + "/"):
                self.send_error(404)
                return
            upstream = http.client.HTTPConnection(target, timeout=30)
            upstream.request("GET", self.path[len(PREFIX) :], headers={"Accept": self.headers.get("Accept", "*/*")})
            answer = upstream.getresponse()
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in ("transfer-encoding", "connection"):
                    self.send_header(name, value)
            self.end_headers()
            try:
                while piece := answer.read1(65536):
                    self.wfile.write(piece)
                    self.wfile.flush()
            except OSError:
                pass  # The browser left.
            finally:
                upstream.close()

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}{PREFIX}"
    server.shutdown()
    server.server_close()


def open_watched(context: BrowserContext, url: str) -> tuple[Page, Watch]:
    parts = urlsplit(url)
    watch = Watch(f"{parts.scheme}://{parts.netloc}")
    page = context.new_page()
    watch.add(page)
    page.goto(url)
    return page, watch


def test_everything_works_behind_a_path_prefix(context: BrowserContext, prefixed: str) -> None:
    page, watch = open_watched(context, f"{prefixed}/#/fleet")
    expect(page.get_by_role("img", name=re.compile("Heatmap of"))).to_be_visible()
    expect(page.locator(".live-button")).to_have_attribute("data-state", "live")
    page.get_by_role("link", name="Pipeline").click()
    expect(page.locator(".stage")).to_have_count(5)
    assert not watch.bad()


def test_a_key_is_asked_for_once_and_remembered_for_the_tab(
    context: BrowserContext, stack: FleetStack, tmp_path: Path
) -> None:
    key, line = new_key("operator", "read")
    (tmp_path / "keys").write_text(line + "\n")
    url = stack.start_api(
        "--keys-file", str(tmp_path / "keys"), "--connect", stack.broker_url, "--broker-http", "http://127.0.0.1:9"
    )
    page, watch = open_watched(context, f"{url}/#/fleet")
    watch.allowed.append("401")
    dialog = page.get_by_role("dialog")
    expect(dialog).to_have_count(1)
    dialog.get_by_label("API key", exact=True).fill("wrong")
    dialog.get_by_role("button", name="Use key").click()
    expect(dialog).to_contain_text("That key was refused")
    dialog.get_by_label("API key", exact=True).fill(key)
    dialog.get_by_role("button", name="Use key").click()
    expect(page.get_by_role("img", name=re.compile("Heatmap of"))).to_be_visible()
    expect(page.locator(".live-button")).to_have_attribute("data-state", "live")
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.reload()
    expect(page.get_by_role("img", name=re.compile("Heatmap of"))).to_be_visible()
    expect(dialog).to_have_count(0)
    assert not [url for url in asked if key in url], "a key belongs into a header, never into an address"
    assert not watch.bad()


def test_where_streams_are_blocked_the_page_polls(go: Any, page: Page, watch: Watch) -> None:
    watch.allowed.append("403")
    page.route("**/api/v1/stream*", lambda route: route.fulfill(status=403, body="blocked by a proxy"))
    go("#/fleet")
    expect(page.locator(".live-button")).to_have_attribute("data-state", "polling")
    with page.expect_response("**/api/v1/fleet*"):
        pass


def test_an_api_that_lacks_an_endpoint_costs_one_panel_not_the_page(go: Any, page: Page, watch: Watch) -> None:
    watch.allowed.append("404")
    missing = {
        "status": 404,
        "title": "Not Found",
        "detail": "nothing at /api/v1/alerts; /swagger/ shows what there is",
    }
    page.route("**/api/v1/alerts*", lambda route: route.fulfill(status=404, json=missing))
    go("#/fleet")
    expect(page.get_by_role("img", name=re.compile("Heatmap of"))).to_be_visible()
    expect(page.locator(".panel", has=page.get_by_role("heading", name="Alerts")).locator(".state")).to_contain_text(
        "this API does not offer it"
    )


def test_an_empty_fleet_says_what_to_do_and_a_broken_one_offers_to_try_again(go: Any, page: Page, watch: Watch) -> None:
    watch.allowed.append("500")
    zeros = dict.fromkeys(("gpus", "hosts", "reporting", "stale", "lost", "allocated", "active", "idle_allocated"), 0)
    empty = {
        "metric_name": "DCGM_FI_DEV_GPU_UTIL",
        "unit": "%",
        "timestamp": "2026-01-01T00:00:00Z",
        "totals": zeros,
        "hosts": [],
    }
    answers = [
        {"status": 500, "json": {"title": "oops", "detail": "the store is away"}},
        {"status": 200, "json": empty},
    ]
    page.route("**/api/v1/fleet*", lambda route: route.fulfill(**answers[0 if len(answers) > 1 else -1]))
    go("#/fleet")
    expect(page.locator("main .state.error").first).to_contain_text("the store is away")
    answers.pop(0)
    page.get_by_role("button", name="Try again").first.click()
    expect(page.locator("main .state.empty").first).to_contain_text("Start a streamer, or upload a file")
