"""What is read from the outputs of /inference/v1/generate that /derender makes answers of, whole or chunk by chunk."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from ember.front.api.chat import open_chat
from ember.front.api.chat_prompt import response_role
from ember.front.api.completions import open_completion
from ember.front.api.exchange import Request
from ember.front.api.logprobs import CompletionLogprobs, TokenNames, logprob_entry
from ember.front.api.samples import TextOptions
from ember.front.api.scale_out.schemas import GeneratedChoice
from ember.front.api.schemas import ChatRequest, CompletionRequest
from ember.front.api.services import Services
from ember.front.api.vocabulary import check_token_ids
from ember.front.errors import ApiError, bad_request
from ember.wire import Ready, TokenLogprobs


class Reading:
    """How the outputs of one request are read, from the chat or completion that it belongs to, where it is known."""

    def __init__(self, services: Services, info: Ready) -> None:
        self.services = services
        self.info = info
        skips = services.generation_defaults.get("skip_special_tokens") is not False
        self.text = TextOptions(skip_special_tokens=skips, end_token_ids=frozenset(info.eos_token_ids))
        self.role = services.settings.response_role
        self.prompt_token_ids: list[int] = []
        self.headers: dict[str, str] = {}
        self.num_top = -1  # alternatives of the log probabilities to show: all
        self.shows_token_ids = False
        self.is_legacy = False
        self._as_ids = False

    @property
    def names(self) -> TokenNames:
        return TokenNames(self.services.tokenizer, self._as_ids)

    async def of_chat(self, raw_request: Request, chat: ChatRequest | None) -> None:
        """Raises ApiError 400, also where a model's outputs cannot be read without the chat."""
        services = self.services
        if chat is None:
            if services.reasoning_format is not None or services.tool_format is not None:
                message = "`chat_request` is required: this model's outputs are read for reasoning or tool calls, "
                raise bad_request(f"{message}which need it.", "chat_request")
            return
        with _in_field("chat_request"):
            services.check_model(chat.model)
            call = await open_chat(services, raw_request, chat, "chatcmpl-")
        self.text, self.role, self.headers = call.specs[0].text, response_role(chat, services), call.headers
        self.prompt_token_ids = call.specs[0].prompt.token_ids
        self.is_legacy = bool(chat.functions)
        if chat.logprobs:
            self.num_top = chat.top_logprobs or 0
        self._as_ids, self.shows_token_ids = bool(chat.return_tokens_as_token_ids), bool(chat.return_token_ids)

    async def of_completion(self, raw_request: Request, asked: CompletionRequest | None) -> None:
        """Raises ApiError 400."""
        if asked is None:
            return
        with _in_field("completion_request"):
            self.services.check_model(asked.model)
            call = await open_completion(self.services, raw_request, asked)
        self.text, self.headers = call.specs[0].text, call.headers
        if asked.logprobs is not None:
            self.num_top = asked.logprobs
        self._as_ids, self.shows_token_ids = bool(asked.return_tokens_as_token_ids), bool(asked.return_token_ids)

    def check_prompt(self, token_ids: Sequence[int]) -> None:
        """Raises ApiError 400."""
        self._check_length(len(token_ids), "prompt_token_ids")
        check_token_ids(token_ids, self.info, "prompt_token_ids")

    def check_choice(self, choice: GeneratedChoice, place: str, earlier: Sequence[int] = ()) -> None:
        """Raises ApiError 400 for tokens that the model does not have, and for more than fit its context. `earlier` are
        the tokens of the chunks before."""
        token_ids = choice.token_ids or []
        self._check_length(len(earlier) + len(token_ids), f"{place}.token_ids")
        check_token_ids(token_ids, self.info, f"{place}.token_ids")
        if choice.finish_reason == "error":
            raise bad_request(f"`{place}` is not an answer: its finish_reason is 'error'.", f"{place}.finish_reason")
        self._check_length(len(choice.entries), f"{place}.logprobs.content")
        named = [entry.token_id for entry in choice.entries]
        named += [other.token_id for entry in choice.entries for other in entry.top_logprobs or ()]
        check_token_ids(named, self.info, f"{place}.logprobs")

    def _check_length(self, count: int, place: str) -> None:
        if count > self.info.max_model_len:
            message = f"`{place}` has {count} entries, more than max_model_len={self.info.max_model_len}."
            raise bad_request(message, place)

    def end_of(self, choice: GeneratedChoice) -> tuple[str | None, int | None]:
        """Why the engine ended an output, or None, and the token that ended it."""
        reason = "stop" if choice.finish_reason == "tool_calls" else choice.finish_reason  # which answers of chats have
        last = choice.token_ids[-1] if choice.token_ids else None
        return reason, last if reason == "stop" and last in self.text.end_token_ids else None

    def chat_logprobs(self, choice: GeneratedChoice) -> dict[str, Any] | None:
        """With the alternatives that came with each token, of which the token itself is the first."""
        shown = None if self.num_top == -1 else self.num_top
        content = []
        for entry in choice.entries:
            top = [logprob_entry(other.token_id, other.logprob, self.names) for other in entry.top_logprobs or ()]
            content.append({**logprob_entry(entry.token_id, entry.logprob, self.names), "top_logprobs": top[:shown]})
        return {"content": content} if content else None

    def completion_logprobs(
        self, choice: GeneratedChoice, prompt: Sequence[int], earlier: Sequence[int] = ()
    ) -> dict[str, Any] | None:
        entries = _entries(choice)
        if not entries:
            return None
        detokenizer = self.text.detokenizer(self.services.tokenizer, prompt)
        writer = CompletionLogprobs(self.num_top, self.names, detokenizer)
        writer.take(earlier, ())
        return writer.take([entry.token_id for entry in entries], entries)


@contextmanager
def _in_field(name: str) -> Iterator[None]:
    """Let the errors of a request inside this one name the field that it is in."""
    try:
        yield
    except ApiError as error:
        error.param = None if error.param is None else f"{name}.{error.param.removeprefix('body.')}"
        raise


def _entries(choice: GeneratedChoice) -> list[TokenLogprobs]:
    return [
        TokenLogprobs(
            entry.token_id,
            entry.logprob,
            entry.rank or 0,
            [other.token_id for other in entry.top_logprobs or ()],
            [other.logprob for other in entry.top_logprobs or ()],
        )
        for entry in choice.entries
    ]
