"""Find out by rendering a short conversation in which form a chat template takes the tool calls of earlier turns.

Templates differ in three ways. Some read `arguments` as an object, others concatenate it as JSON text (DeepSeek R1,
V3). Some write calls only where the message's content is null (the R1 distillations). Some refuse ids that are not of
their own form (Mistral: nine letters and digits). The source of a template does not tell reliably, so it is rendered.
"""

from __future__ import annotations

import hashlib
import json
import re
import string
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, Protocol

from ember.front.text.template_error import TemplateError

_ALPHANUMERIC = string.ascii_letters + string.digits
_NAME, _KEY, _VALUE, _RESULT = "lookup_probe", "probe_key", "probe value", "probe result"
# Ids in the forms of clients and other servers. A template that renders all of these accepts any id.
_FOREIGN_IDS = (
    "call_m7FqAoh6SiKZNA0Jwm2LxRt0",
    "chatcmpl-tool-0f3a9c1d5b7e4a6f8c2d1e0b9a8f7c6d",
    f"functions.{_NAME}:0",
    "toolu_01A09q90qw90lq917835lq9",
    "a7",
)
_MAX_ID_LENGTH = 64


@dataclass(frozen=True, slots=True)
class IdForm:
    """The form of ids that a template accepts: `prefix`, then `length` characters of `alphabet`."""

    length: int
    prefix: str = ""
    alphabet: str = _ALPHANUMERIC

    def __str__(self) -> str:
        kind = "digits" if self.alphabet == string.digits else "letters and digits"
        return f"{self.prefix!r} and {self.length} {kind}" if self.prefix else f"{self.length} {kind}"

    def fits(self, call_id: str) -> bool:
        rest = call_id.removeprefix(self.prefix)
        return call_id.startswith(self.prefix) and len(rest) == self.length and not set(rest) - set(self.alphabet)

    def id_for(self, given: str, taken: Mapping[str, str]) -> str:
        """An id of this form for the id `given`. It is the same in every turn of a conversation, so that the prompt
        keeps its cached prefix. `taken` maps ids in use to the given ids that they replace."""
        if self.fits(given):
            return given
        for attempt in range(10_000):
            digest = hashlib.sha256(f"{attempt}:{given}".encode("utf-8", "replace")).digest()
            number = int.from_bytes(digest)
            made = ""
            for _ in range(self.length):
                number, index = divmod(number, len(self.alphabet))
                made += self.alphabet[index]
            made = self.prefix + made
            if taken.get(made, given) == given:
                return made
        raise TemplateError(f"the conversation has more tool calls than there are ids of {self}")


@dataclass(frozen=True, slots=True)
class HistoryForm:
    """The form in which tool calls of earlier turns are passed to a template."""

    arguments: Literal["object", "text"] = "object"
    empty_content: Literal["text", "null"] = "text"  # the content of a message that has only calls
    ids: IdForm | None = None  # None: the template accepts any id
    problem: str | None = None  # why no form of a call could be rendered

    def __str__(self) -> str:
        if self.problem is not None:
            return f"the chat template renders no tool call of an earlier turn: {self.problem}"
        said = f"arguments as {'an object' if self.arguments == 'object' else 'JSON text'}"
        if self.empty_content == "null":
            said += ", content null where there is none"
        return said + ("" if self.ids is None else f", ids of {self.ids} (the chat template refuses others)")


class Template(Protocol):
    """The part of `ChatTemplate` that the probe uses."""

    source: str

    @property
    def content_format(self) -> Literal["string", "openai"]: ...

    def render(
        self,
        messages: list[dict[str, Any]],
        *,
        tools: list[dict[str, Any]] | None = None,
        keep_null_content: bool = False,
    ) -> str: ...


def find_history_form(template: Template) -> HistoryForm:
    """Try the forms in the order of their frequency and return the first one that the template renders as a call.

    Raises TemplateError for a template that does not parse.
    """
    if "tool_calls" not in template.source:
        return HistoryForm()
    return _Probe(template).find()


@dataclass
class _Probe:
    template: Template

    def find(self) -> HistoryForm:
        candidates = [
            HistoryForm(arguments, empty_content)
            for empty_content in ("text", "null")
            for arguments in ("object", "text")
        ]
        rendered: HistoryForm | None = None
        problem: TemplateError | None = None
        for ids in self._id_forms():
            for form in candidates:
                form = HistoryForm(form.arguments, form.empty_content, ids)
                call_id = _FOREIGN_IDS[0] if ids is None else ids.id_for(_FOREIGN_IDS[0], {})
                try:
                    text = self._render(form, call_id)
                except TemplateError as error:
                    problem = problem or error
                    continue
                if _is_written(text, form):
                    return self._with_ids(form)
                rendered = rendered or form
            if rendered is not None:
                return self._with_ids(rendered)
        return HistoryForm(problem=problem.message if problem else None)

    def _with_ids(self, form: HistoryForm) -> HistoryForm:
        """The form unchanged if all foreign ids render, else with the first form of ids that renders."""
        if form.ids is None and all(self._renders(form, call_id) for call_id in _FOREIGN_IDS[1:]):
            return form
        for ids in self._id_forms():
            if ids is not None and self._renders(form, ids.id_for(_FOREIGN_IDS[0], {})):
                return HistoryForm(form.arguments, form.empty_content, ids)
        return form

    def _id_forms(self) -> Iterator[IdForm | None]:
        """Yield candidates: None (any id), Mistral's form, prefixes from the template's source, then other lengths."""
        yield None
        if not _reads_ids(self.template.source):
            return
        yield IdForm(9)
        for prefix in self._prefixes:
            yield from (IdForm(length, prefix) for length in (24, *range(1, 33)))
        for alphabet in (_ALPHANUMERIC, string.digits):
            for length in range(1, _MAX_ID_LENGTH + 1):
                yield IdForm(length, "", alphabet)

    @cached_property
    def _prefixes(self) -> list[str]:
        found = re.findall(r"""startswith\(\s*(?:'([^']*)'|"([^"]*)")""", self.template.source)
        found += re.findall(r"""id\s*\[\s*:\s*\d+\s*\]\s*[!=]=\s*(?:'([^']*)'|"([^"]*)")""", self.template.source)
        return list(dict.fromkeys(single or double for single, double in found))[:4]

    def _renders(self, form: HistoryForm, call_id: str) -> bool:
        try:
            self._render(form, call_id)
        except TemplateError:
            return False
        return True

    def _render(self, form: HistoryForm, call_id: str) -> str:
        arguments: Any = {_KEY: _VALUE}
        function = {"name": _NAME, "arguments": arguments if form.arguments == "object" else json.dumps(arguments)}
        question: Any = "probe question"
        content: Any = None if form.empty_content == "null" else ""
        if self.template.content_format == "openai":
            question = [{"type": "text", "text": question}]
            content = None if content is None else []
        messages = [
            {"role": "user", "content": question},
            {
                "role": "assistant",
                "content": content,
                "tool_calls": [{"id": call_id, "type": "function", "function": function}],
            },
            {"role": "tool", "tool_call_id": call_id, "name": _NAME, "content": _RESULT},
        ]
        parameters = {"type": "object", "properties": {_KEY: {"type": "string", "description": "A key."}}}
        tool = {"name": _NAME, "description": "Looks something up.", "parameters": parameters}
        tools = [{"type": "function", "function": tool}]
        return self.template.render(messages, tools=tools, keep_null_content=form.empty_content == "null")


def _reads_ids(source: str) -> bool:
    return re.search(r"""\bid\b|tool_call_id|call_id""", source) is not None


def _is_written(text: str, form: HistoryForm) -> bool:
    """Whether the rendered text contains the call, with arguments that are neither the repr of a Python dict nor JSON
    inside a JSON string."""
    if _VALUE not in text or f"{{'{_KEY}'" in text:
        return False
    return form.arguments == "object" or f'\\"{_KEY}' not in text


def with_ids(messages: Sequence[dict[str, Any]], form: IdForm) -> list[dict[str, Any]]:
    """A copy of the messages with ids of this form, the same for a call and its result. A call without an id gets one.
    A result without an id gets that of the first call without a result."""
    made: dict[str, str] = {}  # id given -> id of the form
    taken: dict[str, str] = {}
    waiting: list[str] = []  # ids of calls that have no result yet

    def mapped(given: str) -> str:
        if given not in made:
            made[given] = form.id_for(given, taken)
            taken[made[given]] = given
        return made[given]

    for message in messages:  # ids of the right form stay, also where a made one would come first
        for call in message.get("tool_calls", ()):
            if form.fits(str(call.get("id"))):
                mapped(str(call["id"]))
    changed = []
    for place, message in enumerate(messages):
        if message.get("tool_calls"):
            calls = []
            for index, call in enumerate(message["tool_calls"]):
                given = call.get("id")
                waiting.append(f"{place}.{index}" if given is None else str(given))
                calls.append({**call, "id": mapped(waiting[-1])})
            message = {**message, "tool_calls": calls}
        elif message["role"] == "tool":
            given = message.get("tool_call_id")
            answered = str(given) if given is not None else waiting[0] if waiting else f"{place}"
            if answered in waiting:
                waiting.remove(answered)
            message = {**message, "tool_call_id": mapped(answered)}
        changed.append(message)
    return changed
