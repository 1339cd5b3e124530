"""The objects of a response: its items, itself, and the events of its stream."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ember.front.api.blocks import Block, BlockDelta, BlockEnd, BlockEvent, BlockReader, BlockStart, is_cut
from ember.front.api.call import ApiCall
from ember.front.api.exchange import Event, new_id
from ember.front.api.logprobs import chat_logprobs
from ember.front.api.responses.items import seal
from ember.front.api.responses.schemas import ResponsesRequest
from ember.front.api.responses.store import UNFINISHED
from ember.front.api.responses.translate import ENCRYPTED, LOGPROBS, namespaces
from ember.front.api.runs import Runs
from ember.front.api.samples import Piece
from ember.front.api.streaming import json_text
from ember.front.errors import ApiError, aborted
from ember.wire import TokenLogprobs

_PREFIXES = {"reasoning": "rs_", "text": "msg_", "call": "fc_"}


@dataclass(slots=True)
class Reply:
    """A response while it is made. `token_ids` are those of its output, where the request wants to see them."""

    call: ApiCall
    request: ResponsesRequest
    is_stored: bool
    reader: BlockReader = field(default_factory=BlockReader)
    ids: dict[int, str] = field(default_factory=dict)  # of items, by their place
    last: Piece | None = None
    token_ids: list[int] = field(default_factory=list)
    namespaces: dict[str, tuple[str, str]] = field(init=False)

    def __post_init__(self) -> None:
        self.namespaces = namespaces(self.request)

    def push(self, piece: Piece) -> list[BlockEvent]:
        self.last = piece
        if self.request.enable_response_messages:
            self.token_ids += piece.token_ids
        return self.reader.push(piece)

    def item(self, block: Block, status: str) -> dict[str, Any]:
        """The item of a block. One that has just begun is empty."""
        item_id = self.ids.setdefault(block.index, new_id(_PREFIXES[block.kind]))
        text = block.text
        if block.kind == "reasoning":
            content = [{"type": "reasoning_text", "text": text}] if text else []
            item: dict[str, Any] = {"id": item_id, "type": "reasoning", "summary": [], "content": content}
            wants_seal = ENCRYPTED in (self.request.include or ())
            return {**item, "encrypted_content": seal(text) if wants_seal and text else None, "status": status}
        if block.kind == "text":
            content = [self.text_part(block)] if text else []
            return {"id": item_id, "type": "message", "role": "assistant", "status": status, "content": content}
        namespace, name = self.namespaces.get(block.name, (None, block.name))
        own = {} if namespace is None else {"namespace": namespace}
        named = {"call_id": block.id, "name": name, **own, "arguments": text}
        return {"id": item_id, "type": "function_call", **named, "status": status}

    def text_part(self, block: Block, text: str | None = None) -> dict[str, Any]:
        logprobs = self.logprobs(block.logprobs) if text is None else []
        return {
            "type": "output_text",
            "text": block.text if text is None else text,
            "annotations": [],
            "logprobs": logprobs,
        }

    def logprobs(self, entries: Sequence[TokenLogprobs]) -> list[dict[str, Any]]:
        if LOGPROBS not in (self.request.include or ()):
            return []
        found: list[dict[str, Any]] = chat_logprobs(entries, self.request.top_logprobs or 0, self.call.names)["content"]
        return found

    def items(self) -> list[dict[str, Any]]:
        """The items of the output. The last one is incomplete where the output was cut, or has not ended."""
        blocks = self.reader.blocks
        statuses = ["completed"] * len(blocks)
        if blocks and (self.last is None or self.last.finish_reason is None or is_cut(self.last, blocks)):
            statuses[-1] = "incomplete"
        return [self.item(block, status) for block, status in zip(blocks, statuses, strict=True)]

    def body(self, status: str, runs: Runs | None = None, error: ApiError | None = None) -> dict[str, Any]:
        """The response object. With `runs` it has its usage."""
        request = self.request
        sampling = self.call.specs[0].sampling
        reasoning = request.reasoning or {}
        return {
            "id": self.call.id,
            "object": "response",
            "created_at": self.call.created,
            "completed_at": int(time.time()) if status == "completed" else None,
            "status": status,
            "background": bool(request.background),
            "error": None if error is None else {"code": "server_error", "message": error.message},
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "instructions": request.instructions,
            "max_output_tokens": request.max_output_tokens,
            "max_tool_calls": request.max_tool_calls,
            "metadata": request.metadata or {},
            "model": self.call.services.model_name,
            "output": [] if status in UNFINISHED else self.items(),
            "parallel_tool_calls": request.parallel_tool_calls is not False,
            "previous_response_id": request.previous_response_id,
            "prompt": None,
            "prompt_cache_key": request.prompt_cache_key,
            "reasoning": {"effort": reasoning.get("effort"), "summary": reasoning.get("summary")},
            "safety_identifier": request.safety_identifier,
            "service_tier": request.service_tier or "auto",
            "store": self.is_stored,
            "temperature": sampling.temperature,
            "text": {"format": {"type": "text"}, **(request.text or {})},
            "tool_choice": request.tool_choice or "auto",
            "tools": request.tools or [],
            "top_logprobs": request.top_logprobs or 0,
            "top_p": sampling.top_p,
            "truncation": request.truncation or "disabled",
            "usage": None if runs is None else usage(runs),
            "user": request.user,
            **self._raw_messages(status),
        }

    def _raw_messages(self, status: str) -> dict[str, Any]:
        """The texts and tokens of prompt and output as the model has them, of a response that is over."""
        if not self.request.enable_response_messages or status in UNFINISHED:
            return {}
        prompt = self.call.specs[0].prompt
        output = self.call.services.tokenizer.decode_exact(self.token_ids)
        return {
            "input_messages": [_raw_message(prompt.text or "", prompt.token_ids)],
            "output_messages": [_raw_message(output, self.token_ids)],
        }

    def finished(self, runs: Runs) -> dict[str, Any]:
        """The response object at the end."""
        if self.last is not None and self.last.finish_reason == "abort":
            return self.body("failed", runs, aborted())
        was_cut = self.last is not None and is_cut(self.last, self.reader.blocks)
        return self.body("incomplete" if was_cut else "completed", runs)


def _raw_message(text: str, token_ids: Sequence[int]) -> dict[str, Any]:
    return {"type": "raw_message_tokens", "message": text, "tokens": list(token_ids)}


def usage(runs: Runs) -> dict[str, Any]:
    prompt, output = runs.prompt_tokens(), runs.completion_tokens()
    return {
        "input_tokens": prompt,
        "input_tokens_details": {"cached_tokens": runs.cached_tokens(), "cache_write_tokens": 0},
        "output_tokens": output,
        "output_tokens_details": {"reasoning_tokens": runs.reasoning_tokens()},
        "total_tokens": prompt + output,
    }


class ResponseEvents:
    """Writes the events of one stream, numbered in their order."""

    def __init__(self, reply: Reply) -> None:
        self._reply = reply
        self._number = 0
        self.body: dict[str, Any] | None = None  # the response at its end

    def created(self, status: str = "in_progress") -> Event:
        """The first event."""
        return self._event("response.created", response=self._reply.body(status))

    def opening(self, runs: Runs) -> Sequence[Event]:
        body = self._reply.body("in_progress")
        created = [self.created()] if self._number == 0 else []
        return [*created, self._event("response.in_progress", response=body)]

    def deltas(self, piece: Piece, runs: Runs) -> Sequence[Event]:
        return [event for found in self._reply.push(piece) for event in self._of(found)]

    def closing(self, runs: Runs) -> Sequence[Event]:
        self.body = self._reply.finished(runs)
        return [self._event(f"response.{self.body['status']}", response=self.body)]

    def failed(self, error: ApiError) -> Event:
        """The last event of a response that failed in the middle."""
        self.body = self._reply.body("failed", error=error)
        return self._event("response.failed", response=self.body)

    def cancelled(self) -> Event:
        """The last event of a response that was cancelled. Clients know no event of that name, so it is the one for a
        failure, and the status in it says what happened."""
        self.body = self._reply.body("cancelled")
        return self._event("response.failed", response=self.body)

    def _of(self, found: BlockEvent) -> list[Event]:
        block = found.block
        if isinstance(found, BlockStart):
            return self._begin(block)
        place = {"item_id": self._reply.ids[block.index], "output_index": block.index}
        part = {**place, "content_index": 0}
        if isinstance(found, BlockDelta):
            if block.kind == "call":
                return [self._event("response.function_call_arguments.delta", **place, delta=found.text)]
            if block.kind == "reasoning":
                return [self._event("response.reasoning_text.delta", **part, delta=found.text)]
            logprobs = self._reply.logprobs(found.logprobs)
            return [self._event("response.output_text.delta", **part, delta=found.text, logprobs=logprobs)]
        assert isinstance(found, BlockEnd)
        return self._end(block, place, part)

    def _begin(self, block: Block) -> list[Event]:
        item = self._reply.item(Block(block.kind, block.index, block.id, block.name), "in_progress")
        place = {"item_id": item["id"], "output_index": block.index}
        events = [self._event("response.output_item.added", output_index=block.index, item=item)]
        if block.kind != "call":
            empty = self._part(block, "")
            events.append(self._event("response.content_part.added", **place, content_index=0, part=empty))
        return events

    def _end(self, block: Block, place: dict[str, Any], part: dict[str, Any]) -> list[Event]:
        text = block.text
        events = []
        if block.kind == "call":
            kind = "response.function_call_arguments.done"
            name = self._reply.item(block, "in_progress")["name"]
            events.append(self._event(kind, **place, name=name, arguments=text))
        elif block.kind == "reasoning":
            events.append(self._event("response.reasoning_text.done", **part, text=text))
        else:
            logprobs = self._reply.logprobs(block.logprobs)
            events.append(self._event("response.output_text.done", **part, text=text, logprobs=logprobs))
        if block.kind != "call":
            events.append(self._event("response.content_part.done", **part, part=self._part(block)))
        last, blocks = self._reply.last, self._reply.reader.blocks
        was_cut = block is blocks[-1] and last is not None and is_cut(last, blocks)
        item = self._reply.item(block, "incomplete" if was_cut else "completed")
        events.append(self._event("response.output_item.done", output_index=block.index, item=item))
        return events

    def _part(self, block: Block, text: str | None = None) -> dict[str, Any]:
        if block.kind == "reasoning":
            return {"type": "reasoning_text", "text": block.text if text is None else text}
        return self._reply.text_part(block, text)

    def _event(self, kind: str, **fields: Any) -> Event:
        number, self._number = self._number, self._number + 1
        return Event(json_text({"type": kind, "sequence_number": number, **fields}), kind)
