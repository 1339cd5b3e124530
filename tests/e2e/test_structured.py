"""Structured output as clients ask for it: the OpenAI SDK against `ember serve`, and native jobs over the queue."""

from __future__ import annotations

import json
import re
from typing import Any, Literal

import jsonschema
import openai
import pytest
from pydantic import BaseModel, Field

from tests.support.fake_queue import FakeQueue

MESSAGES: list[openai.types.chat.ChatCompletionMessageParam] = [{"role": "user", "content": "Describe the weather."}]
SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "pattern": "^[A-Z][a-z]{2,8}$"},
        "degrees": {"type": "integer", "minimum": -40, "maximum": 50},
        "sky": {"enum": ["clear", "cloudy", None]},
    },
    "required": ["city", "degrees", "sky"],
    "additionalProperties": False,
}
FORMAT: Any = {"type": "json_schema", "json_schema": {"name": "weather", "schema": SCHEMA, "strict": True}}
PHONE = r"\+\d{2} \d{3,5}/\d{4}"


class Hour(BaseModel):
    hour: int = Field(ge=0, le=23)
    sky: Literal["clear", "cloudy"]


class Weather(BaseModel):
    """What the SDK makes a strict schema of."""

    city: str = Field(pattern="^[a-z]{1,8}$")
    hours: list[Hour] = Field(max_length=2)
    warning: Literal["storm", "heat"] | None


@pytest.fixture(scope="module")
def client(server_url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=server_url + "/v1", api_key="none", max_retries=0, timeout=120)


def chat(client: openai.OpenAI, n: int = 1, **options: Any) -> list[str]:
    """The texts of the choices, each of which is whole."""
    answer = client.chat.completions.create(
        model="demo", messages=MESSAGES, temperature=1, seed=5, n=n, max_tokens=800, **options
    )
    assert [choice.finish_reason for choice in answer.choices] == ["stop"] * n
    return [choice.message.content or "" for choice in answer.choices]


def check(text: str) -> None:
    jsonschema.validate(json.loads(text), SCHEMA)


def test_response_format_whole_and_streamed(client: openai.OpenAI) -> None:
    texts = chat(client, n=4, response_format=FORMAT, logprobs=True)
    for text in texts:
        check(text)
    stream = client.chat.completions.create(
        model="demo", messages=MESSAGES, temperature=1, seed=5, max_tokens=800, response_format=FORMAT, stream=True
    )
    parts = [chunk.choices[0] for chunk in stream]
    assert "".join(part.delta.content or "" for part in parts) == texts[0]  # sample 0 of n has the same seed
    assert parts[-1].finish_reason == "stop"


def test_any_object(client: openai.OpenAI) -> None:
    bias = {str(token_id): 8 for token_id in client_ids(client, '{"a":1}')}
    answer = client.chat.completions.create(
        model="demo", messages=MESSAGES, response_format={"type": "json_object"}, logit_bias=bias, max_tokens=800
    )
    choice = answer.choices[0]
    assert choice.message.content is not None and choice.message.content.lstrip().startswith("{")
    if choice.finish_reason == "stop":
        assert isinstance(json.loads(choice.message.content), dict)


def client_ids(client: openai.OpenAI, text: str) -> list[int]:
    """Token ids of a text, by way of the prompt that a completion shows."""
    extra = {"return_token_ids": True}
    answer = client.completions.create(model="demo", prompt=text, max_tokens=1, extra_body=extra)
    token_ids: list[int] = answer.choices[0].model_extra["prompt_token_ids"]  # type: ignore[index]
    return token_ids


def test_parse_gives_objects(client: openai.OpenAI) -> None:
    answer = client.chat.completions.parse(
        model="demo", messages=MESSAGES, response_format=Weather, temperature=1, seed=3, n=3, max_tokens=800
    )
    parsed = [choice.message.parsed for choice in answer.choices]
    assert len(parsed) == 3 and all(isinstance(weather, Weather) for weather in parsed)


def test_the_stream_helper_gives_objects(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(
        model="demo", messages=MESSAGES, response_format=Weather, temperature=1, seed=4, max_tokens=800
    ) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion()
    assert {"content.delta", "content.done"} <= kinds
    assert isinstance(final.choices[0].message.parsed, Weather)


@pytest.mark.parametrize(
    ("extra", "pattern"),
    [
        ({"structured_outputs": {"regex": PHONE}}, PHONE),
        ({"structured_outputs": {"choice": ["positive", "negative"]}}, "positive|negative"),
        ({"structured_outputs": {"grammar": 'root ::= "x" [0-9]{2} ("a" | "b")'}}, r"x\d\d[ab]"),
        ({"structured_outputs": {"grammar": 'start: "x" NUMBER\nNUMBER: /[0-9]{2}/'}}, r"x\d\d"),
        ({"structured_outputs": {"json": {"type": "integer", "minimum": 10, "maximum": 99}}}, r"\d\d"),
        ({"structured_outputs": {"json": {"const": {"a": [1]}}, "disable_any_whitespace": True}}, r'\{"a":\[1\]\}'),
        ({"guided_regex": PHONE, "guided_decoding_backend": "outlines"}, PHONE),
        ({"guided_choice": ["yes", "no"]}, "yes|no"),
        ({"guided_grammar": 'root ::= "a" | "b"'}, "a|b"),
        ({"guided_json": '{"enum": [true, 7]}'}, "true|7"),
    ],
)
def test_extra_body(client: openai.OpenAI, extra: dict[str, Any], pattern: str) -> None:
    for text in chat(client, n=2, extra_body=extra):
        assert re.fullmatch(pattern, text)
    answer = client.completions.create(model="demo", prompt="It is", seed=1, max_tokens=60, extra_body=extra)
    assert answer.choices[0].finish_reason == "stop" and re.fullmatch(pattern, answer.choices[0].text)


def test_reasoning_is_free_and_the_answer_is_not(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="demo",
        messages=MESSAGES,
        temperature=0,
        max_tokens=800,
        extra_body={"guided_regex": PHONE, "chat_template_kwargs": {"enable_thinking": True}},
    )
    message = answer.choices[0].message
    assert re.fullmatch(PHONE, message.content or "")
    reasoning = (message.model_extra or {})["reasoning"]
    assert reasoning and not re.search(PHONE, reasoning)


def test_a_structural_tag(client: openai.OpenAI) -> None:
    tag = {"type": "tag", "begin": "<w>", "content": {"type": "json_schema", "json_schema": SCHEMA}, "end": "</w>"}
    (text,) = chat(client, extra_body={"response_format": {"type": "structural_tag", "format": tag}})
    assert text.startswith("<w>") and text.endswith("</w>")
    check(text[3:-4])


BAD: list[tuple[dict[str, Any], str, str]] = [
    (
        {"response_format": {**FORMAT, "json_schema": {"schema": {"uniqueItems": True}}}},
        "response_format",
        "uniqueItems",
    ),
    ({"guided_regex": "(?=a)b"}, "guided_regex", "look-around"),
    ({"structured_outputs": {"grammar": "start: missing"}}, "structured_outputs.grammar", "missing"),
    ({"structured_outputs": {}}, "structured_outputs", "exactly one"),
    ({"guided_choice": ["x"], "bad_words": ["x"]}, "guided_choice", "other options of the request"),
]


@pytest.mark.parametrize(("extra", "param", "words"), BAD)
@pytest.mark.parametrize("stream", [False, True])
def test_what_cannot_be_is_a_400_that_names_the_field(
    client: openai.OpenAI, extra: dict[str, Any], param: str, words: str, stream: bool
) -> None:
    with pytest.raises(openai.APIError) as caught:  # of which BadRequestError is the one before any chunk
        answer = client.chat.completions.create(
            model="demo", messages=MESSAGES, stream=stream, max_tokens=800, extra_body=extra
        )
        list(answer)
    assert (str(caught.value.code), caught.value.param) == ("400", param) and words in caught.value.message


@pytest.mark.usefixtures("worker")
def test_over_the_queue(queue: FakeQueue) -> None:
    """OpenAI's form, and the sampling parameters of native jobs."""
    openai_job = {
        "openai_route": "/v1/chat/completions",
        "openai_input": {"messages": MESSAGES, "response_format": FORMAT},
    }
    (body,) = queue.wait(queue.submit(openai_job)).output
    check(body["choices"][0]["message"]["content"])
    for params in (
        {"structured_outputs": {"regex": PHONE}},
        {"guided_decoding": {"regex": PHONE, "backend": "xgrammar"}},
        {"guided_regex": PHONE},
    ):
        job = {"prompt": "Call me:", "sampling_params": {**params, "max_tokens": 60, "temperature": 1.0}}
        record = queue.wait(queue.submit(job))
        assert record.status == "COMPLETED", record.error
        (body,) = record.output
        assert re.fullmatch(PHONE, body["choices"][0]["text"])
    bad = queue.wait(queue.submit({"prompt": "x", "sampling_params": {"guided_regex": "("}}))
    assert "guided_regex" in json.dumps([bad.output, bad.error])
