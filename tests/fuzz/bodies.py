"""What requests are made of: values that are worth trying in each field, and bodies of them."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from ember.front.api.schemas import ChatRequest, CompletionRequest, GenerationRequest
from tests.api.fakes import VOCAB_SIZE

CONTEXT = 256  # tokens

text = st.text(max_size=12)
number = st.one_of(st.integers(-3, 40), st.floats(-3, 3), st.sampled_from([0, 1, -1, 2**31, 2**63, 1e308]))
word = st.text(alphabet="abelo ,.é😀", min_size=1, max_size=6)
token_ids = st.lists(st.integers(0, VOCAB_SIZE - 1), min_size=1, max_size=6)
scalar = st.one_of(st.none(), st.booleans(), number, st.floats(), text)
junk = st.recursive(scalar, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3))
switch = st.one_of(st.booleans(), st.none())

PARTS = ["text", "input_text", "refusal", "thinking"]
part = st.one_of(
    text,
    st.fixed_dictionaries(
        {"type": st.sampled_from(["text", "input_text", "refusal", "thinking"])}, optional={}
    ).flatmap(lambda head: text.map(lambda value: {**head, "text": value, "refusal": value, "thinking": value})),
    st.just({"type": "image_url", "image_url": {"url": "http://x"}}),
    junk,
)
schema = st.sampled_from(
    [
        {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
        {"type": "string", "maxLength": 3},
        {"enum": ["x", 1, None]},
        {"type": "array", "items": {"$ref": "#"}},
        {"type": "nonsense"},
        {},
    ]
)
sound_tool = st.builds(
    lambda name, parameters, strict: {
        "type": "function",
        "function": {"name": name, "parameters": parameters, "strict": strict},
    },
    st.sampled_from(["f", "f", "g"]),
    schema,
    switch,
)
EMPTY_OBJECT = {"type": "object", "additionalProperties": False}
SHORT_TOOL = {"type": "function", "function": {"name": "f", "parameters": EMPTY_OBJECT}}
FIRST_TOOL = {"type": "function", "function": {"name": "f"}}
tool = st.one_of(sound_tool, st.dictionaries(text, junk, max_size=2))
call = st.builds(
    lambda name, arguments: {"id": "c", "type": "function", "function": {"name": name, "arguments": arguments}},
    text,
    st.one_of(st.just('{"a": 1}'), text, junk),
)
message = st.fixed_dictionaries(
    {
        "role": st.sampled_from(["user", "user", "assistant", "system", "developer", "tool", "forbidden"]),
        "content": st.one_of(text, st.none(), st.lists(part, max_size=3)),
    },
    optional={"reasoning": text, "reasoning_content": text, "tool_calls": st.lists(call, max_size=2), "name": text},
)
TEMPLATES = ["{{ messages[0].content }}", "{% for m in messages %}{{ m.content }}.{% endfor %}", "{% if", "{{ 1 / 0 }}"]
FORMATS = st.one_of(
    st.builds(lambda kind: {"type": kind}, st.sampled_from(["text", "json_object", "json_schema"])),
    st.builds(lambda inner: {"type": "json_schema", "json_schema": {"name": "s", "schema": inner}}, schema),
    st.dictionaries(text, junk, max_size=2),
)

# Values that are accepted, by themselves at least.
LIKELY: dict[str, st.SearchStrategy[Any]] = {
    "model": st.sampled_from(["org/tiny", ""]),
    "messages": st.lists(message, min_size=1, max_size=3),
    "prompt": st.one_of(word, token_ids, st.lists(word, min_size=1, max_size=3), st.lists(token_ids, max_size=3)),
    "n": st.integers(1, 4),
    "best_of": st.integers(1, 5),
    "use_beam_search": switch,
    "length_penalty": st.floats(-2, 2),
    "early_stopping": st.sampled_from([True, False, "never"]),
    "max_tokens": st.integers(1, 12),
    "max_completion_tokens": st.integers(1, 12),
    "min_tokens": st.integers(0, 8),
    "temperature": st.sampled_from([0, 0.001, 0.7, 2]),
    "top_p": st.sampled_from([0.1, 0.9, 1]),
    "top_k": st.integers(-1, 5),
    "min_p": st.floats(0, 1),
    "frequency_penalty": st.floats(-2, 2),
    "presence_penalty": st.floats(-2, 2),
    "repetition_penalty": st.floats(0.5, 2),
    "seed": st.integers(-(2**63), 2**63 - 1),
    "logit_bias": st.dictionaries(st.integers(255, VOCAB_SIZE - 1).map(str), st.floats(-200, 200), max_size=3),
    "allowed_token_ids": token_ids,
    "stop_token_ids": token_ids,
    "logprob_token_ids": token_ids,
    "bad_words": st.lists(word.map(lambda given: given + "a"), max_size=3),
    "stop": st.one_of(word, st.lists(word, max_size=4)),
    "top_logprobs": st.integers(0, 20),
    "prompt_logprobs": st.integers(0, 20),
    "stream": switch,
    "stream_options": st.fixed_dictionaries({}, optional={"include_usage": switch, "continuous_usage_stats": switch}),
    "stream_interval": st.integers(1, 9),
    "repetition_detection": st.builds(
        lambda smallest, more, count: {
            "max_pattern_size": smallest + more,
            "min_pattern_size": smallest,
            "min_count": count,
        },
        *(st.integers(0, 3), st.integers(0, 3), st.integers(2, 4)),
    ),
    "truncate_prompt_tokens": st.integers(-1, CONTEXT - 1),
    "truncation_side": st.sampled_from(["left", "right"]),
    "response_format": FORMATS,
    "structured_outputs": st.one_of(
        st.builds(lambda inner: {"json": inner}, schema),
        st.sampled_from([{"regex": "[ab]+"}, {"choice": ["a", "bé"]}, {"grammar": "root ::= 'a' | 'b'"}]),
        st.sampled_from([{"json_object": True}, {"regex": "a", "choice": ["a"]}, {}, {"structural_tag": "x"}]),
    ),
    "guided_json": schema,
    "guided_regex": st.sampled_from(["[ab]{2}", "(", "a*"]),
    "guided_choice": st.lists(word, max_size=3),
    "guided_grammar": st.sampled_from(['start: "a" | "b"', "root ::= 'a'", "nonsense"]),
    "tools": st.lists(tool, max_size=2),
    "tool_choice": st.one_of(
        st.sampled_from(["none", "auto", "required"]),
        st.just({"type": "function", "function": {"name": "f"}}),
    ),
    "reasoning_effort": st.sampled_from(["none", "low", "high"]),
    "thinking_token_budget": st.integers(-1, 8),
    "chat_template_kwargs": st.dictionaries(st.sampled_from(["enable_thinking", "tools", "x"]), junk, max_size=2),
    "functions": st.just([]),
    "function_call": st.just("none"),
    "documents": st.lists(st.dictionaries(text, junk, max_size=2), max_size=2),
    "suffix": st.sampled_from(["", "x"]),
    "cache_salt": word,
    "request_id": text,
    "priority": st.integers(-3, 3),
}
LIKELY_LOGPROBS = {ChatRequest: st.booleans(), CompletionRequest: st.integers(0, 20)}
# Fields that schemas keep without declaring them.
UNDECLARED = [
    "structured_outputs", "guided_json", "guided_regex", "guided_choice", "guided_grammar", "thinking_token_budget",
    "user", "unknown", "vllm_xargs", "kv_transfer_params", "prompt_embeds", "functions", "function_call",
]  # fmt: skip

CALLS = {
    "tools": st.lists(sound_tool, max_size=1).map(lambda others: [SHORT_TOOL, *others]),
    "tool_choice": st.sampled_from([None, "auto", "required", "required", "none", FIRST_TOOL]),
    "max_tokens": st.integers(1, 90),
    "parallel_tool_calls": switch,
    "thinking_token_budget": st.sampled_from([None, -1, 0, 3]),
    "include_reasoning": switch,
}
FORMS = {
    "structured_outputs": LIKELY["structured_outputs"],
    "response_format": FORMATS,
    **{name: LIKELY[name] for name in ("guided_json", "guided_regex", "guided_choice", "guided_grammar")},
}
one_form = st.sampled_from(sorted(FORMS)).flatmap(lambda name: st.fixed_dictionaries({name: FORMS[name]}))


def body_of(
    model: type[GenerationRequest], required: str, always: dict[str, st.SearchStrategy[Any]] | None = None
) -> st.SearchStrategy[dict[str, Any]]:
    """A short request, streamed or not, with a few fields more; often one of all of them is odd."""
    names = sorted({*model.model_fields, *UNDECLARED} - {"chat_template", required})
    likely = {**LIKELY, "logprobs": LIKELY_LOGPROBS[model]}

    def of(chosen: list[str]) -> st.SearchStrategy[dict[str, Any]]:
        return st.fixed_dictionaries({name: likely.get(name, switch) for name in chosen})

    fields = st.lists(st.sampled_from(names), max_size=6, unique=True).flatmap(of)
    small = st.fixed_dictionaries({"max_tokens": st.integers(1, 8), "stream": st.booleans(), **(always or {})})
    odd = st.one_of(st.just({}), st.just({}), st.dictionaries(st.sampled_from([*names, required]), junk, max_size=1))
    sound = {"messages": [{"role": "user", "content": "hello"}], "prompt": "hello"}[required]
    heads = st.just(sound) if always else st.one_of(st.just(sound), LIKELY[required])
    head = heads.map(lambda given: {required: given})
    parts = (head, fields, small, odd) if always else (head, small, fields, odd)
    return st.builds(lambda *parts: {key: part[key] for part in parts for key in part}, *parts)
