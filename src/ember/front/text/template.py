"""Chat templates: rendering a conversation to a prompt.

The output equals that of transformers' apply_chat_template for the same template and arguments. jinja2 is imported when
the first template is used.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Mapping
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ember.front.text.template_error import TemplateError
from ember.front.text.template_file import MAX_TEMPLATE_BYTES, TemplateFileError, read_template

if TYPE_CHECKING:
    import jinja2
    from jinja2 import nodes

    from ember.front.text.call_history import HistoryForm
    from ember.front.text.tokenizer import Tokenizer

# This mark is appended to the message to be continued and searched for in the rendered text. The space at its end tells
# whether the template trims its output.
_END_MARK = "EMBER-END-OF-FINAL-MESSAGE "
# Names of a message's reasoning. Templates read the first; those of gpt-oss the second.
_REASONING_NAMES = ("reasoning_content", "thinking", "reasoning")


class ChatTemplate:
    """A Jinja chat template, with the special tokens that it may use (`bos_token`, ...). Thread-safe."""

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        self.source = source
        self._special_tokens = dict(special_tokens)

    @classmethod
    def for_tokenizer(
        cls, tokenizer: Tokenizer, custom: str | None, *, with_tools: bool = False, with_documents: bool = False
    ) -> ChatTemplate | None:
        """The template `custom` (a file, Jinja text, or the name of one of the model's templates), by default the
        model's own. Of the model's named templates "tool_use" is used with tools, else "rag" with documents. Returns
        None if the model has no template.

        Raises TemplateError if `custom` is not a template, or the model has only named ones and none is the default.
        """
        return cls.choose(
            tokenizer.chat_template,
            tokenizer.special_tokens,
            custom,
            with_tools=with_tools,
            with_documents=with_documents,
        )

    @classmethod
    def choose(
        cls,
        own: str | dict[str, str] | None,
        special_tokens: Mapping[str, str],
        custom: str | None,
        *,
        with_tools: bool = False,
        with_documents: bool = False,
    ) -> ChatTemplate | None:
        """As `for_tokenizer`, for the model's own template or templates."""
        named = own if isinstance(own, dict) else {} if own is None else {"default": own}
        if custom is not None:
            return cls(named.get(custom) or _read_custom(custom), special_tokens)
        if not named:
            return None
        for name, is_fit in (("tool_use", with_tools), ("rag", with_documents), ("default", True)):
            if is_fit and name in named:
                return cls(named[name], special_tokens)
        raise TemplateError(f"the model has no default chat template, choose one of: {', '.join(sorted(named))}")

    def render(
        self,
        messages: list[dict[str, Any]],
        *,
        tools: list[dict[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        documents: list[dict[str, Any]] | None = None,
        keep_null_content: bool = False,
        **kwargs: Any,
    ) -> str:
        """Render the conversation. `kwargs` are further variables, which override the special tokens.

        With `keep_null_content` the template gets a content of None; otherwise, as in transformers, it gets no null
        entry.

        With `continue_final_message` the text ends with the last message's content, so that the model continues it.
        `add_generation_prompt` must then be False. The arguments are not changed. Raises TemplateError, with the
        template's own message if it calls raise_exception.
        """
        if continue_final_message and add_generation_prompt:
            raise TemplateError("continue_final_message and add_generation_prompt cannot both be true")
        kept = "content" if keep_null_content else None
        messages = [_normalized(message, kept) for message in _dicts(messages, "messages")]
        if not messages:
            raise TemplateError("messages must have at least one message")
        final_text = ""
        if continue_final_message:
            if "content" not in self.source:
                raise TemplateError("continue_final_message: the chat template does not print a message's content")
            messages[-1], final_text = _with_end_mark(messages[-1])
        text = self._render(
            {
                **self._special_tokens,
                **kwargs,
                "messages": messages,
                "tools": None if tools is None else _dicts(tools, "tools"),
                "documents": None if documents is None else _dicts(documents, "documents"),
                "add_generation_prompt": add_generation_prompt,
            }
        )
        return _cut_at_end_mark(text, final_text) if continue_final_message else text

    def prepare(self) -> None:
        """Import jinja2 and compile the template before the first `render`. Raises nothing."""
        with suppress(Exception):  # `fault` names what is wrong
            _ = self._template, self.content_format, self.history_form

    def fault(self) -> str | None:
        """What is wrong with the template; None if it can be compiled."""
        try:
            _ = self._template
        except TemplateError as error:
            return error.message
        except Exception as error:  # a limit of the compiler, such as its recursion
            return f"the chat template cannot be compiled: {type(error).__name__}: {error}"
        return None

    @cached_property
    def content_format(self) -> Literal["string", "openai"]:
        """ "openai" if the template iterates over a list of content parts, "string" if it prints content directly.
        Raises TemplateError for a template that does not parse."""
        from ember.front.text.content_format import detect_content_format

        return detect_content_format(self._ast)

    @cached_property
    def history_form(self) -> HistoryForm:
        """The form of earlier turns' tool calls for this template. Raises TemplateError for a template that does not
        parse."""
        from ember.front.text.call_history import find_history_form

        return find_history_form(self)

    @cached_property
    def variables(self) -> frozenset[str]:
        """The variables that the template reads and does not set (`messages`, `tools`, `enable_thinking`, ...).
        Raises TemplateError for a template that does not parse."""
        from jinja2 import meta

        return frozenset(meta.find_undeclared_variables(self._ast) - self._environment.globals.keys())

    def _render(self, variables: dict[str, Any]) -> str:
        from ember.front.text.jinja_environment import RaisedByTemplate

        template = self._template
        try:
            return template.render(variables)
        except RaisedByTemplate as error:
            raise TemplateError(str(error)) from None
        except Exception as error:  # a template is a program and may raise anything; the client gets the error
            raise TemplateError(f"the chat template failed: {type(error).__name__}: {error}") from error

    @cached_property
    def _environment(self) -> jinja2.Environment:
        from ember.front.text.jinja_environment import chat_template_environment

        return chat_template_environment()

    @cached_property
    def _ast(self) -> nodes.Template:
        import jinja2

        try:
            return self._environment.parse(self.source)
        except jinja2.TemplateSyntaxError as error:
            raise TemplateError(_syntax_message(error)) from None

    @cached_property
    def _template(self) -> jinja2.Template:
        import jinja2

        try:
            return self._environment.from_string(self.source)
        except jinja2.TemplateSyntaxError as error:
            raise TemplateError(_syntax_message(error)) from None


def _syntax_message(error: jinja2.TemplateSyntaxError) -> str:
    return f"the chat template is not valid Jinja: line {error.lineno}: {error.message}"


def _read_custom(custom: str) -> str:
    """The text of a template that is given as text or as a file's path. A path has no brace and no line break.

    Text on one line, as from a form or an environment file, has `\\n` for line breaks. Raises TemplateError.
    """
    if len(custom) > MAX_TEMPLATE_BYTES:
        raise TemplateError(f"the chat template has {len(custom):,} characters; {MAX_TEMPLATE_BYTES:,} are allowed")
    if any(character in custom for character in "{}\n"):
        return custom if "\n" in custom else _unescaped(custom)
    try:
        return read_template(Path(custom))
    except TemplateFileError as error:
        raise TemplateError(f"the chat template {custom!r} is neither Jinja nor a readable file: {error}") from None


# Strings inside Jinja's delimiters, whose escapes Jinja decodes itself, and escapes outside them.
_PARTS = re.compile(
    r"""(?P<open>\{\{|\{%|\{\#) | (?P<close>\}\}|%\}|\#\}) | (?P<string>'(?:[^'\\]|\\.)*' | "(?:[^"\\]|\\.)*")
      | (?P<escape>\\(?:[\\'"abfnrtv]|x[0-9A-Fa-f]{2}|u[0-9A-Fa-f]{4}|U[0-9A-Fa-f]{8}))""",
    re.VERBOSE,
)


def _unescaped(text: str) -> str:
    """Decode Python's escapes in the text, as vLLM does, except inside Jinja's strings."""
    found: list[str] = []
    at = 0
    is_inside = False
    while (part := _PARTS.search(text, at)) is not None:
        found.append(text[at : part.start()])
        at = part.end()
        if part["open"]:
            is_inside = True
        elif part["close"]:
            is_inside = False
        elif part["escape"]:
            found.append(codecs.decode(part[0], "unicode_escape"))
            continue
        elif not is_inside:  # a quotation mark or an apostrophe of the text
            found.append(part[0][0])
            at = part.start() + 1
            continue
        found.append(part[0])
    return "".join(found) + text[at:]


def _dicts(values: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    for value in values:
        if not isinstance(value, dict):
            raise TemplateError(f"{name} must be a list of objects, one item is {type(value).__name__}")
    return values


def _normalized(message: dict[str, Any], kept: str | None) -> dict[str, Any]:
    """A copy without null entries, since templates test for presence, except for `kept`. The reasoning has the names
    that templates read."""
    message = {key: value for key, value in message.items() if value is not None or key == kept}
    for name in _REASONING_NAMES:
        if name in message:
            return {"thinking": message[name], **message, "reasoning_content": message[name]}
    return message


def _with_end_mark(message: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """A copy of the message with the end mark after its last text, and that text."""
    content = message.get("content")
    if isinstance(content, str):
        return {**message, "content": content + _END_MARK}, content
    if isinstance(content, list):
        for index in reversed(range(len(content))):
            part = content[index]
            if isinstance(part, dict) and isinstance(part.get("text"), str):
                marked = {**part, "text": part["text"] + _END_MARK}
                return {**message, "content": [*content[:index], marked, *content[index + 1 :]]}, part["text"]
    raise TemplateError("continue_final_message: the final message has no text to continue")


def _cut_at_end_mark(text: str, final_text: str) -> str:
    place = text.rfind(_END_MARK.strip())
    if place < 0 or final_text.strip() not in text:
        raise TemplateError(
            "continue_final_message: the chat template drops or changes the text of the final message, "
            "so there is no place in the prompt from which to continue it"
        )
    is_trimmed = not text.startswith(_END_MARK, place)
    return text[:place].rstrip() if is_trimmed else text[:place]
