"""Which chat template renders a request, and templates that requests bring: within limits, and in nobody's way."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from ember.front.api.schemas import ChatRequest, CompletionRequest
from ember.front.api.threads import in_thread
from ember.front.text import untrusted
from ember.front.text.template import ChatTemplate, TemplateError
from ember.front.text.untrusted import UntrustedTemplate
from tests.api.fakes import TEMPLATE, Deployment, refused

CHAT = "/v1/chat/completions"
MESSAGES = [{"role": "user", "content": "hi"}]
PARTS = "{% for message in messages %}{% for part in message.content %}({{ part.text }}){% endfor %}{% endfor %}"
WHOLE = "{% for message in messages %}<{{ message.content }}>{% endfor %}"

# ------------------------------------------------------------------------------------------------- the named ones


@pytest.fixture
def named(deployment: Deployment, monkeypatch: pytest.MonkeyPatch) -> Deployment:
    """A model with several templates."""
    templates = {
        "default": TEMPLATE,
        "tool_use": "TOOLS {{ tools | length }} " + WHOLE,
        "rag": "RAG {{ documents[0].text }} " + WHOLE,
    }
    monkeypatch.setattr(deployment.tokenizer, "chat_template", templates)
    return deployment


def test_tools_and_documents_choose_the_models_own_template(named: Deployment) -> None:
    named.chat()
    assert named.prompt_text == "<|user|>hi<|assistant|>"
    documents = [{"text": "facts"}]
    named.chat(documents=documents)
    assert named.prompt_text == "RAG facts <hi>"
    tools = [{"type": "function", "function": {"name": "f"}}]
    named.chat(tools=tools, tool_choice="none", documents=documents)
    assert named.prompt_text == "TOOLS 1 <hi>"


def test_a_request_may_name_one_of_the_models_templates(named: Deployment) -> None:
    named.chat(chat_template="rag", documents=[{"text": "x"}])
    assert named.prompt_text == "RAG x <hi>"
    named.chat(chat_template="default", documents=[{"text": "x"}])
    assert named.prompt_text.startswith("<|user|>hi<docs>")
    error = refused_next(named, {"messages": MESSAGES, "chat_template": "other"})
    assert error.param == "chat_template"


def refused_next(deployment: Deployment, body: Any) -> Any:
    deployment.engine.calls.clear()
    return refused(deployment, CHAT, body)


def test_a_model_without_a_default_still_has_its_others(named: Deployment) -> None:
    named.services.template = None
    named.chat(documents=[{"text": "x"}])
    assert named.prompt_text == "RAG x <hi>"
    assert "default chat template is no longer allowed" in refused_next(named, {"messages": MESSAGES}).message


def test_the_operators_template_wins_over_named_ones(named: Deployment) -> None:
    named.services.settings = named.services.settings.model_copy(update={"custom_chat_template": WHOLE})
    named.use_template(WHOLE)
    named.chat(documents=[{"text": "x"}])
    assert named.prompt_text == "<hi>"


@pytest.mark.parametrize(
    ("setting", "source", "prompt"),
    [
        ("auto", PARTS, "(hi)"),
        ("auto", WHOLE, "<hi>"),
        ("openai", PARTS, "(hi)"),
        ("openai", WHOLE, "<[{'type': 'text', 'text': 'hi'}]>"),
        ("string", PARTS, "()()"),  # what a template for parts makes of the two letters
    ],
)
def test_the_content_format_is_read_off_or_set(deploy, setting: str, source: str, prompt: str) -> None:
    deployment = deploy(chat_template_content_format=setting)
    deployment.use_template(source)
    deployment.chat()
    assert deployment.prompt_text == prompt


# ------------------------------------------------------------------------------------------------ the client's own


def test_a_trusted_template_of_a_request(deploy) -> None:
    deployment = deploy(trust_request_chat_template=True)
    source = "{{ bos_token }}{{ custom }}" + PARTS + "{% if add_generation_prompt %}GO{% endif %}"
    answer = deployment.request(
        "POST",
        CHAT,
        {"messages": MESSAGES, "chat_template": source, "chat_template_kwargs": {"custom": "k", "unread": 1}},
    )
    assert deployment.prompt_text == "<s>k(hi)GO"
    assert answer.headers["X-Ember-Ignored-Fields"] == "chat_template_kwargs.unread"
    deployment.chat()
    assert deployment.prompt_text == "<|user|>hi<|assistant|>"


BAD = {
    "{{ raise_exception('no such role') }}": "no such role",
    "{% for": "the chat template is not valid Jinja",
    "{{ messages.__class__.__mro__ }}": "the chat template failed: SecurityError",
    "{{ 'a' * 900000000 }}": "the chat template of the request needs more than 512 MiB",
    "{{ " + "(" * 40000 + "1" + ")" * 40000 + " }}": "the chat template of the request",
    "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}": (
        "the chat template of the request was not rendered within 1 seconds"
    ),
}


@pytest.mark.parametrize("source", BAD, ids=lambda source: source[:24])
def test_a_bad_template_is_a_400_and_hurts_nobody(deploy, source: str) -> None:
    timeout = 1.0 if "within 1 seconds" in BAD[source] else 60.0
    deployment = deploy(trust_request_chat_template=True, chat_template_render_timeout=timeout)
    error = refused(deployment, CHAT, {"messages": MESSAGES, "chat_template": source})
    assert (error.status, error.type) == (400, "BadRequestError")
    assert error.message.startswith(BAD[source])


def test_others_are_served_while_templates_hang(deploy, monkeypatch: pytest.MonkeyPatch) -> None:
    deployment = deploy(trust_request_chat_template=True, chat_template_render_timeout=30.0)
    endless = "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}"
    body = {"messages": MESSAGES, "chat_template": endless}

    async def run() -> None:
        hanging = [asyncio.create_task(deployment.dispatch("POST", CHAT, body)) for _ in range(40)]
        await asyncio.sleep(0.05)
        await deployment.dispatch("POST", CHAT, {"messages": MESSAGES})
        assert not any(task.done() for task in hanging)
        for task in hanging:
            task.cancel()
        await asyncio.gather(*hanging, return_exceptions=True)

    started: list[UntrustedTemplate] = []
    enter = UntrustedTemplate.__enter__

    def watched(template: UntrustedTemplate) -> UntrustedTemplate:
        started.append(template)
        return enter(template)

    monkeypatch.setattr(UntrustedTemplate, "__enter__", watched)
    try:
        asyncio.run(run())
    finally:
        for template in started:
            template._give_up()
    assert len(started) <= 2, "the others never started"


def test_a_client_that_leaves_ends_its_template(deploy, monkeypatch: pytest.MonkeyPatch) -> None:
    deployment = deploy(trust_request_chat_template=True, chat_template_render_timeout=600.0)
    endless = "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}"
    started: list[UntrustedTemplate] = []
    enter = UntrustedTemplate.__enter__

    def watched(template: UntrustedTemplate) -> UntrustedTemplate:
        started.append(enter(template))
        return template

    monkeypatch.setattr(UntrustedTemplate, "__enter__", watched)

    async def run() -> None:
        body = {"messages": MESSAGES, "chat_template": endless}
        for round_ in range(3):
            leaving = [asyncio.create_task(deployment.dispatch("POST", CHAT, body)) for _ in range(8)]
            while len(started) < 2 * round_ + 2:
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.1 * round_)
            for task in leaving:
                task.cancel()
            await asyncio.gather(*leaving, return_exceptions=True)
            answer = deployment.dispatch("POST", CHAT, {"messages": MESSAGES, "chat_template": WHOLE})
            assert (await asyncio.wait_for(answer, 60)).body["choices"]
            started.pop()  # the one that was answered

    asyncio.run(run())
    for template in started:
        template._process.wait(20)


def test_a_template_that_no_process_can_be_started_for(deploy, monkeypatch: pytest.MonkeyPatch) -> None:
    def popen(*arguments: Any, **options: Any) -> None:
        raise OSError(24, "Too many open files")

    deployment = deploy(trust_request_chat_template=True)
    monkeypatch.setattr(untrusted.subprocess, "Popen", popen)
    error = refused(deployment, CHAT, {"messages": MESSAGES, "chat_template": WHOLE})
    assert error.status == 503 and "Too many open files" in error.message


def test_the_process_sees_no_environment_and_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_TOKEN", "secret")
    with UntrustedTemplate(WHOLE, {}, 10.0) as template:
        assert template.render([{"role": "user", "content": "x"}]) == "<x>"
        with open(f"/proc/{template._process.pid}/environ") as environment:
            assert "SOME_TOKEN" not in environment.read()
    assert template._process.returncode is not None


def test_text_beyond_the_limit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(untrusted, "MAX_ANSWER_BYTES", 1000)
    with UntrustedTemplate("{{ 'a' * 5000 }}", {}, 10.0) as template, pytest.raises(TemplateError, match="made more"):
        template.render([{"role": "user", "content": "x"}])


@pytest.mark.parametrize("arguments", [{}, {"add_generation_prompt": False, "continue_final_message": True}])
def test_it_renders_what_a_template_in_this_process_renders(arguments: dict[str, Any]) -> None:
    messages = [{"role": "user", "content": "hé 😀"}, {"role": "assistant", "content": "a b"}]
    tokens = {"bos_token": "<s>"}
    plain = ChatTemplate(TEMPLATE, tokens)
    with UntrustedTemplate(TEMPLATE, tokens, 10.0) as template:
        assert template.content_format == plain.content_format
        assert template.variables == plain.variables
        assert template.render(messages, **arguments) == plain.render(messages, **arguments)


def test_what_a_client_can_make_slow_has_threads_of_its_own() -> None:
    """Others are rendered meanwhile, however long a template or a schema takes."""

    def name() -> str:
        return threading.current_thread().name

    schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": {}}}
    requests = [
        ChatRequest(messages=MESSAGES),
        ChatRequest(messages=MESSAGES, chat_template="x"),
        ChatRequest(messages=MESSAGES, tools=[{"type": "function", "function": {"name": "f"}}]),
        CompletionRequest(prompt="x", response_format=schema),
        CompletionRequest(prompt="x", guided_regex="a"),
        CompletionRequest(prompt="x"),
    ]

    async def run() -> list[str]:
        return [await in_thread(request, name) for request in requests]

    kinds = [thread.rpartition("_")[0] for thread in asyncio.run(run())]
    assert kinds == ["asyncio", "untrusted-template", "form", "form", "form", "asyncio"]
