"""Every route has a request in docs/api.md, and is answered as the page says."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from ember.front.api.routes import ROUTER, ROUTES
from tests.e2e.api_page import PAGE, Client, commands, parse
from tests.support.processes import Process, url_of

SERVE = ("-m", "ember", "serve", "demo", "--host", "127.0.0.1", "--port", "0")
SWITCHES = dict.fromkeys(
    ("ENABLE_SCALE_OUT", "ENABLE_TOKENIZER_INFO_ENDPOINT", "SERVER_DEV_MODE", "ENABLE_SLEEP_MODE"), "true"
)
POOLING = "\n## A model for pooling\n"


@pytest.fixture(scope="module")
def urls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """A server for each half of the page."""
    batches: Path = tmp_path_factory.mktemp("batches")
    with (
        Process(*SERVE, env={**SWITCHES, "BATCH_DIR": str(batches)}) as generating,
        Process(*SERVE, env={"RUNNER": "pooling"}) as pooling,
    ):
        yield [url_of(each, 120) for each in (generating, pooling)]


def test_each_request_is_answered_as_the_page_says(urls: list[str]) -> None:
    text, written = PAGE.read_text(), ""
    for url, part in zip(urls, text.partition(POOLING)[::2], strict=True):
        client, end = Client(url), 0
        for found in commands(part):
            answer = client.answer(parse(found[1], text))
            kind = "json" if answer.startswith(("{", "[")) else "text"
            written += f"{part[end : found.start()]}```sh\n{found[1]}\n```\n\n```{kind}\n{answer}\n```\n"
            end = found.end()
        written += part[end:] + (POOLING if url == urls[0] else "")
    if os.environ.get("EMBER_UPDATE"):
        PAGE.write_text(written)
    assert written == text


def test_each_route_is_on_the_page() -> None:
    text = PAGE.read_text()
    asked = [parse(found[1], text) for found in commands(text)]
    shown = {ROUTER.find(each.method, each.path.partition("?")[0]).route for each in asked}
    assert [route.path for route in ROUTES if route not in shown] == []
