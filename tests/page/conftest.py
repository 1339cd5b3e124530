"""A headless Chromium for the page's tests, which `make test-page` installs, and ways to use the page.

What a page asks of other hosts, what its Content-Security-Policy refuses and what its script fails at make a test fail.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.page.scripted import Server, chat

SHOTS = Path(__file__).parents[2] / "build" / "screenshots"
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_NOT_FAULTS = ("Failed to load resource",)  # the browser's own line for an answer that is an error, or none


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not here: run `make test-page`")
    path = os.environ.get("EMBER_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.skip("no Chromium is here: install Debian's package `chromium`, or name one in EMBER_CHROMIUM")
    with playwright.sync_playwright() as running:
        chromium = running.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server(chat()) as started:
        yield started


Open = Callable[..., Any]


@pytest.fixture
def open_page(browser: Any) -> Iterator[Open]:
    """Opens a page in a browser window of its own: `open_page(url, width=375, dark=True)`."""
    contexts: list[Any] = []
    faults: list[str] = []

    def open_(url: str, width: int = 1280, height: int = 800, dark: bool = False, **options: Any) -> Any:
        scheme = "dark" if dark else "light"
        context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme, **options)
        context.set_default_timeout(30_000)
        contexts.append(context)
        page = context.new_page()
        host = urlsplit(url).netloc
        page.on("request", lambda each: _check_request(each.url, host, faults))
        page.on("pageerror", lambda error: faults.append(f"the script failed: {error}"))
        page.on(
            "console",
            lambda line: (
                faults.append(line.text) if line.type == "error" and not line.text.startswith(_NOT_FAULTS) else 0
            ),
        )
        page.goto(url)
        return page

    yield open_
    for context in contexts:
        context.close()
    assert not faults


def _check_request(url: str, host: str, faults: list[str]) -> None:
    parts = urlsplit(url)
    if parts.scheme != "data" and parts.netloc != host:
        faults.append(f"a request left for {url}")


def shot(page: Any, name: str) -> None:
    """A screenshot for a person to look at."""
    SHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SHOTS / f"{name}.png", animations="disabled")


def say(page: Any, text: str) -> None:
    page.locator("#prompt").fill(text)
    page.locator("#prompt").press("Enter")


def answer(page: Any) -> Any:
    """The last answer, when it has ended."""
    page.locator("#send").wait_for(state="visible")
    return page.locator(".answer").last
