"""Takes the README's pictures of the dashboard: ``python docs/images/take.py`` (Chromium is needed).

A simulated fleet of 24 hosts that reports once a second, in front of the real API, photographed after it was watched
for a while: ``fleet.png`` and, in dark, two GPUs of one job beside each other in ``gpu.png``.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import threading
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

from tests.helpers.fleet_stack import FleetStack, fleet_stack  # noqa: E402

HOSTS = 24
WATCHED_S = 60.0
SIZE = {"width": 1280, "height": 800}
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]


def main() -> None:
    """Start the fleet, watch it, take the pictures."""
    with tempfile.TemporaryDirectory() as directory, fleet_stack(Path(directory), HOSTS) as stack:
        ended = threading.Event()

        def play() -> None:
            while not ended.wait(1.0):
                stack.play()

        player = threading.Thread(target=play)
        player.start()
        try:
            ended.wait(WATCHED_S)
            with sync_playwright() as playwright:
                chromium = os.environ.get("CHROMIUM") or shutil.which("chromium")
                browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
                take(browser, stack)
        finally:
            ended.set()
            player.join()


def take(browser: Browser, stack: FleetStack) -> None:
    """Both pictures, once nothing loads any more."""
    one, other = stack.played.devices[9], stack.played.devices[10]
    pictures = {
        "fleet": ("light", "#/fleet"),
        "gpu": ("dark", f"#/gpus/{one.gpu_id}?range=15m&with={other.gpu_id}"),
    }
    for name, (scheme, fragment) in pictures.items():
        page = browser.new_page(viewport=SIZE, color_scheme=scheme)  # type: ignore[arg-type]
        page.goto(f"{stack.url}/{fragment}")
        page.locator("main .kpi").first.wait_for()
        page.wait_for_function("() => !document.querySelector('[aria-busy=true]') && document.querySelector('canvas')")
        page.wait_for_timeout(3_000)  # Some live values.
        page.screenshot(path=HERE / f"{name}.png")
        page.close()


if __name__ == "__main__":
    main()
