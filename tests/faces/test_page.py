"""The page at `/` over HTTP: who gets it, what lets a browser trust it, and that nothing in it leads to another host.

tests/page uses it in a browser.
"""

from __future__ import annotations

import ast
import asyncio
import gzip
import re
from base64 import b64encode
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from aiohttp.test_utils import TestClient

from ember.front.http.app import make_app
from ember.page.answer import prefers_page
from ember.page.document import FILES, SCRIPTS, STYLES, document
from ember.settings import load_settings
from tests.faces.fakes import FAKE_ROUTER, FakeWorker
from tests.page.scripted import Server, chat
from tests.queue_platform.calls import Calls, play
from tests.support.http_server import client_of
from tests.support.imports import imports, module_files

DOCS = Path(__file__).parents[2] / "docs" / "page.md"
BROWSER = {"Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8"}
JSON = {"Accept": "application/json, text/plain, */*"}


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        (BROWSER["Accept"], True),
        (JSON["Accept"], False),
        ("*/*", True),
        ("", False),
        ("text/*", True),
        ("text/html", True),
        ("application/json", False),
        ("application/json, text/html", True),
        ("application/json, text/html;q=0.5", False),
        ("TEXT/HTML;level=1 ; Q=0.3, application/*;q=0.2", True),
        ("text/html;q=0", False),
        ("*/*;q=0", False),
        ("text/html;q=much", False),
        ("image/png", False),
    ],
)
def test_who_gets_the_page(accept: str, expected: bool) -> None:
    assert prefers_page(accept) is expected


def with_server(scenario: Callable[[TestClient[Any, Any]], Any], boot: float = 0.0, **settings: Any) -> None:
    async def run() -> None:
        worker = FakeWorker(boot)
        await worker.start()
        app = make_app(load_settings({"model_name": "m", **settings}), worker, FAKE_ROUTER)
        async with client_of(app) as client:
            await scenario(client)
        worker.booting.cancel()

    asyncio.run(run())


def test_the_page_of_a_worker() -> None:
    async def scenario(client: TestClient[Any, Any]) -> None:
        answer = await client.get("/", headers=BROWSER)
        assert (answer.status, answer.content_type, answer.charset) == (200, "text/html", "utf-8")
        text = await answer.text()
        assert text == document("worker").text.decode() and 'data-server="worker"' in text
        assert answer.headers["X-Content-Type-Options"] == "nosniff" and answer.headers["X-Frame-Options"] == "DENY"
        assert answer.headers["Referrer-Policy"] == "no-referrer" and "Accept" in answer.headers["Vary"]
        policy = dict(part.split(" ", 1) for part in answer.headers["Content-Security-Policy"].split("; "))
        assert policy["default-src"] == policy["frame-ancestors"] == policy["form-action"] == "'none'"
        assert policy["connect-src"] == "'self'" and "unsafe" not in str(policy)
        for tag in ("script", "style"):
            (inside,) = re.findall(f"<{tag}[^>]*>(.*?)</{tag}>", text, re.DOTALL)
            assert policy[f"{tag}-src"] == f"'sha256-{b64encode(sha256(inside.encode()).digest()).decode()}'"
        tag = answer.headers["ETag"]
        for known, status in ((tag, 304), (f'"x", {tag.removeprefix("W/")}', 304), ("*", 304), ('"x"', 200)):
            again = await client.get("/", headers={**BROWSER, "If-None-Match": known})
            assert (again.status, again.headers["ETag"]) == (status, tag) and again.headers["Content-Security-Policy"]
            assert bool(await again.read()) is (status == 200)
        async with client.session.get(client.make_url("/"), headers=BROWSER, auto_decompress=False) as packed:
            assert packed.headers["Content-Encoding"] == "gzip"
            assert gzip.decompress(await packed.read()).decode() == text
        plain = await client.get("/", headers={**BROWSER, "Accept-Encoding": "gzip;q=0, identity"})
        assert "Content-Encoding" not in plain.headers and await plain.text() == text
        for method, headers in (("GET", JSON), ("HEAD", JSON), ("PUT", BROWSER)):
            other = await client.request(method, "/", headers=headers)
            assert (other.status, other.headers["Allow"]) == (405, "POST")

    with_server(scenario)

    async def while_the_model_loads(client: TestClient[Any, Any]) -> None:
        assert (await client.get("/health", headers=BROWSER)).status == 503
        assert (await client.get("/", headers=BROWSER)).status == 200

    with_server(while_the_model_loads, boot=60)


def test_a_key_a_root_path_and_no_page() -> None:
    async def behind_a_proxy(client: TestClient[Any, Any]) -> None:
        for path, status in (("/", 200), ("/llm", 200), ("/llm/", 200), ("/llm2", 401), ("/llm/v1/models", 401)):
            whole, head = [await client.request(each, path, headers=BROWSER) for each in ("GET", "HEAD")]
            assert whole.status == head.status == status, path
            assert head.headers["Content-Length"] == whole.headers["Content-Length"] and not await head.read()

    with_server(behind_a_proxy, api_key="one", root_path="/llm")

    async def without(client: TestClient[Any, Any]) -> None:
        for method in ("GET", "HEAD"):
            assert (await client.request(method, "/", headers=BROWSER)).status == 405

    with_server(without, page=False)


def test_the_page_and_the_jobs_of_a_platform() -> None:
    async def scenario(calls: Calls) -> None:
        root = calls.platform.url + "/"
        for headers, status in (
            ({**BROWSER, "Sec-Fetch-Site": "cross-site", "Host": "any.example"}, 200),  # a link somewhere led here
            (JSON, 401),
            ({**JSON, "Authorization": "Bearer one"}, 404),
        ):
            async with calls.session.get(root, headers=headers) as answer:
                assert answer.status == status
                assert ('data-server="platform"' in await answer.text()) is (status == 200)
            async with calls.session.head(root, headers=headers) as head:
                assert (head.status, await head.read()) == (status, b"")
        key = {"Authorization": "Bearer one"}
        for body in ({"input": {"openai_route": "/v1/models"}}, {"input": 1}):
            await calls.client("POST", "/run", body, **key)
        status, body = await calls.client("GET", "/jobs", **key)
        assert status == 200
        assert [(job["status"], job["route"]) for job in body["jobs"]] == [
            ("IN_QUEUE", None),
            ("IN_QUEUE", "/v1/models"),
        ]
        assert body["jobs"][0]["created"] >= body["jobs"][1]["created"]
        assert len((await calls.client("GET", "/jobs?limit=1", **key))[1]["jobs"]) == 1
        assert (await calls.client("GET", "/jobs?limit=0", **key))[0] == 400
        assert (await calls.client("GET", "/jobs"))[0] == 401

    play(scenario, keys=("one",))

    async def without(calls: Calls) -> None:
        async with calls.session.get(calls.platform.url + "/", headers=BROWSER) as answer:
            assert answer.status == 404

    play(without, page=False)


def test_the_document_leads_to_no_other_host_and_makes_no_markup() -> None:
    assert {path.name for path in FILES.iterdir()} == {*SCRIPTS, *STYLES, "page.html"}
    text = document("worker").text.decode()
    found = set(re.findall(r"(?:https?:)?//[\w.-]+\.[a-z]{2,}", text))
    assert found == {"http://www.w3.org"}  # the name of a namespace
    for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function", "srcdoc"):
        assert word not in text
    for word in ("localStorage", "sessionStorage", "document.cookie", "indexedDB", "@import"):
        assert word not in text
    assert text.count("</script>") == text.count("</style>") == 1


def test_nothing_of_the_page_is_loaded_with_the_platform() -> None:
    """tests/test_walls.py says the same of the front."""
    for module, imported in imports(module_files()).items():
        if "ember.page.answer" in imported and not module.startswith("ember.page"):
            tree = ast.parse(module_files()[module].read_text())
            assert not [
                each for each in tree.body if isinstance(each, ast.ImportFrom) and "ember.page" in str(each.module)
            ]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    deployment = chat()
    deployment.services.settings = load_settings({"model_name": "demo"})
    with Server(deployment) as started:
        yield started


def examples() -> list[tuple[str, str]]:
    """The Python examples of docs/page.md, each with the output that follows it."""
    blocks = re.findall(r"^```(\w+)\n(.*?)^```", DOCS.read_text(), re.MULTILINE | re.DOTALL)
    after = [*blocks[1:], ("", "")]
    return [
        (code, output if kind == "text" else "")
        for (name, code), (kind, output) in zip(blocks, after, strict=True)
        if name == "python"
    ]


@pytest.mark.parametrize(("code", "output"), examples())
def test_examples(code: str, output: str, server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    exec(code.replace("http://localhost:8000", server.url), {})
    assert capsys.readouterr().out == (output or "Hello from the tiny model.")
