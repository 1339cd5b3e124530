"""From the texts of a body to the token ids of each, cut where the body asks for it. Runs in a thread."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ember.front.api.body import parse_body
from ember.front.api.chat_prompt import adds_generation_prompt, render_chat
from ember.front.api.pooling.schemas import Content, InputRequest, Part, PoolingRequest, kind_of_input
from ember.front.api.prompt import NO_PROMPT, check_rows, encode, guarded, kept_tokens, too_long
from ember.front.api.schemas import ChatRequest
from ember.front.api.services import Services
from ember.front.api.threads import in_thread
from ember.front.api.tools import requested_tools
from ember.front.api.unsupported import refuse_template_overrides
from ember.front.api.vocabulary import check_token_ids
from ember.front.errors import ApiError, bad_request
from ember.front.link.pooling import PoolText
from ember.front.text.layout import Layout, cut
from ember.front.text.panics import TokenizerPanic
from ember.front.text.tokenizer import Tokenizer
from ember.wire import Ready

_CHAT_FIELDS = (
    "add_special_tokens",
    "add_generation_prompt",
    "continue_final_message",
    "chat_template",
    "chat_template_kwargs",
)


@dataclass(frozen=True, slots=True)
class Limits:
    """How long a text may be, and where it is cut."""

    info: Ready
    num_kept: int  # tokens, special ones included
    side: str | None  # left or right; None: a text that is longer is refused

    def kept(self, tokens: list[int]) -> list[int]:
        """The tokens of a text, special ones included, cut to `num_kept` on the `side`; all of them without a side."""
        return tokens if self.side is None else cut(tokens, self.num_kept, self.side)

    def check(self, token_ids: Sequence[int], param: str, position: int | None) -> None:
        """Raises ApiError 400 for a text that is too long or has no token at all."""
        longest = self.info.max_model_len
        if len(token_ids) > longest:
            raise _named(too_long(len(token_ids), longest), param, position)
        if not token_ids:
            raise _named(bad_request(f"The prompt cannot be empty. {NO_PROMPT}", param), param, position)


def requested_limits(request: PoolingRequest, tokenizer: Tokenizer, info: Ready) -> Limits:
    """Raises ApiError 400."""
    asked = request.truncate_prompt_tokens
    kept = kept_tokens(asked, info, info.max_model_len)
    return Limits(info, kept, None if asked is None else request.truncation_side or tokenizer.truncation_side)


async def read_texts(request: InputRequest, services: Services, info: Ready, prompt: str) -> list[PoolText]:
    """The texts of `input`, or the conversations in `messages` or `input`. `prompt` is put before each text. Raises
    ApiError 400."""
    limits = requested_limits(request, services.tokenizer, info)
    given = request.input
    if request.messages is not None:
        if given is not None:
            raise bad_request("Give `input` or `messages`, not both.", "input")
        return await _conversations(request.messages, request, services, limits, "messages")
    if given is None or (len(given) == 0 and not isinstance(given, str)):
        raise bad_request(
            "`input` is missing or empty: give a text, token ids, a list of them, or `messages`.", "input"
        )
    if kind_of_input(given) != "texts":
        return await _conversations(given, request, services, limits, "input")
    adds_special = request.add_special_tokens is not False
    if isinstance(given, list) and isinstance(given[0], int):
        given = [given]  # type: ignore[list-item]
    if isinstance(given, list) and isinstance(given[0], list):
        for position, token_ids in enumerate(given):
            _check_ids(token_ids, limits, info, position)  # type: ignore[arg-type]
        return [PoolText(cut(ids, limits.num_kept, limits.side or "right")) for ids in given]  # type: ignore[arg-type]
    texts = plain_texts(given, "input")  # type: ignore[arg-type]
    return await in_thread(request, text_tokens, texts, services, limits, adds_special, "input", prompt)


async def _conversations(
    given: Sequence[Any], request: InputRequest, services: Services, limits: Limits, param: str
) -> list[PoolText]:
    """The texts that the chat template makes of a conversation, or of each of a list. Raises ApiError 400."""
    is_list = isinstance(given[0], list)
    conversations = given if is_list else [given]
    body = {name: value for name in _CHAT_FIELDS if (value := getattr(request, name)) is not None}
    chat = await parse_body(ChatRequest, {"add_generation_prompt": False, **body, "messages": conversations[0]})
    refuse_template_overrides(chat)
    adds_generation_prompt(chat)
    tools = requested_tools(chat, services, to_run=False).shown

    def tokens() -> list[PoolText]:
        chats = [chat.model_copy(update={"messages": messages}) for messages in conversations]
        texts = [render_chat(each, services, tools)[0] for each in chats]
        return text_tokens(texts, services, limits, bool(chat.add_special_tokens), param, "", is_list=is_list)

    return await in_thread(chat, tokens)


def plain_texts(given: str | Content | Sequence[str | Content], param: str) -> list[str]:
    """Texts, which may be objects in the body. Raises ApiError 400."""
    if isinstance(given, str | Content):
        return [_plain(given, param)]
    return [text if isinstance(text, str) else _plain(text, f"{param}.{place}") for place, text in enumerate(given)]


def _plain(given: str | Content, param: str) -> str:
    if isinstance(given, str):
        return given
    if given.content is not None:
        return joined(given.content, param)
    if given.text is None:
        raise bad_request(f"{param} must be a text, or an object with `text` or `content`.", param)
    return given.text


def joined(parts: Sequence[Part], param: str) -> str:
    """The text of parts. Raises ApiError 400 for a part of another kind."""
    for part in parts:
        if part.type != "text" or part.text is None:
            kind = ascii(part.type)[:40]
            raise bad_request(
                f"{param} has a part of the type {kind}; this model takes parts of the type 'text'.", param
            )
    return "".join(part.text or "" for part in parts)


def text_tokens(
    texts: Sequence[str],
    services: Services,
    limits: Limits,
    adds_special: bool,
    param: str,
    prompt: str = "",
    *,
    is_list: bool = True,
) -> list[PoolText]:
    """The token ids of each text with its special tokens. Raises ApiError 400."""
    info, tokenizer = limits.info, services.tokenizer
    layout = tokenizer.single_layout if adds_special else None
    most = limits.num_kept - (layout.num_special if layout else 0)
    num_prompt = _prompt_tokens(prompt, services, info, layout)
    found = []
    for position, token_ids in enumerate(encoded([prompt + text for text in texts], services, limits, param)):
        if limits.side is not None:
            token_ids = cut(token_ids, max(0, most), limits.side)
        whole = limits.kept(layout.join(token_ids) if layout else token_ids)
        limits.check(whole, param, position if is_list else None)
        check_rows(whole, tokenizer, info, param)
        found.append(PoolText(whole, num_instruction_tokens=min(num_prompt, len(whole))))
    return found


def _prompt_tokens(prompt: str, services: Services, info: Ready, layout: Layout | None) -> int:
    """How many tokens the prompt takes at the start of each text, if the model pools the text without them."""
    if not prompt or info.pooling is None or info.pooling.includes_prompt:
        return 0
    (token_ids,) = services.tokenizer.encode_batch([prompt])
    return len(token_ids) + (len(layout.special[0]) if layout else 0)


def encoded(texts: Sequence[str], services: Services, limits: Limits, param: str) -> list[list[int]]:
    """The token ids of each text without special tokens. Raises ApiError 400."""
    tokenizer = services.tokenizer
    if services.sentences.lower_case:
        texts = [text.lower() for text in texts]
    kept = [guarded(text, limits.side, tokenizer, limits.info) for text in texts]
    try:
        return tokenizer.encode_batch(kept)
    except TokenizerPanic:  # one by one, so that it hits the one text alone
        return [encode(tokenizer, text, False, param) for text in kept]


def _check_ids(token_ids: list[int], limits: Limits, info: Ready, position: int) -> None:
    check_token_ids(token_ids, info, "input")
    limits.check(token_ids if limits.side is None else token_ids[: limits.num_kept], "input", position)


def _named(error: ApiError, param: str, position: int | None) -> ApiError:
    """The error with the place of the text in its list."""
    if position is None:
        return error
    return bad_request(f"{error.message} It is {param}.{position}.", error.param)
