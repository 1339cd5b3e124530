"""The chat of the page in a headless Chromium: streams, what models write, errors, and a server that is lost."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.page.conftest import Open, answer, say, shot
from tests.page.scripted import LONG, SLOW, Server, chat

DOCS = Path(__file__).parents[2] / "docs" / "page.md"
TOOLS = json.dumps(
    [{"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}]
)


def test_an_answer_is_streamed_and_can_be_stopped(open_page: Open, server: Server) -> None:
    page = open_page(server.url)
    page.get_by_text("Ready").wait_for()
    say(page, "slow please")
    page.locator(".answer .body p").filter(has_text="word3").wait_for()
    assert page.locator(".answer").get_attribute("aria-busy") == "true"
    page.get_by_role("button", name="Stop").click()
    text = answer(page).inner_text()
    assert text.startswith("word0 word1") and "Stopped" in text and len(text) < len(SLOW) / 2
    assert server.deployment is not None
    deadline = time.monotonic() + 20
    while not server.deployment.engine.generations[-1].is_closed:  # the server stopped too
        assert time.monotonic() < deadline
        time.sleep(0.02)
    say(page, "hello")
    assert "Hello from the tiny model." in answer(page).inner_text()
    sent = server.deployment.prompt_text
    assert "<|user|>slow please<|assistant|>word0" in sent and sent.endswith("<|user|>hello<|assistant|>")


def test_reasoning_is_folded(open_page: Open, server: Server) -> None:
    page = open_page(server.url)
    say(page, "think first")
    fold = answer(page).locator("details")
    assert not fold.get_by_text("It is known.").is_visible()
    fold.locator("summary").click()
    assert "It is known." in fold.inner_text() and "Reasoning, " in fold.inner_text()
    assert answer(page).locator(".body strong").inner_text() == "42"
    shot(page, "reasoning")


def test_a_tool_is_called_and_its_result_sent(open_page: Open, server: Server) -> None:
    page = open_page(server.url)
    page.get_by_label("Tools, as JSON").fill(TOOLS)
    say(page, "use a tool")
    card = answer(page).get_by_role("region", name="Tool call")
    assert card.locator(".call-name").inner_text() == "add"
    assert json.loads(card.locator("pre").inner_text()) == {"a": 1, "b": 2}
    page.get_by_label("Result of add").fill("3")
    shot(page, "tool")
    page.get_by_role("button", name="Send the result").click()
    page.locator(".answer").get_by_text("The sum is 3.").wait_for()
    assert server.deployment is not None and "<|tool|>3" in server.deployment.prompt_text


def test_the_settings_are_sent_and_json_is_shown(open_page: Open, server: Server) -> None:
    page = open_page(server.url)
    for label, value in (
        ("Temperature", "0.3"),
        ("Top k", "7"),
        ("Max tokens", "90"),
        ("Seed", "11"),
        ("Top p", "0.9"),
    ):
        page.get_by_label(label, exact=True).fill(value)
    page.get_by_label("Stop strings").fill("END\n###")
    page.get_by_label("System prompt").fill("Be brief.")
    page.get_by_label("Further fields").fill('{"min_p": 0.1}')
    page.get_by_label("Answer as").select_option("json_schema")
    page.get_by_label("Schema", exact=True).fill('{"type": "object"}')
    with page.expect_request("**/v1/chat/completions") as sent:
        say(page, "json please")
    body = sent.value.post_data_json
    expected = {"temperature": 0.3, "top_k": 7, "max_tokens": 90, "seed": 11, "top_p": 0.9, "min_p": 0.1}
    assert expected.items() <= body.items() and body["stop"] == ["END", "###"]
    assert body["messages"] == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "json please"}]
    assert body["response_format"]["json_schema"]["schema"] == {"type": "object"}
    assert json.loads(answer(page).locator("pre").inner_text()) == {"name": "Ember", "parts": [1, 2, 3], "ok": True}

    page.get_by_label("Temperature").fill("hot")
    say(page, "hello")
    assert "must be a number, not hot" in page.locator(".fault").inner_text()
    page.get_by_label("Temperature").fill("9")
    say(page, "hello")
    page.get_by_text("temperature must be").wait_for()  # as the server says it
    page.get_by_role("button", name="Reset").click()
    page.locator(".error").get_by_role("button", name="Ask again").click()
    assert "Hello from the tiny model." in answer(page).inner_text()
    assert not page.locator(".error").count()


def test_an_error_within_a_stream_is_shown_as_the_server_said_it(open_page: Open, server: Server) -> None:
    page = open_page(server.url)
    say(page, "fail now")
    page.get_by_text("The engine stopped: out of pages").wait_for()
    assert "This begins" in answer(page).inner_text() and "Incomplete" in answer(page).inner_text()
    assert page.get_by_role("alert").filter(has_text="Error 500").is_visible()
    shot(page, "error")


@pytest.mark.parametrize("word", ["slow please", "hello"], ids=["in an answer", "before an answer"])
def test_a_lost_server_is_told_and_asked_again(open_page: Open, word: str) -> None:
    with Server(chat()) as server:
        page = open_page(server.url)
        page.get_by_text("Ready").wait_for()
        if "slow" in word:
            say(page, word)
            page.locator(".answer .body p").filter(has_text="word3").wait_for()
            server.stop()
        else:
            server.stop()
            say(page, word)
        page.get_by_role("alert").filter(has_text="No answer from").wait_for()
        if "slow" in word:
            assert "Incomplete" in answer(page).inner_text()
            shot(page, "lost")
        server.start()
        page.get_by_text("Ready").wait_for()
        page.locator("#lost").wait_for(state="hidden")
        if "slow" in word:  # what was there stays, and the person decides
            page.locator(".error").get_by_role("button", name="Ask again").click()
            page.locator(".answer .body p").filter(has_text="word3").wait_for()
        else:  # the question was never heard: it is sent once more
            page.locator(".answer").get_by_text("Hello from the tiny model.").wait_for()


def test_a_long_answer_stays_fast(open_page: Open, server: Server) -> None:
    page = open_page(server.url)
    page.evaluate(
        "() => { window.redrawn = []; new MutationObserver((all) => window.redrawn.push(all.reduce((sum, each) =>"
        " sum + (each.target.matches('.body') ? each.removedNodes.length : 0), 0)))"
        ".observe(document.getElementById('thread'), { childList: true, subtree: true }); }"
    )
    say(page, "long please")
    last = answer(page)
    assert last.locator(".body > *").count() == LONG.count("## Part") * 4
    assert last.locator("h3").last.inner_text() == "Part 399"
    text = last.locator(".body").evaluate("(body) => body.textContent")
    assert len(text) > 40_000
    thread = page.locator("#thread")
    assert thread.evaluate("(each) => each.scrollHeight - each.scrollTop - each.clientHeight") < 100  # it follows
    redrawn = [each for each in page.evaluate("window.redrawn") if each]  # blocks, at each change
    assert redrawn and max(redrawn) < 10  # only those at the end, of the 1600


def test_markdown_is_shown_and_code_copied(open_page: Open, server: Server) -> None:
    page = open_page(server.url, permissions=["clipboard-read", "clipboard-write"])
    say(page, "markdown please")
    body = answer(page).locator(".body")
    assert body.locator("h2").inner_text() == "A heading"
    assert [body.locator(each).first.inner_text() for each in ("em", "strong", "s", "p code")] == [
        *("emphasis", "strong words", "old ones", "code")
    ]
    assert body.locator("a").get_attribute("href") == "https://example.com/a_b_(c)"
    assert body.locator("ul > li").all_inner_texts()[2] == "three"
    assert body.locator("ul > li > ol > li").all_inner_texts() == ["inner", "more"]
    assert body.locator("blockquote").inner_text() == "A quote, and 2 * 3 * 4."
    assert body.locator("tbody tr").nth(1).locator("td").all_inner_texts() == ["Saturn", "274"]
    body.get_by_role("button", name="Copy").click()
    page.get_by_role("button", name="Copied").wait_for()
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied == "def area(radius):\n    return 3.14159 * radius ** 2  # <b>not markup</b>"
    shot(page, "markdown")


def test_what_a_model_writes_never_becomes_markup(open_page: Open, server: Server) -> None:
    page = open_page(server.url)
    page.locator("#model-name").filter(has_text="tiny-ember").wait_for()
    title = page.title()
    say(page, "hostile please")
    body = answer(page).locator(".body")
    assert '<script>document.title = "broken"</script>' in body.inner_text()
    assert not body.locator("script, img, style, iframe").count()
    targets = body.locator("a").evaluate_all("(all) => all.map((each) => [each.protocol, each.rel, each.target])")
    assert targets == [["https:", "noopener noreferrer nofollow", "_blank"]] * 3
    assert page.title() == title and page.locator("header").is_visible()


def test_right_to_left_text(open_page: Open, server: Server) -> None:
    page = open_page(server.url, width=375, height=740)
    say(page, "hebrew please")
    body = answer(page).locator(".body")
    directions = body.evaluate("(each) => [...each.children].map((child) => getComputedStyle(child).direction)")
    assert directions == ["rtl", "rtl", "ltr", "ltr"]
    assert body.locator("pre").evaluate("(each) => getComputedStyle(each).direction") == "ltr"
    shot(page, "right-to-left")


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_a_phone_and_both_colour_schemes(open_page: Open, server: Server, dark: bool) -> None:
    page = open_page(server.url, width=375, height=740, dark=dark)
    page.get_by_text("Ready").wait_for()
    shot(page, f"phone-{'dark' if dark else 'light'}")
    for word in ("markdown please", "tool"):
        say(page, word)
        answer(page)
    assert page.evaluate("document.documentElement.scrollWidth") == 375
    outside = "(all) => all.filter((each) => each.offsetParent && each.getBoundingClientRect().right > 376).length"
    assert page.locator("button, textarea, a").evaluate_all(outside) == 0
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("Temperature").fill("0.5")
    shot(page, f"phone-settings-{'dark' if dark else 'light'}")
    page.keyboard.press("Escape")
    assert not page.get_by_label("Temperature").is_visible()
    ink, paper = page.evaluate(
        "['color', 'backgroundColor'].map((name) => getComputedStyle(document.body)[name]"
        ".match(/\\d+/g).slice(0, 3).reduce((sum, each) => sum + Number(each), 0))"
    )
    assert (ink > paper) is dark


def test_the_keyboard_is_enough(open_page: Open, server: Server) -> None:
    page = open_page(server.url, width=1280)
    page.get_by_text("Ready").wait_for()
    assert page.evaluate("document.activeElement.id") == "prompt"
    for _ in range(20):
        page.keyboard.press("Shift+Tab")
        if page.evaluate("document.activeElement.id") == "skip":
            break
    page.keyboard.press("Enter")
    reached = []
    for _ in range(40):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id || document.activeElement.className"))
        outline = page.evaluate(
            "[document.activeElement, document.activeElement.closest('.composer') ?? document.activeElement]"
            ".map((each) => getComputedStyle(each).outlineStyle + getComputedStyle(each).borderColor).join()"
        )
        assert "solid" in outline or "176, 58, 4" in outline, reached
        if reached[-1] == "prompt":
            break
    page.keyboard.type("slow please")
    page.keyboard.press("Shift+Enter")
    page.keyboard.press("Enter")
    page.locator(".answer .body p").filter(has_text="word3").wait_for()
    page.keyboard.press("Escape")
    assert "Stopped" in answer(page).inner_text()
    assert "Stopped" in page.locator("#said").inner_text()
    unnamed = "(all) => all.filter((each) => each.offsetParent && !each.labels?.length).map((each) => each.id)"
    assert page.locator("input, textarea, select").evaluate_all(unnamed) == []


def test_under_a_path_of_a_proxy(open_page: Open) -> None:
    with Server(chat(root_path="/llm")) as server:
        page = open_page(f"{server.url}/llm/")
        page.get_by_label("Further fields").fill('{"n": 2}')
        with page.expect_request("**/llm/v1/chat/completions"):
            say(page, "hello")
        text = answer(page).inner_text()
        assert text.startswith("Hello from the tiny model.") and "the first of 2 choices" in text
        assert text.count("Hello") == 1


def test_a_key_is_asked_for_and_kept_in_memory_alone(open_page: Open) -> None:
    with Server(chat(api_key="one")) as server:
        page = open_page(server.url)
        key_field = page.get_by_role("dialog").get_by_label("Key")
        for key in ("wr…ng", "two words"):  # no header can hold the first, and no key has a space
            key_field.fill(key)
            page.get_by_role("button", name="Use it").click()
            assert key_field.is_visible() and not key_field.evaluate("(field) => field.validity.valid")
        assert page.get_by_text("connection to the server was lost").count() == 0
        for key in (" wrong ", "one"):
            page.get_by_role("dialog").get_by_label("Key").fill(key)
            page.get_by_role("button", name="Use it").click()
            if key == "wrong":
                page.get_by_text("does not accept this key").wait_for()
        page.locator("#model-name").filter(has_text="tiny-ember").wait_for()
        say(page, "hello")
        assert "Hello from the tiny model." in answer(page).inner_text()
        stored = "[localStorage.length, sessionStorage.length, document.cookie, location.href.includes('one')]"
        assert page.evaluate(stored) == [0, 0, "", False]
        answer(page).get_by_role("button", name="As code").click()
        assert "Bearer $API_KEY" in page.locator("#code-text pre").inner_text()


def test_the_code_of_a_request_is_that_of_the_documentation(open_page: Open, server: Server) -> None:
    page = open_page(server.url)
    page.get_by_label("Temperature").fill("0.7")
    page.get_by_label("Top k").fill("40")
    say(page, "Hello")
    answer(page).get_by_role("button", name="As code").click()
    for language, name in (("curl", "shell"), ("Python, OpenAI SDK", "python")):
        page.get_by_role("button", name=language).click()
        code = page.locator("#code-text pre").inner_text()
        code = code.replace(server.url, "http://localhost:8000").replace("tiny-ember", "demo")
        assert f"```{name}\n{code}\n```" in DOCS.read_text()


@pytest.mark.parametrize("language", ["curl", "Python, OpenAI SDK"])
def test_the_code_of_a_request_runs(open_page: Open, server: Server, language: str) -> None:
    page = open_page(server.url)
    page.get_by_label("Top k").fill("5")
    page.get_by_label("Max tokens").fill("200")
    page.get_by_label("System prompt").fill('It\'s "quoted" \\ and\nin two lines')
    say(page, "hello")
    answer(page).get_by_role("button", name="As code").click()
    page.get_by_role("button", name=language).click()
    code = page.locator("#code-text pre").inner_text()
    shot(page, f"code-{language.split(',')[0].lower()}")
    command = ["bash", "-c", code] if language == "curl" else [sys.executable, "-c", code]
    assert language != "curl" or shlex.split(code)[0] == "curl"
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env={**os.environ, "NO_PROXY": "*"})
    said = done.stdout
    if language == "curl":
        events = [json.loads(line[6:]) for line in said.splitlines() if line.startswith("data: {")]
        said = "".join(each["choices"][0]["delta"].get("content") or "" for each in events if each["choices"])
    assert said == "Hello from the tiny model.", done.stderr
    assert server.deployment is not None
    assert 'It\'s "quoted" \\ and\nin two lines' in server.deployment.prompt_text
