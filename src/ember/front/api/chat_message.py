"""From a sample's output to the fields of a chat message, or of a delta."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ember.front.api.samples import Piece
from ember.front.text.output import Content, Delta, Reasoning, ToolCallArguments, ToolCallStart


def message_fields(piece: Piece, is_legacy: bool) -> dict[str, Any]:
    """The fields of a whole message: `content`, `reasoning` (under both of its names) and the calls.

    Content is null beside calls or reasoning where there is none, and where calls were demanded: white space that led
    to a call is no content.
    """
    content, reasoning, calls = _joined(piece)
    whole = [
        {
            "id": call["id"],
            "type": "function",
            "function": {"name": call["name"], "arguments": "".join(call["arguments"])},
        }
        for call in calls.values()
    ]
    shown: str | None = content
    if (whole and not content.strip()) or (not content and (reasoning or not piece.has_content)):
        shown = None
    fields: dict[str, Any] = {
        "content": shown,
        "refusal": None,
        "annotations": None,
        "audio": None,
        "function_call": None,
        "reasoning": reasoning or None,
        "reasoning_content": reasoning or None,
    }
    if whole and is_legacy:
        fields["function_call"] = whole[0]["function"]
    elif whole:
        fields["tool_calls"] = whole
    return fields


def delta_fields(piece: Piece, is_legacy: bool) -> dict[str, Any]:
    """The fields of a chunk's delta: only what is new. A call has its id, type and name in its first delta."""
    content, reasoning, calls = _joined(piece)
    fields: dict[str, Any] = {}
    if reasoning:
        fields["reasoning"] = fields["reasoning_content"] = reasoning
    if content:
        fields["content"] = content
    entries = [_call_delta(index, call) for index, call in calls.items()]
    if entries and is_legacy:
        fields["function_call"] = entries[0]["function"]
    elif entries:
        fields["tool_calls"] = entries
    return fields


def _call_delta(index: int, call: dict[str, Any]) -> dict[str, Any]:
    function = {"arguments": "".join(call["arguments"])}
    if "name" not in call:
        return {"index": index, "function": function}
    return {"index": index, "id": call["id"], "type": "function", "function": {"name": call["name"], **function}}


def _joined(piece: Piece) -> tuple[str, str, dict[int, dict[str, Any]]]:
    """The content, the reasoning, and the parts of each call by its index."""
    if not piece.deltas:
        return piece.text, "", {}
    calls: dict[int, dict[str, Any]] = {}
    for delta in piece.deltas:
        if isinstance(delta, ToolCallStart):
            calls.setdefault(delta.index, {"arguments": []}).update(id=delta.id, name=delta.name)
        elif isinstance(delta, ToolCallArguments):
            calls.setdefault(delta.index, {"arguments": []})["arguments"].append(delta.text)
    return _text(piece.deltas, Content), _text(piece.deltas, Reasoning), calls


def _text(deltas: Iterable[Delta], kind: type[Content] | type[Reasoning]) -> str:
    return "".join([delta.text for delta in deltas if isinstance(delta, kind)])
