"""Fields that demand a form of the output: what reaches the engine, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from ember import wire
from ember.front.errors import ApiError
from ember.front.text.json_schema import schema_grammar
from tests.api.fakes import Deployment, refused
from tests.structured.random_schemas import matcher_of

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
TAG = {"format": {"type": "tag", "begin": "<f>", "content": {"type": "json_schema", "json_schema": SCHEMA}, "end": "."}}
OLD_TAG = {"structures": [{"begin": "<f>", "schema": SCHEMA, "end": "</f>"}], "triggers": ["<f"]}
PLACES: list[Callable[[Deployment, dict[str, Any]], Any]] = [
    lambda deployment, fields: deployment.chat(**fields),
    lambda deployment, fields: deployment.complete(**fields),
    lambda deployment, fields: deployment.stream_chat(**fields),
]


def grammar(deployment: Deployment, **fields: Any) -> wire.Grammar:
    """Of one request; the same wherever it is asked."""
    grammars = []
    for ask in PLACES:
        ask(deployment, fields)
        grammars.append(deployment.engine.sampling.grammar)
    assert grammars[0] is not None and grammars.count(grammars[0]) == len(PLACES)
    return grammars[0]


def response_format(schema: Any, **fields: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, **fields}}


JSON_FIELDS: list[tuple[dict[str, Any], str]] = [
    ({"response_format": response_format(SCHEMA, strict=True, description="an answer")}, "response_format"),
    ({"response_format": {"type": "json_object", "schema": SCHEMA}}, "response_format"),
    ({"structured_outputs": {"json": SCHEMA}}, "structured_outputs.json"),
    ({"structured_outputs": {"json": json.dumps(SCHEMA), "regex": None}}, "structured_outputs.json"),
    ({"guided_decoding": {"json": SCHEMA, "backend": "xgrammar:no-fallback"}}, "guided_decoding.json"),
    ({"guided_json": SCHEMA, "guided_decoding_backend": "outlines"}, "guided_json"),
    ({"guided_json": json.dumps(SCHEMA), "response_format": {"type": "text"}}, "guided_json"),
]


@pytest.mark.parametrize(("fields", "param"), JSON_FIELDS)
def test_a_schema_under_every_name(deployment: Deployment, fields: dict[str, Any], param: str) -> None:
    made = grammar(deployment, **fields)
    assert made == wire.Grammar("json", schema_grammar(SCHEMA), param)


@pytest.mark.parametrize(
    "fields",
    [
        {"response_format": {"type": "json_object"}},
        {"structured_outputs": {"json_object": True}},
        {"guided_json_object": True},
    ],
)
def test_any_object(deployment: Deployment, fields: dict[str, Any]) -> None:
    made = grammar(deployment, **fields)
    assert (made.kind, made.text) == ("json", schema_grammar({"type": "object"}))


@pytest.mark.parametrize(
    ("value", "kind", "text"),
    [
        ({"regex": r"a\d"}, "regex", "a[0-9]"),
        ({"choice": ["a", 'b"', "a"]}, "lark", 'start: CHOICE\nCHOICE: "a" | "b\\""'),
        ({"grammar": 'root ::= "a"'}, "gbnf", 'root ::= "a"'),
        ({"grammar": 'start: "a ::= b"'}, "lark", 'start: "a ::= b"'),
        ({"grammar": '?start: "a"'}, "lark", '?start: "a"'),
        ({"grammar": 'start: "/a**/" /b\\/+/ // c**/'}, "lark", 'start: "/a**/" /b\\/+/ // c**/'),
    ],
)
def test_the_other_kinds_and_their_old_names(
    deployment: Deployment, value: dict[str, Any], kind: str, text: str
) -> None:
    (name,) = value
    for fields, param in (
        ({"structured_outputs": value}, f"structured_outputs.{name}"),
        ({f"guided_{name}": value[name]}, f"guided_{name}"),
    ):
        assert grammar(deployment, **fields) == wire.Grammar(kind, text, param)


@pytest.mark.parametrize("tag", [TAG, OLD_TAG])
def test_structural_tags_in_every_place(deployment: Deployment, tag: dict[str, Any]) -> None:
    made = [
        grammar(deployment, response_format={"type": "structural_tag", **tag}),
        grammar(deployment, structured_outputs={"structural_tag": json.dumps({"type": "structural_tag", **tag})}),
        grammar(deployment, structural_tag=tag),
    ]
    assert [one.param for one in made] == ["response_format", "structured_outputs.structural_tag", "structural_tag"]
    assert len({(one.kind, one.text) for one in made}) == 1
    assert made[0].kind == "lark"
    matcher_of(made[0].text)


def test_nothing_demanded(deployment: Deployment) -> None:
    neutral = {"response_format": {"type": "text"}, "guided_json_object": False, "guided_decoding_backend": "auto"}
    for ask in PLACES:
        for fields in ({}, neutral, {"structured_outputs": None, "guided_json": None}):
            ask(deployment, fields)
            assert deployment.engine.sampling.grammar is None
    answer = deployment.request("POST", "/v1/completions", {"prompt": "hi", **neutral})
    assert "X-Ember-Ignored-Fields" not in answer.headers


@pytest.mark.parametrize(
    ("fields", "whitespace"),
    [
        ({"structured_outputs": {"json": {}, "disable_any_whitespace": True}}, ""),
        ({"structured_outputs": {"json_object": True, "whitespace_pattern": ""}}, ""),
        ({"structured_outputs": {"json": {}, "whitespace_pattern": "[ ]?"}}, "[ ]?"),
        ({"guided_json": {}, "guided_whitespace_pattern": r"[\s]{0,2}|\n"}, "[ \\t\\n\\r]{0,2}|\\n"),
        ({"guided_json": {}, "guided_whitespace_pattern": r"\s?"}, "[ \\t\\n\\r]?"),
        ({"guided_json": {}, "guided_whitespace_pattern": r"\s*"}, "[ \\t\\n\\r]{0,24}"),
        ({"guided_json": {}, "guided_whitespace_pattern": " +|\n{2,}?|\t{30,}"}, " {1,24}|\n{2,24}?|\t{30,30}"),
    ],
)
def test_whitespace(deployment: Deployment, fields: dict[str, Any], whitespace: str) -> None:
    schema = {"type": "object"} if "json_object" in str(fields) else {}
    assert grammar(deployment, **fields).text == schema_grammar(schema, whitespace=whitespace)


def test_options_reach_the_schemas_of_a_structural_tag(deployment: Deployment) -> None:
    options = {"disable_additional_properties": True, "disable_any_whitespace": True}
    made = matcher_of(grammar(deployment, structured_outputs={"structural_tag": TAG, **options}).text)
    for text, is_allowed in (('<f>{"a":1}.', True), ('<f>{"a": 1}.', False), ('<f>{"a":1,"b":1}.', False)):
        own = made.deep_copy()
        assert (own.try_consume_tokens(list(text.encode())) == len(text)) is is_allowed, text


def test_no_additional_properties_where_the_schema_says_nothing(deployment: Deployment) -> None:
    inner = {"properties": {"b": {"type": "object", "additionalProperties": {"type": "string"}}}}
    schema = {"type": "object", "properties": {"a": inner}}
    text = grammar(deployment, structured_outputs={"json": schema, "disable_additional_properties": True}).text
    assert text == schema_grammar(schema, closed=True) != schema_grammar(schema)


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"response_format": {"type": "json_schema"}}, "response_format", "When response_format type is 'json_schema', "),
    ({"response_format": {"type": "yaml"}}, "response_format", "must be one of text, json_object"),
    ({"response_format": response_format(None)}, "response_format", "`schema`"),
    ({"response_format": response_format(SCHEMA, strict="yes")}, "response_format", "json_schema.strict"),
    ({"response_format": response_format(SCHEMA, name=3)}, "response_format", "json_schema.name"),
    ({"response_format": response_format(False)}, "response_format", "allows nothing"),
    ({"response_format": response_format([SCHEMA])}, "response_format", "a schema is an object"),
    ({"response_format": {"type": "structural_tag"}}, "response_format", "`structures` and `triggers`"),
    (
        {"response_format": {"type": "json_object", "json_schema": {}}},
        "response_format",
        "demands the type 'json_schema'",
    ),
    ({"response_format": {"type": "text", "json_schema": {}}}, "response_format", "demands the type 'json_schema'"),
    (
        {"structured_outputs": {"regex": "a", "disable_additional_properties": True}},
        "structured_outputs.disable_additional_properties",
        "not with regex",
    ),
    ({"structured_outputs": {}}, "structured_outputs", "exactly one of json, regex"),
    ({"structured_outputs": {"regex": "a", "choice": ["a"]}}, "structured_outputs", "it has regex, choice"),
    ({"structured_outputs": {"jsn": {}}}, "structured_outputs", "unknown field 'jsn'"),
    ({"structured_outputs": {"json": "{"}}, "structured_outputs.json", "it is not JSON"),
    ({"structured_outputs": {"json_object": False}}, "structured_outputs.json_object", "must be true"),
    ({"structured_outputs": {"choice": []}}, "structured_outputs.choice", "at least one"),
    ({"structured_outputs": {"choice": [1]}}, "structured_outputs.choice", "list of at least one string"),
    ({"structured_outputs": {"grammar": ""}}, "structured_outputs.grammar", "non-empty string"),
    ({"structured_outputs": {"regex": "a\0"}}, "structured_outputs.regex", "NUL"),
    ({"structured_outputs": {"regex": "a*+"}}, "structured_outputs.regex", "possessive"),
    ({"structured_outputs": {"regex": "foo**"}}, "structured_outputs.regex", "nothing to repeat"),
    ({"guided_regex": "a{2}{3}"}, "guided_regex", "nothing to repeat"),
    ({"guided_grammar": 'start: "//" /a\\/b**/'}, "guided_grammar", "nothing to repeat"),
    ({"guided_regex": "x(?i)y"}, "guided_regex", "options"),
    ({"guided_json": {"pattern": "a{2}{3}"}}, "guided_json", "`pattern`"),
    ({"guided_json": {"patternProperties": {"^foo**": True}}}, "guided_json", "`patternProperties`"),
    ({"response_format": response_format({"minProperties": 2})}, "response_format", "`minProperties`"),
    ({"response_format": response_format({"uniqueItems": True})}, "response_format", "`uniqueItems`"),
    ({"guided_json": {}, "guided_whitespace_pattern": " **"}, "guided_whitespace_pattern", "nothing to repeat"),
    ({"guided_json": {}, "guided_whitespace_pattern": "( "}, "guided_whitespace_pattern", "cannot be used"),
    (
        {"structural_tag": {"format": {"type": "regex", "pattern": "b**"}}},
        "structural_tag",
        "nothing to repeat",
    ),
    (
        {"structured_outputs": {"json": {}, "disable_any_whitespace": 1}},
        "structured_outputs.disable_any_whitespace",
        "",
    ),
    (
        {"structured_outputs": {"json": {}, "disable_any_whitespace": True, "whitespace_pattern": " "}},
        "structured_outputs.whitespace_pattern",
        "both",
    ),
    (
        {"structured_outputs": {"regex": "a", "whitespace_pattern": " "}},
        "structured_outputs.whitespace_pattern",
        "cannot be used with `structured_outputs.regex`",
    ),
    ({"guided_choice": "yes"}, "guided_choice", "list of at least one string"),
    ({"guided_regex": ["a"]}, "guided_regex", "must be a non-empty string"),
    ({"guided_json": 3}, "guided_json", "a schema is an object"),
    ({"guided_json": {}, "guided_whitespace_pattern": "[^ ]"}, "guided_whitespace_pattern", "whitespace alone"),
    ({"guided_json": {}, "guided_whitespace_pattern": "x?"}, "guided_whitespace_pattern", "whitespace alone"),
    ({"guided_whitespace_pattern": " ?"}, "guided_whitespace_pattern", "needs `guided_json`"),
    ({"guided_regex": "a", "guided_json": {}}, "guided_regex", "`guided_json`, `guided_regex`"),
    (
        {"response_format": {"type": "json_object"}, "structured_outputs": {"regex": "a"}},
        "structured_outputs.regex",
        "one form of output",
    ),
    ({"guided_decoding": {"regex": "a"}, "guided_regex": "a"}, "guided_regex", "one form of output"),
    ({"guided_regex": "a", "use_beam_search": True}, "guided_regex", "use_beam_search"),
]


@pytest.mark.parametrize(("fields", "param", "words"), REFUSED)
def test_refused(deployment: Deployment, fields: dict[str, Any], param: str, words: str) -> None:
    for path, body in (
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}]}),
        ("/v1/completions", {"prompt": "hi"}),
    ):
        error = refused(deployment, path, {**body, **fields})
        assert (error.status, error.type, error.param) == (400, "BadRequestError", param)
        assert words in error.message and param.partition(".")[2] in error.message


def test_a_schema_nested_too_deep_is_refused(deployment: Deployment) -> None:
    schema: dict[str, Any] = {}
    for _ in range(100):
        schema = {"type": "array", "items": schema}
    error = refused(deployment, "/v1/completions", {"prompt": "hi", "guided_json": schema})
    assert error.param == "guided_json" and "64 levels" in error.message


# --------------------------------------------------------------------------------------- errors that the engine finds


def fails(param: str | None, after: int = 0) -> Any:
    """The engine answers with an error, behind so many tokens."""

    def script(prompt: list[int], sampling: wire.SamplingParams) -> list[list[wire.SequenceOutput]]:
        said = [[wire.SequenceOutput(1, 0, [5])] for _ in range(after)]
        error = wire.SequenceOutput(1, 0, [], finish_reason="error", error="it cannot be used", error_param=param)
        return [*said, [error]]

    return script


@pytest.mark.parametrize(("param", "status"), [("guided_regex", 400), (None, 500)])
def test_an_error_of_the_requests_own_is_a_400_that_names_the_field(
    deployment: Deployment, param: str | None, status: int
) -> None:
    deployment.engine.script = fails(param)
    for ask in (deployment.chat, deployment.complete, deployment.stream_chat, deployment.stream_completion):
        with pytest.raises(ApiError, match="it cannot be used") as caught:
            ask(guided_regex="a")
        assert (caught.value.status, caught.value.param) == (status, param)
    deployment.engine.script = fails(param, after=2)
    with pytest.raises(ApiError) as caught:
        deployment.stream_chat(guided_regex="a")
    assert (caught.value.status, caught.value.param, caught.value.message) == (status, param, "it cannot be used")
