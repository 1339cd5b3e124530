"""From a text to token ids that fit the model's vocabulary and its context. Runs in a thread."""

from __future__ import annotations

import reprlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from ember.front.api.schemas import ChatRequest, GenerationRequest, TokenizeRequest
from ember.front.api.services import Services
from ember.front.errors import ApiError, bad_request, encodable
from ember.front.text.layout import cut
from ember.front.text.panics import TokenizerPanic
from ember.front.text.tokenizer import Tokenizer
from ember.wire import Ready

NO_PROMPT = "Either prompt or prompt_embeds must be provided and non-empty."
USUAL_CHARS_PER_TOKEN = 8  # a text below this many per token of context is counted without looking at the vocabulary
MAX_DROPPED_CHARS = 1 << 20  # of a text whose tokenizer may drop any number of characters


@dataclass(slots=True)
class Prompt:
    """One prompt, ready for the engine."""

    token_ids: list[int]
    text: str | None = None  # as given or rendered; None for a prompt given as token ids
    echo: str = ""  # what `echo` puts before the answer
    echo_offsets: list[int] | None = None  # where each token begins in it; only for log probabilities of completions


def encode_text(
    text: str, request: GenerationRequest, services: Services, info: Ready, *, add_special_tokens: bool
) -> Prompt:
    text = encodable(text)
    kept = guarded(text, cut_side(request), services.tokenizer, info)
    param = "messages" if isinstance(request, ChatRequest) else "prompt"
    token_ids = encode(services.tokenizer, kept, add_special_tokens, param)
    fitted = fit(token_ids, request, info)
    check_rows(fitted, services.tokenizer, info, param)
    if len(fitted) < len(token_ids) or len(kept) < len(text):
        text = services.tokenizer.decode(fitted)
    return Prompt(fitted, text)


def encode(tokenizer: Tokenizer, text: str, add_special_tokens: bool, param: str) -> list[int]:
    """Tokenise a text. Raises ApiError 400 when the tokenizer gives up: its regular expressions have limits."""
    try:
        return tokenizer.encode(text, add_special_tokens)
    except TokenizerPanic:
        reason = "its patterns need too many steps, or a character has no token"
        message = f"The model's tokenizer cannot encode a text in {param}: {reason}."
        raise bad_request(message, param) from None


def check_rows(token_ids: Sequence[int], tokenizer: Tokenizer, info: Ready, param: str) -> None:
    """Raises ApiError 400 for a text with a token that the tokenizer knows and the model does not."""
    if token_ids and (largest := max(token_ids)) >= info.vocab_size:
        token = reprlib.repr(tokenizer.vocab_entry(largest))
        message = (
            f"Token id {largest} ({token} in {param}) is out of vocabulary: the model has {info.vocab_size} tokens, "
            "fewer than its tokenizer."
        )
        raise bad_request(message, param)


def guarded(text: str, side: str | None, tokenizer: Tokenizer, info: Ready) -> str:
    """Bound the work of tokenising. No text may be longer than the context filled with the longest token, or
    `MAX_DROPPED_CHARS` where the tokenizer drops characters, such as the spaces of a run. `side` is
    where it may be cut; with None it is refused with ApiError 400."""
    if len(text) <= info.max_model_len * USUAL_CHARS_PER_TOKEN:
        return text
    most = info.max_model_len * _longest_token(tokenizer)
    if not tokenizer.keeps_characters:
        most = max(most, MAX_DROPPED_CHARS)
    if len(text) <= most:
        return text
    if side is not None:
        return text[-most:] if side == "left" else text[:most]
    message = (
        f"This model's maximum context length is {info.max_model_len} tokens. However, your prompt has {len(text)} "
        f"characters, more than {most}, which cannot fit. Please reduce the length of the input prompt. "
        f"(parameter=input_text, value={len(text)})"
    )
    raise PromptTooLong(message, "input_text", None, info.max_model_len)


@lru_cache(maxsize=4)
def _longest_token(tokenizer: Tokenizer) -> int:
    return max((len(tokenizer.token_text(token_id)) for token_id in range(tokenizer.vocab_size)), default=1) or 1


def cut_side(request: GenerationRequest | TokenizeRequest) -> str | None:
    """Where the prompt is cut if it is too long; None if it must not be."""
    if request.truncate_prompt_tokens is None:
        return None
    return request.truncation_side or "left"


def fit(token_ids: list[int], request: GenerationRequest, info: Ready) -> list[int]:
    """Truncate the prompt as the request asks. Raises ApiError 400 when it is still longer than the context, or
    empty."""
    longest = info.max_model_len
    token_ids = truncated(token_ids, request, info)
    if len(token_ids) > longest:
        raise too_long(len(token_ids), longest)
    if not token_ids:
        raise empty_prompt()
    return token_ids


def truncated(token_ids: list[int], request: GenerationRequest | TokenizeRequest, info: Ready) -> list[int]:
    """The token ids that `truncate_prompt_tokens` leaves. Raises ApiError 400."""
    side = cut_side(request)
    if side is None:
        return token_ids
    keep = kept_tokens(request.truncate_prompt_tokens, info, info.max_model_len - 1)  # a place is left for the output
    return cut(token_ids, keep, side)


def kept_tokens(asked: int | None, info: Ready, most: int) -> int:
    """How many tokens `truncate_prompt_tokens` leaves; -1 stands for `most`. Raises ApiError 400."""
    if asked is not None and asked > info.max_model_len:
        message = (
            f"truncate_prompt_tokens={asked} cannot be greater than max_model_len={info.max_model_len}. "
            f"Please request a smaller truncation size. (parameter=truncate_prompt_tokens, value={asked})"
        )
        raise bad_request(message, "truncate_prompt_tokens")
    return most if asked is None or asked == -1 else asked


class PromptTooLong(ApiError):
    """A 400 for a prompt that is longer than the context."""

    def __init__(self, message: str, param: str, num_tokens: int | None, max_model_len: int) -> None:
        super().__init__(400, message, param=param)
        self.num_tokens = num_tokens  # None = it has too many characters to be counted
        self.max_model_len = max_model_len


def too_long(num_tokens: int, max_model_len: int) -> PromptTooLong:
    message = (
        f"This model's maximum context length is {max_model_len} tokens. However, your prompt contains {num_tokens} "
        "input tokens, which exceeds this limit even without any output tokens. Please reduce the length of the input "
        f"prompt. (parameter=input_tokens, value={num_tokens})"
    )
    return PromptTooLong(message, "input_tokens", num_tokens, max_model_len)


def empty_prompt() -> ApiError:
    """The error for an empty prompt among several, or for one of which truncation leaves nothing."""
    return bad_request(f"The decoder prompt cannot be empty. {NO_PROMPT}", "prompt")
