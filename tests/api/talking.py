"""A deployment whose model reasons in <think> and calls tools as Hermes does, and ways to read its streams."""

from __future__ import annotations

from typing import Any

import msgspec

from ember.front.text.reasoning import choose_reasoning_format
from ember.front.text.tools import choose_tool_format
from tests.api.fakes import Deployment
from tests.support.byte_tokenizer import byte_tokenizer

TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>"
    "{% if message.reasoning_content %}<think>{{ message.reasoning_content }}</think>{% endif %}{{ message.content }}"
    "{% for call in message.tool_calls or [] %}"
    '<tool_call>{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}</tool_call>'
    "{% endfor %}{% endfor %}"
    "{% if tools %}<tools>{% for tool in tools %}{{ tool.function.name }} {% endfor %}</tools>{% endif %}"
    "{% if add_generation_prompt %}<|assistant|>"
    "{% if enable_thinking is defined %}{{ '<think>\n' if enable_thinking else '<think></think>' }}{% endif %}"
    "{% endif %}"
)
ADD: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "add",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
            "required": ["a", "b"],
        },
    },
}
SUB: dict[str, Any] = {"type": "function", "function": {"name": "sub", "parameters": {"type": "object"}}}
CALL_ADD = '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": 2}}\n</tool_call>'
CALL_SUB = '<tool_call>\n{"name": "sub", "arguments": {"x": "é🦜"}}\n</tool_call>'


def talking(**settings: Any) -> Deployment:
    tokenizer = byte_tokenizer(
        ("<|user|>", "<|assistant|>", "<|system|>", "<|tool|>"),
        ("<think>", "</think>", "<tool_call>", "</tool_call>"),
    )
    deployment = Deployment(tokenizer, **settings)
    deployment.use_template(TEMPLATE)
    deployment.engine._info = msgspec.structs.replace(deployment.engine.info, max_model_len=4096)
    deployment.services.tool_format = choose_tool_format(TEMPLATE, None, "org/tiny", "hermes")[0]
    deployment.services.reasoning_format = choose_reasoning_format(TEMPLATE, None, "org/tiny", "qwen3")[0]
    return deployment


def message_of(chunks: list[Any], choice: int = 0) -> dict[str, Any]:
    """The message that the chunks of a stream add up to, as a client would put it together."""
    message: dict[str, Any] = {"content": None, "reasoning": None, "tool_calls": []}
    for chunk in chunks:
        for part in chunk["choices"]:
            if part["index"] != choice:
                continue
            delta = part["delta"]
            assert delta.get("reasoning") == delta.get("reasoning_content")
            for name in ("content", "reasoning"):
                if delta.get(name):
                    message[name] = (message[name] or "") + delta[name]
            for call in delta.get("tool_calls", ()):
                if call["index"] == len(message["tool_calls"]):
                    assert call["type"] == "function"
                    assert call["id"]
                    message["tool_calls"].append({"id": call["id"], "type": "function", "function": {"arguments": ""}})
                    message["tool_calls"][-1]["function"]["name"] = call["function"]["name"]
                else:
                    assert set(call) == {"index", "function"}
                    assert set(call["function"]) == {"arguments"}
                message["tool_calls"][call["index"]]["function"]["arguments"] += call["function"]["arguments"]
            message["finish_reason"] = part["finish_reason"]
    return message
