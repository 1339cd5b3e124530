"""The other views of the page in a headless Chromium: engine and boot, pooling models, and the platform's queue."""

from __future__ import annotations

import json
import re
import urllib.request
from typing import Any

import pytest

from tests.page.conftest import Open, shot
from tests.page.scripted import Server, pooler


@pytest.mark.parametrize("width", [1280, 375])
def test_the_engine_and_its_boot(open_page: Open, server: Server, width: int) -> None:
    page = open_page(f"{server.url}/#engine", width=width, dark=width < 1000)
    page.get_by_text("of 64, 16 tokens each").wait_for()
    page.locator(".tile").filter(has_text="Tokens/s").locator("dd").first.filter(has_not_text="–").wait_for()
    assert page.locator(".marks").inner_text().split("\n")[0].startswith("1.42 s")
    rows = page.locator(".boot tbody tr")
    assert rows.count() == 12
    assert "engine torch" in " ".join(rows.nth(5).locator("th").inner_text().split())
    starts, ends = page.locator(".boot tbody i").evaluate_all(
        "(all) => ['left', 'right'].map((side) => all.map((each) => each.getBoundingClientRect()[side]))"
    )
    assert starts == sorted(starts) and len(starts) == 11  # one phase came after the boot
    assert all(start < end for start, end in zip(starts, ends, strict=True))
    assert page.evaluate("document.documentElement.scrollWidth") == width
    shot(page, f"engine-{width}")


def test_similarities_of_an_embedder(open_page: Open) -> None:
    with Server(pooler("embed")) as server:
        page = open_page(server.url)
        page.get_by_label("Texts").fill("one\ntwo\nשלוש")
        page.get_by_role("button", name="Compute").click()
        cells = page.locator(".heat").all_inner_texts()
        page.get_by_text("3 texts · 8 dimensions").wait_for()
        assert len(page.locator(".heat").all()) == 9, cells
        shot(page, "similarity")
        page.get_by_role("button", name="Ranking").click()
        page.get_by_role("button", name="Compute").click()
        ranked = page.get_by_role("list", name="Documents by relevance").get_by_role("listitem")
        ranked.nth(2).wait_for()
        assert ranked.count() == 3
        page.get_by_role("button", name="As code").click()
        assert "/rerank" in page.locator("#code-text pre").inner_text()


def test_classes_of_a_classifier(open_page: Open) -> None:
    with Server(pooler("classify")) as server:
        page = open_page(server.url, width=375, height=740)
        page.get_by_role("button", name="Compute").click()
        first = page.get_by_role("list", name="Classes").locator("> li").first
        assert "I loved every minute of it." in first.inner_text()
        shot(page, "classes")
        page.get_by_label("Texts").fill("")
        page.get_by_role("button", name="Compute").click()
        assert "input" in page.locator(".error-text").inner_text()  # as the server says it


def test_tokens_of_a_model_that_has_no_vector_of_a_text(open_page: Open) -> None:
    with Server(pooler("token_embed")) as server:
        page = open_page(server.url)
        page.get_by_role("button", name="Compute").click()
        page.get_by_text("8 values each").wait_for()
        assert page.locator("#pooling-result pre").inner_text().startswith("[")


def call(url: str, body: Any = None, **headers: str) -> Any:
    data = json.dumps(body).encode() if body is not None else None
    asked = urllib.request.Request(url, data, {"Content-Type": "application/json", **headers})
    with urllib.request.urlopen(asked, timeout=30) as response:
        return json.loads(response.read() or b"null")


def test_the_queue_of_a_platform(open_page: Open) -> None:
    with Server() as server:
        page = open_page(f"{server.url}/#queue")
        page.get_by_text("No worker takes jobs now").wait_for()
        assert f"--platform {server.url}" in page.locator("#queue-hint pre").inner_text()
        page.get_by_role("button", name="Submit").click()
        page.get_by_text("Submitted as").wait_for()
        page.locator("#submit-input").fill('{"input": 1, "policy": {"ttl": 1}}')
        page.get_by_role("button", name="Submit").click()
        page.get_by_text("policy.ttl must be between").wait_for()
        page.locator("#submit-input").fill("{")
        page.get_by_role("button", name="Submit").click()
        page.get_by_text("It is not valid JSON").wait_for()

        second = call(f"{server.url}/run", {"input": {"openai_route": "/v1/chat/completions"}})["id"]
        rows = page.locator("#jobs tr")
        rows.nth(1).wait_for()
        assert "/v1/chat/completions" in rows.nth(0).inner_text() and "in the queue" in rows.nth(1).inner_text()
        taken = call(f"{server.url}/v2/x/job-take/w1?gpu=x")["id"]  # the page asks this worker for models from now on
        first, newer = rows.filter(has_text=taken[:13]), rows.filter(has_text=second[:13])
        first.get_by_text("in progress").wait_for()
        assert "w1" in first.inner_text()
        page.get_by_role("button", name=f"Cancel {second}").click()
        newer.get_by_text("cancelled").wait_for()
        call(f"{server.url}/v2/x/job-done/w1/{taken}?gpu=x", {"error": "out of luck"})
        first.get_by_text("failed").wait_for()
        shot(page, "queue")
        first.get_by_role("button", name=taken[:13], exact=True).click()
        assert json.loads(page.locator("#job-text pre").inner_text())["error"] == "out of luck"
        page.keyboard.press("Escape")
        page.get_by_role("button", name=f"Retry {taken}").click()
        first.get_by_text("in the queue").wait_for()
        page.set_viewport_size({"width": 375, "height": 740})
        assert page.evaluate("document.documentElement.scrollWidth") == 375
        shot(page, "queue-phone")


def test_a_platform_with_a_key(open_page: Open) -> None:
    with Server(keys=["one"]) as server:
        page = open_page(f"{server.url}/#queue")
        page.get_by_role("button", name="Cancel", exact=True).click()
        page.get_by_role("status").filter(has_text="Needs a key").wait_for()
        page.get_by_role("button", name="Enter the key").click()
        page.get_by_label("Key", exact=True).fill("one")
        page.get_by_role("button", name="Use it").click()
        page.get_by_text("No jobs yet.").wait_for()
        page.locator("#state", has_text=re.compile("^Ready$")).wait_for()
