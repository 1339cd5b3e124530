"""POST /v1/responses and the routes of stored responses."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from ember.front.api.exchange import Event, EventStream, Request, Response
from ember.front.api.responses.answers import InputItems, InputTokens, ResponseDeleted, ResponseEvent, ResponseObject
from ember.front.api.responses.background import Background, Running
from ember.front.api.responses.store import MemoryStore, SqliteStore, Stored
from ember.front.api.routes import ROUTER
from ember.front.errors import ApiError
from tests.api.fakes import Deployment, say
from tests.api.talking import ADD, CALL_ADD, CALL_SUB, SUB, talking

PATH = "/v1/responses"
TOOLS = [{"type": "function", **ADD["function"]}, {"type": "function", **SUB["function"]}]
THOUGHT = f"<think>\nLet me see.\n</think>\n\nI will.\n{CALL_ADD}\n{CALL_SUB}"
ALL = ["reasoning", "message", "function_call", "function_call"]


@pytest.fixture
def deployment() -> Deployment:
    return talking()


def ask(deployment: Deployment, given: Any = "hi", **fields: Any) -> Any:
    answer = deployment.request("POST", PATH, {"input": given, **fields}).body
    ResponseObject.model_validate(answer, strict=True)
    return answer


def refusal(deployment: Deployment, method: str, path: str, body: Any = None, **query: str) -> ApiError:
    with pytest.raises(ApiError) as caught:
        request(deployment, method, path, body, **query)
    return caught.value


def request(deployment: Deployment, method: str, path: str, body: Any = None, **query: str) -> Any:
    answer = asyncio.run(ROUTER.dispatch(deployment.services, Request(method, path, body, query=query)))
    assert isinstance(answer, Response)
    return answer.body


def streamed(deployment: Deployment, given: Any = "hi", **fields: Any) -> list[Any]:
    events = deployment.events(PATH, {"input": given, "stream": True, **fields})
    return checked(events)


def checked(events: list[Any]) -> list[Any]:
    """The documents of the events, which are numbered and named after their types."""
    documents = [json.loads(event.data) for event in events]
    for number, (event, document) in enumerate(zip(events, documents, strict=True)):
        assert (event.name, number) == (document["type"], document["sequence_number"])
        ResponseEvent.model_validate(document, strict=True)
    return documents


def plain(item: Any) -> Any:
    """An item without what differs from one answer to the next."""
    return {name: value for name, value in item.items() if name not in ("id", "call_id")}


def test_a_whole_answer(deployment: Deployment) -> None:
    deployment.says(THOUGHT)
    answer = ask(deployment, tools=TOOLS, instructions="be", metadata={"a": "b"}, temperature=0.5)
    assert [item["type"] for item in answer["output"]] == ALL
    reasoning, message, add, sub = answer["output"]
    assert reasoning["content"][0]["text"].strip() == "Let me see."
    assert message["content"][0]["text"].strip() == "I will."
    assert (add["name"], json.loads(add["arguments"])) == ("add", {"a": 1, "b": 2})
    assert json.loads(sub["arguments"]) == {"x": "é🦜"}
    assert len({item["id"] for item in answer["output"]}) == 4
    assert (answer["status"], answer["metadata"], answer["temperature"]) == ("completed", {"a": "b"}, 0.5)
    assert answer["usage"]["input_tokens_details"] == {"cached_tokens": 3, "cache_write_tokens": 0}
    assert answer["usage"]["output_tokens_details"]["reasoning_tokens"] > 0
    assert answer["usage"]["total_tokens"] == answer["usage"]["input_tokens"] + answer["usage"]["output_tokens"]
    assert deployment.prompt_text.startswith("<|system|>be<|user|>hi")


@pytest.mark.parametrize("per_step", [1, 7, 1000])
def test_a_stream_adds_up_to_the_whole_answer(deployment: Deployment, per_step: int) -> None:
    deployment.says(THOUGHT, per_step)
    documents = streamed(deployment, tools=TOOLS)
    kinds = [document["type"].removeprefix("response.") for document in documents]
    assert kinds[:2] == ["created", "in_progress"]
    assert kinds[-1] == "completed"
    steps = [kind for kind, before in zip(kinds[2:], ["", *kinds[2:]], strict=False) if kind != before]
    said = ["output_item.added", "content_part.added"]
    ending = ["content_part.done", "output_item.done"]
    call = ["output_item.added", "function_call_arguments.delta", "function_call_arguments.done", "output_item.done"]
    assert steps == [
        *[*said, "reasoning_text.delta", "reasoning_text.done", *ending],
        *[*said, "output_text.delta", "output_text.done", *ending],
        *call,
        *call,
        "completed",
    ]
    items: list[Any] = []
    for document in documents:
        kind = document["type"].removeprefix("response.")
        if kind == "output_item.added":
            items.append(document["item"])
            assert document["item"]["status"] == "in_progress"
            texts = [""]
        elif kind.endswith(".delta"):
            assert document["item_id"] == items[document["output_index"]]["id"]
            texts.append(document["delta"])
        elif kind.endswith(("text.done", "arguments.done")):
            assert (document.get("text") or document.get("arguments")) == "".join(texts)
        elif kind == "output_item.done":
            items[document["output_index"]] = document["item"]
    last = documents[-1]["response"]
    assert last["output"] == items
    whole = ask(deployment, tools=TOOLS)
    assert [plain(item) for item in whole["output"]] == [plain(item) for item in items]
    assert whole["usage"] == last["usage"]


def test_functions_of_a_namespace(deployment: Deployment) -> None:
    deployment.says(CALL_ADD.replace("add", "math__add"))
    space = {"type": "namespace", "name": "math", "tools": [TOOLS[0]]}
    documents = streamed(deployment, tools=[space, TOOLS[1]], tool_choice="required")
    (item,) = documents[-1]["response"]["output"]
    assert (item["namespace"], item["name"]) == ("math", "add")
    assert next(document for document in documents if document["type"].endswith("arguments.done"))["name"] == "add"
    ask(deployment, [{"role": "user", "content": "hi"}, item], tools=[space])
    assert '"name": "math__add"' in deployment.prompt_text
    error = refusal(deployment, "POST", PATH, {"input": "hi", "tools": [{**space, "tools": [{"type": "custom"}]}]})
    assert error.param == "tools.0.tools.0.type"


def test_an_answer_that_was_cut_is_incomplete(deployment: Deployment) -> None:
    deployment.says("hello world")
    answer = ask(deployment, max_output_tokens=4)
    assert (answer["status"], answer["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert answer["output"][0]["status"] == "incomplete"
    documents = streamed(deployment, max_output_tokens=4)
    assert documents[-1]["type"] == "response.incomplete"
    assert documents[-2]["item"]["status"] == "incomplete"


@pytest.mark.parametrize(
    "fields", [{"repetition_detection": {"max_pattern_size": 1, "min_count": 6}}, {"stop": "xxx"}, {}]
)
def test_a_call_without_an_end_is_incomplete(deployment: Deployment, fields: Any) -> None:
    deployment.says('<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": "xxxxxxxxxx')
    *_, item, last = streamed(deployment, tools=TOOLS, **fields)
    assert (last["type"], item["item"]["status"]) == ("response.incomplete", "incomplete")
    for answer in (last["response"], ask(deployment, tools=TOOLS, **fields)):
        assert (answer["status"], answer["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
        assert [call["status"] for call in answer["output"]] == ["incomplete"]


def test_log_probabilities_come_where_they_are_asked_for(deployment: Deployment) -> None:
    deployment.says("hello")
    fields: dict[str, Any] = {"include": ["message.output_text.logprobs"], "top_logprobs": 2}
    (entry, *_) = ask(deployment, **fields)["output"][0]["content"][0]["logprobs"]
    assert len(entry["top_logprobs"]) == 2
    documents = streamed(deployment, **fields)
    deltas = [
        entry for document in documents if document["type"].endswith("text.delta") for entry in document["logprobs"]
    ]
    (done,) = (document["logprobs"] for document in documents if document["type"].endswith("text.done"))
    assert deltas == done
    deployment.says(f"<think>hm</think>\n\nso<b>{CALL_ADD}and{CALL_SUB}")
    for answer in (ask(deployment, tools=TOOLS, **fields), streamed(deployment, tools=TOOLS, **fields)[-1]["response"]):
        parts = [item["content"][0] for item in answer["output"] if item["type"] == "message"]
        assert [part["text"] for part in parts] == ["so<b>", "and"]
        assert ["".join(entry["token"] for entry in part["logprobs"]) for part in parts] == ["so<b>", "and"]
    deployment.says("hello")
    assert ask(deployment, top_logprobs=2)["output"][0]["content"][0]["logprobs"] == []


@pytest.mark.parametrize("stream", [False, True])
def test_the_raw_messages_come_where_they_are_asked_for(deployment: Deployment, stream: bool) -> None:
    deployment.says(THOUGHT)
    fields = {"tools": TOOLS, "enable_response_messages": True}
    answer = streamed(deployment, **fields)[-1]["response"] if stream else ask(deployment, **fields)
    (prompt,), (output,) = answer["input_messages"], answer["output_messages"]
    assert (prompt["message"], prompt["tokens"]) == (deployment.prompt_text, deployment.engine.prompt)
    assert output["message"] == f"{THOUGHT}</s>"
    assert len(output["tokens"]) == answer["usage"]["output_tokens"]
    assert "input_messages" not in ask(deployment)


@pytest.mark.parametrize("per_step", [1, 3, 1000])
def test_each_delta_has_the_log_probabilities_of_its_text(deployment: Deployment, per_step: int) -> None:
    deployment.says("hello there", per_step)
    documents = streamed(deployment, include=["message.output_text.logprobs"])
    deltas = [document for document in documents if document["type"].endswith("text.delta")]
    for document in deltas:
        tokens = "".join(entry["token"] for entry in document["logprobs"])
        assert tokens.removesuffix("</s>") == document["delta"]


def test_a_failure_in_the_middle_is_the_last_event(deployment: Deployment) -> None:
    tokens = say(deployment.tokenizer, "hello")
    deployment.engine.script = lambda prompt, sampling: [
        *tokens(prompt, sampling)[:2],
        ApiError(500, "The engine failed."),
    ]
    last = streamed(deployment)[-1]
    assert last["type"] == "response.failed"
    assert last["response"]["error"] == {"code": "server_error", "message": "The engine failed."}
    assert last["response"]["status"] == "failed"
    assert [item["status"] for item in last["response"]["output"]] == ["incomplete"]


def test_items_become_a_chat(deployment: Deployment) -> None:
    call = {"type": "function_call", "call_id": "c1", "name": "add", "arguments": '{"a": 1}'}
    ask(
        deployment,
        [
            {"role": "developer", "content": "be"},
            {"role": "user", "content": [{"type": "input_text", "text": "one"}]},
            {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "two"}]},
            call,
            {**call, "call_id": "c2", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c1", "output": "3"},
            {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "4"}]},
            {"type": "reasoning", "summary": [], "encrypted_content": "ember:aG0="},
            {"type": "reasoning", "summary": [], "encrypted_content": "of another"},
            {"role": "assistant", "content": "five"},
            {"role": "user", "content": "six"},
        ],
        tools=TOOLS,
    )
    head = '<tool_call>{"name": "add", "arguments": '
    first, second = (f"{head}{arguments}}}</tool_call>" for arguments in ('{"a": 1}', "{}"))
    assert deployment.prompt_text == (
        f"<|system|>be<|user|>one<|assistant|><think>hm</think>two{first}{second}<|tool|>3<|tool|>4"
        "<|assistant|><think>hm</think>five<|user|>six<tools>add sub </tools><|assistant|>"
    )


def test_reasoning_can_be_sent_back_sealed(deployment: Deployment) -> None:
    deployment.says("<think>\nhm\n</think>\nso")
    answer = ask(deployment, include=["reasoning.encrypted_content"])
    sealed = {"type": "reasoning", "summary": [], "encrypted_content": answer["output"][0]["encrypted_content"]}
    ask(deployment, [{"role": "user", "content": "hi"}, sealed, answer["output"][1], {"role": "user", "content": "go"}])
    assert "<|assistant|><think>hm" in deployment.prompt_text.replace("\n", "")


def test_an_unfinished_message_is_continued(deployment: Deployment) -> None:
    ask(
        deployment, [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "The", "status": "incomplete"}]
    )
    assert deployment.prompt_text.endswith("<|assistant|>The")


@pytest.mark.parametrize(
    ("choice", "mode"),
    [
        ("required", True),
        ({"type": "function", "name": "add"}, True),
        ({"type": "function", "function": {"name": "add"}}, True),
        ({"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "sub"}]}, True),
        ("auto", False),
        ("none", False),
    ],
)
def test_the_choice_of_tools(deployment: Deployment, choice: Any, mode: bool) -> None:
    deployment.says(CALL_ADD)
    ask(deployment, tools=TOOLS, tool_choice=choice)
    assert (deployment.engine.sampling.grammar is not None) == mode


@pytest.mark.parametrize("kind", ["json_object", "json_schema", "text"])
def test_the_form_of_the_text(deployment: Deployment, kind: str) -> None:
    form = {"type": kind, "name": "x", "schema": {"type": "object"}} if kind == "json_schema" else {"type": kind}
    assert ask(deployment, text={"format": form})["text"]["format"] == form
    assert (deployment.engine.sampling.grammar is not None) == (kind != "text")


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"input": None}, "`input` must be"),
        ({"input": []}, "`input` must be"),
        ({"input": [{"role": "pope", "content": "x"}]}, "input.0.role"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}, "'input_image'"),
        ({"input": [{"role": "user"}]}, "input.0.content"),
        ({"input": [{"type": "custom_tool_call"}]}, "'custom_tool_call'"),
        ({"input": [{"type": ["message"], "role": "user", "content": "x"}]}, "input.0.type"),
        ({"input": [{"role": "user", "content": [{"type": ["text"], "text": "x"}]}]}, "input.0.content.0"),
        ({"tools": [{"type": "namespace", "name": "x", "tools": [ADD]}]}, "name"),
        ({"input": [{"type": "function_call", "name": "x"}]}, "input.0.call_id"),
        ({"input": [{"type": "function_call_output", "call_id": "x"}]}, "input.0.output"),
        ({"input": [{"type": "function_call", "call_id": "x", "name": ""}]}, "`input.0.name` must be a non-empty"),
        ({"tools": [{"type": "web_search"}]}, "'web_search'"),
        ({"tools": [{"type": "custom", "name": "x"}]}, "'custom'"),
        ({"tools": [{"type": "function"}]}, "name"),
        ({"tool_choice": "required"}, "tools"),
        ({"tool_choice": {"type": "web_search"}}, "'web_search'"),
        ({"tools": TOOLS, "tool_choice": {"type": "function", "name": "mul"}}, "tool_choice"),
        ({"include": ["all"]}, "'all'"),
        ({"text": {"format": {"type": "xml"}}}, "'xml'"),
        ({"text": {"format": {"type": "json_schema"}}}, "text.format.schema"),
        ({"prompt": {"id": "x"}}, "`prompt`"),
        ({"conversation": "x"}, "`conversation`"),
        ({"previous_input_messages": [{"role": "user"}]}, "`previous_input_messages`"),
        ({"truncation": "some"}, "truncation"),
        ({"service_tier": "best"}, "service_tier"),
        ({"max_output_tokens": 0}, "max_output_tokens must be at least 1"),
        ({"max_output_tokens": 5000}, "max_output_tokens=5000 cannot"),
        ({"max_tool_calls": 0}, "max_tool_calls"),
        ({"metadata": {"a": 1}}, "metadata.a"),
        ({"reasoning": {"effort": "huge"}}, "'body.reasoning.effort'"),
        ({"text": {"format": {"type": "json_schema", "schema": {"type": 7}}}}, "`text.format` cannot be used"),
        ({"tools": [{"type": "function", "name": "x", "parameters": 7}]}, "`tools.0.parameters`"),
        ({"tools": TOOLS, "tool_choice": {"type": "function"}}, "`tool_choice.name`"),
        ({"background": True, "store": False}, "background can only be used when `store` is true."),
        ({"top_logprobs": -2}, "`top_logprobs` must be a positive value"),
        ({"top_logprobs": 21}, "greater than max allowed: 20"),
        ({"tools": [{"type": None, "name": "x"}]}, "got null"),
        ({"input": [{"type": 0, "role": "user", "content": "x"}]}, "`input.0.type` must be one of"),
        ({"input": [{"type": {}, "role": "user", "content": "x"}]}, "`input.0.type` must be one of"),
        (
            {"input": [{"type": "function_call_output", "call_id": "call_x", "output": "3"}]},
            "No tool call found for function call output with call_id call_x",
        ),
        ({"text": {"verbosity": "x"}}, "`text.verbosity` must be"),
        ({"text": {"format": {"type": "json_schema", "name": "a b!", "schema": {}}}}, "`text.format.name` must be"),
        ({"tools": TOOLS, "tool_choice": {"type": "function", "name": "mul"}}, "allowed are"),
    ],
)
def test_bad_input_is_named(deployment: Deployment, fields: Any, text: str) -> None:
    error = refusal(deployment, "POST", PATH, {"input": "hi", **fields})
    assert error.status == 400
    assert text in error.message


def test_what_has_no_effect_is_told(deployment: Deployment) -> None:
    body = {"input": "hi", "novel": 1, "reasoning": {"summary": "auto"}, "text": {"verbosity": "low"}, "user": "u"}
    headers = deployment.request("POST", PATH, body).headers
    assert headers["X-Ember-Ignored-Fields"] == "novel, reasoning.summary, text.verbosity"


def test_a_prompt_is_cut_where_that_is_asked_for(deployment: Deployment) -> None:
    assert refusal(deployment, "POST", PATH, {"input": "x" * 5000}).param == "input_tokens"
    ask(deployment, "x" * 5000, truncation="auto")
    assert len(deployment.engine.prompt) == 4095


def test_a_response_is_continued_read_listed_and_deleted(deployment: Deployment) -> None:
    deployment.says("one")
    first = ask(deployment, "a", instructions="be")
    deployment.says("two", 2)
    second = streamed(deployment, "b", previous_response_id=first["id"])[-1]["response"]
    assert deployment.prompt_text == "<|user|>a<|assistant|>one<|user|>b<|assistant|>"
    reference = {"type": "item_reference", "id": first["output"][0]["id"]}
    ask(deployment, [{"role": "user", "content": "c"}, reference, {"role": "user", "content": "d"}], store=False)
    assert deployment.prompt_text == "<|user|>c<|assistant|>one<|user|>d<|assistant|>"
    assert request(deployment, "GET", f"{PATH}/{second['id']}") == second
    error = refusal(deployment, "POST", f"{PATH}/{second['id']}/cancel")
    assert (error.status, error.message[:37]) == (400, "Cannot cancel a synchronous response.")
    listed = request(deployment, "GET", f"{PATH}/{second['id']}/input_items", order="asc")
    InputItems.model_validate(listed, strict=True)
    assert [item["role"] for item in listed["data"]] == ["user", "assistant", "user"]
    page = request(deployment, "GET", f"{PATH}/{second['id']}/input_items", limit="1", after=listed["last_id"])
    assert (page["data"], page["has_more"]) == ([listed["data"][1]], True)
    counted = request(deployment, "POST", f"{PATH}/input_tokens", {"input": "b", "previous_response_id": first["id"]})
    InputTokens.model_validate(counted, strict=True)
    assert counted["input_tokens"] == second["usage"]["input_tokens"]
    deleted = request(deployment, "DELETE", f"{PATH}/{first['id']}")
    ResponseDeleted.model_validate(deleted, strict=True)
    for method, path, body in (
        ("GET", f"{PATH}/{first['id']}", None),
        ("DELETE", f"{PATH}/{first['id']}", None),
        ("POST", f"{PATH}/{first['id']}/cancel", None),
        ("GET", f"{PATH}/{first['id']}/input_items", None),
        ("POST", PATH, {"input": "x", "previous_response_id": second["id"]}),
        ("POST", PATH, {"input": [reference]}),
    ):
        assert refusal(deployment, method, path, body).status == 404


def test_what_is_not_stored_is_not_found(deployment: Deployment) -> None:
    answer = ask(deployment, store=False)
    assert answer["store"] is False
    assert refusal(deployment, "GET", f"{PATH}/{answer['id']}").status == 404
    off = talking(responses_store="off")
    assert ask(off)["store"] is False
    assert "RESPONSES_STORE" in refusal(off, "POST", PATH, {"input": "x", "previous_response_id": "resp_1"}).message
    assert "RESPONSES_STORE" in refusal(off, "GET", f"{PATH}/resp_1").message
    job = asyncio.run(ROUTER.dispatch(deployment.services, Request("POST", PATH, {"input": "x"}, is_job=True)))
    assert isinstance(job, Response)
    assert job.body["store"] is False


@pytest.mark.parametrize(
    "query", [{"limit": "0"}, {"limit": "x"}, {"limit": "9" * 5000}, {"order": "up"}, {"after": "msg_0"}]
)
def test_bad_queries_of_a_list_are_named(deployment: Deployment, query: Any) -> None:
    path = f"{PATH}/{ask(deployment)['id']}/input_items"
    error = refusal(deployment, "GET", path, **query)
    assert (error.status, error.param) == (400, next(iter(query)))


def test_responses_with_one_request_id_are_different_ones(deployment: Deployment) -> None:
    answers = [deployment.request("POST", PATH, {"input": given}, x_request_id="a/b").body for given in ("one", "two")]
    assert len({answer["id"] for answer in answers}) == 2
    assert [request(deployment, "GET", f"{PATH}/{answer['id']}") for answer in answers] == answers


@pytest.mark.parametrize("limits", [(2000, 60.0), (10**9, 0.0)])
def test_events_of_finished_responses_have_the_limits_of_the_store(limits: tuple[int, float]) -> None:
    async def run() -> None:
        background, store = Background(*limits), MemoryStore(*limits)
        for number in range(5):
            running = Running({})
            running.add(Event("x" * 900))
            background.add(f"{number}", running, store)
            running.end({})
        await store.put(stored("kept", size=500))
        background.trim()
        assert [number for number in range(5) if background.get(f"{number}")] == ([4] if limits[1] else [])
        running = Running({})  # what is still being made stays
        background.add("made", running, store)
        running.add(Event("x" * 10_000))
        assert background.get("made") is running
        running.end({})
        assert background.get("made") is None
        assert background._watching is not None
        background._watching.cancel()

    asyncio.run(run())


def test_a_response_in_the_background(deployment: Deployment) -> None:
    async def run() -> None:
        async def call(method: str, path: str, body: Any = None, **query: str) -> Any:
            answer = await ROUTER.dispatch(deployment.services, Request(method, path, body, query=query))
            return answer if isinstance(answer, EventStream) else answer.body

        deployment.says("hello world")
        queued = await call("POST", PATH, {"input": "hi", "background": True})
        assert queued["status"] == "queued"
        path = f"{PATH}/{queued['id']}"
        events = checked([event async for event in (await call("GET", path, stream="true")).events])
        assert events[-1]["type"] == "response.completed"
        assert await call("GET", path) == events[-1]["response"]
        late = await call("GET", path, stream="true", starting_after=str(len(events) - 2))
        assert [json.loads(event.data) async for event in late.events] == events[-1:]
        assert (await call("POST", f"{path}/cancel"))["status"] == "completed"
        odd = {"starting_after": str(len(events)), "include_obfuscation": "maybe", "include": "nope", "stream": "yes"}
        for name, value in odd.items():
            with pytest.raises(ApiError, match=f"`{name}` must be") as caught:
                await call("GET", path, **{"stream": "true", name: value})
            assert caught.value.status == 400

        deployment.engine.delay = 0.05
        queued = await call("POST", PATH, {"input": "hi", "background": True})
        await asyncio.sleep(0.1)
        path = f"{PATH}/{queued['id']}"
        assert (await call("GET", path))["status"] == "in_progress"
        assert len(deployment.services.tasks) == 1
        with pytest.raises(ApiError, match="not finished|not found"):
            await call("POST", PATH, {"input": "x", "previous_response_id": queued["id"]})
        both = await asyncio.gather(*(call("POST", f"{path}/cancel") for _ in range(2)))
        assert [(body["status"], body["output"][-1]["status"]) for body in both] == [("cancelled", "incomplete")] * 2
        assert deployment.engine.generations[-1].aborted
        assert (await call("GET", path)) == both[0]
        events = checked([event async for event in (await call("GET", path, stream="true")).events])
        assert (events[-1]["type"], events[-1]["response"]) == ("response.failed", both[0])
        assert not deployment.services.tasks
        queued = await call("POST", PATH, {"input": "hi", "background": True})
        await call("DELETE", f"{PATH}/{queued['id']}")
        with pytest.raises(ApiError, match="not found"):
            await call("GET", f"{PATH}/{queued['id']}")

        deployment.engine.script = lambda prompt, sampling: [ApiError(500, "The engine failed.")]
        stream = await call("POST", PATH, {"input": "hi", "background": True, "stream": True})
        created, failed = checked([event async for event in stream.events])
        assert (created["type"], created["response"]["status"]) == ("response.created", "queued")
        assert failed["response"]["error"]["message"] == "The engine failed."

    asyncio.run(run())
    with pytest.raises(ApiError, match="background"):
        deployment.engine.delay = 0
        deployment.says("hello")
        request(deployment, "POST", f"{PATH}/{ask(deployment)['id']}/cancel")


def stored(name: str, size: int = 10, previous: str | None = None) -> Stored:
    item = {"id": f"item_{name}", "type": "message", "role": "user", "content": "x" * size}
    return Stored({"id": name, "previous_response_id": previous, "output": []}, [item])


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
def test_stores_have_limits(tmp_path: Path, kind: str) -> None:
    async def run() -> None:
        def opened(max_bytes: int, seconds: float) -> MemoryStore | SqliteStore:
            if kind == "memory":
                return MemoryStore(max_bytes, seconds)
            return SqliteStore(str(tmp_path / "store.db"), max_bytes, seconds)

        store = opened(1000, 60)
        for name in "abc":
            await store.put(stored(name, 300))
        assert await store.get("a") is None
        assert await store.item("item_a") is None
        assert await store.get("c") == stored("c", 300)
        assert (await store.item("item_c") or {})["id"] == "item_c"
        await store.put(stored("huge", 2000))
        assert await store.get("huge") is None
        await store.put(stored("c", 20))
        assert await store.get("c") == stored("c", 20)
        assert await store.delete("c")
        assert not await store.delete("c")
        if kind == "sqlite":
            assert await opened(1000, 60).get("b") == stored("b", 300)  # another worker
        store = opened(1000, 0.01)
        await store.put(stored("d"))
        await asyncio.sleep(0.02)
        assert await store.get("d") is None

    asyncio.run(run())


def test_a_file_that_cannot_be_used_is_an_error(tmp_path: Path) -> None:
    deployment = talking(responses_store=f"sqlite:{tmp_path}/none/store.db")
    error = refusal(deployment, "POST", PATH, {"input": "hi"})
    assert (error.status, "RESPONSES_STORE" in error.message) == (500, True)


def test_a_file_is_used_when_it_can_be(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    path.write_bytes(b"not a database " * 100)
    deployment = talking(responses_store=f"sqlite:{path}")
    assert refusal(deployment, "POST", PATH, {"input": "hi"}).status == 500
    path.unlink()
    request(deployment, "GET", f"{PATH}/{ask(deployment)['id']}")


def test_workers_share_what_is_made_in_the_background(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ember.front.api.responses.background.HEARTBEAT_SECONDS", 0.02)
    here, there = (talking(responses_store=f"sqlite:{tmp_path}/store.db") for _ in range(2))
    here.engine.delay = 0.05

    async def run() -> None:
        async def call(deployment: Deployment, method: str, path: str, body: Any = None) -> Any:
            answer = await deployment.dispatch(method, path, body)
            assert isinstance(answer, Response)
            return answer.body

        async def begun() -> str:
            queued = await call(here, "POST", PATH, {"input": "hi", "background": True})
            path = f"{PATH}/{queued['id']}"
            assert (await call(there, "GET", path))["status"] in ("queued", "in_progress")
            return path

        path = await begun()
        assert (await call(there, "POST", f"{path}/cancel"))["status"] == "cancelled"
        assert here.engine.generations[-1].aborted
        path = await begun()
        await call(there, "DELETE", path)
        await asyncio.gather(*here.services.tasks)
        assert here.engine.generations[-1].aborted
        for deployment in (here, there):
            with pytest.raises(ApiError, match="not found"):
                await call(deployment, "GET", path)

        path = await begun()
        monkeypatch.setattr("ember.front.api.responses.store.HEARTBEAT_TIMEOUT", -1)
        gone = await call(there, "GET", path)
        assert (gone["status"], gone["error"]["code"]) == ("failed", "server_error")

    asyncio.run(run())
