"""Whatever the body of the routes of agents and of TGI: an answer or an ApiError below 500, never anything else."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ember.front.api.anthropic.schemas import CountTokensRequest, MessagesRequest
from ember.front.api.generative_scoring import GenerativeScoringRequest
from ember.front.api.responses.schemas import InputTokensRequest, ResponsesRequest
from ember.front.api.scale_out.schemas import DerenderChatRequest, DerenderCompletionRequest, TokensRequest
from ember.front.api.schemas import CompletionRequest
from ember.front.api.tgi.schemas import TgiParameters
from tests.api.fakes import Deployment
from tests.api.talking import talking
from tests.api.test_bodies import SOME, bodies, chats, check, keys, scalars, values

KINDS = st.sampled_from(
    [
        *("text", "thinking", "redacted_thinking", "tool_use", "tool_result", "document", "search_result", "image"),
        *("input_text", "output_text", "reasoning_text", "message", "reasoning", "function_call", "item_reference"),
        *("function_call_output", "function", "namespace", "custom", "web_search", "enabled", "json_schema", "tool"),
    ]
)
NAMES = st.sampled_from(
    [
        *("text", "thinking", "id", "name", "input", "tool_use_id", "content", "source", "data", "call_id", "output"),
        *("arguments", "summary", "encrypted_content", "status", "namespace", "tools", "input_schema", "parameters"),
        *("budget_tokens", "schema", "format", "title", "strict", "mode"),
    ]
)
blocks = st.builds(
    lambda kind, fields: {"type": kind, **fields}, KINDS, st.dictionaries(NAMES | keys, values, max_size=4)
)
inner = values | blocks | st.lists(blocks, max_size=3)
talk = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "assistant", "system", "developer", "ctx", "x"])}, optional={"content": inner}
    )
    | blocks,
    max_size=4,
)
shared = {"tools": inner, "tool_choice": inner}
anthropic = {"messages": talk, **shared, "system": inner, "thinking": inner, "output_config": inner}
responses = {"input": talk | scalars, **shared, "text": st.fixed_dictionaries({"format": inner}), "reasoning": inner}
ids = st.lists(st.integers(-1, 300), max_size=4)
prompt, labels = {"token_ids": ids | inner}, {"label_token_ids": ids | inner}
options = bodies(CompletionRequest, ["detokenize"])
scored = st.fixed_dictionaries({}, optional={"content": st.lists(st.fixed_dictionaries({"token_id": ids | inner}))})
choices = st.fixed_dictionaries(
    {"index": st.integers(0, 3)},
    optional={
        "token_ids": ids | inner,
        "finish_reason": st.sampled_from(["stop", "length", "abort", "error", "tool_calls", None, "x"]),
        "logprobs": scored | inner,
    },
)
generated = st.fixed_dictionaries({"choices": st.lists(choices, min_size=1, max_size=3) | inner}) | inner
ROUTES = {
    "/v1/messages": bodies(MessagesRequest, ["novel"], max_tokens=st.integers(0, 3000), **anthropic),
    "/v1/messages/count_tokens": bodies(CountTokensRequest, ["novel"], **anthropic),
    "/v1/responses": bodies(ResponsesRequest, ["novel"], **responses),
    "/v1/responses/input_tokens": bodies(InputTokensRequest, ["novel"], **responses),
    "/generative_scoring": bodies(GenerativeScoringRequest, ["novel"], query=inner, items=st.lists(inner), **labels),
    "/inference/v1/generate": bodies(TokensRequest, ["novel"], sampling_params=options, **prompt),
    "/v1/chat/completions/derender": bodies(
        DerenderChatRequest, ["novel"], generate_response=generated, chat_request=chats | st.none()
    ),
    "/v1/completions/derender": bodies(
        DerenderCompletionRequest, ["novel"], generate_responses=st.lists(generated, max_size=3)
    ),
    "/generate": st.fixed_dictionaries(
        {"inputs": st.text(max_size=9) | scalars}, optional={"parameters": bodies(TgiParameters, ["novel"])}
    ),
}


@pytest.fixture(scope="module")
def deployment() -> Deployment:
    return talking(enable_scale_out=True)


FEW = settings(SOME, max_examples=40)  # for routes that read their bodies as those beside them do
FEW_OF = ("tokens", "/derender", "/generative_scoring", "/inference/v1/generate")


@pytest.mark.parametrize("path", ROUTES)
def test_no_body_is_a_server_error(deployment: Deployment, path: str) -> None:
    @(FEW if path.endswith(FEW_OF) else SOME)
    @given(body=ROUTES[path])
    def run(body: Any) -> None:
        check(deployment, path, body)

    run()
