"""From a completion to its prompts, each given as text or as token ids. Runs in a thread."""

from __future__ import annotations

from collections.abc import Sequence

from ember.front.api.logprobs import prompt_offsets
from ember.front.api.prompt import NO_PROMPT, Prompt, empty_prompt, encode_text, fit
from ember.front.api.schemas import CompletionRequest
from ember.front.api.services import Services
from ember.front.api.vocabulary import check_token_ids
from ember.front.errors import bad_request
from ember.front.text.fim import middle_format
from ember.wire import Ready


def completion_prompts(request: CompletionRequest, services: Services, info: Ready) -> list[Prompt]:
    """The prompts of the request, in order. Raises ApiError 400."""
    given = request.prompt
    if given is None or (len(given) == 0 and not (given == "" and request.suffix)):
        raise bad_request(NO_PROMPT, "prompt")
    items: Sequence[str | list[int]]
    if isinstance(given, str):
        items = [given]
    elif isinstance(given[0], int):
        items = [given]  # type: ignore[list-item]
    else:
        items = given  # type: ignore[assignment]
    return [_completion_prompt(item, request, services, info) for item in items]


def _completion_prompt(item: str | list[int], request: CompletionRequest, services: Services, info: Ready) -> Prompt:
    if request.suffix:
        item = _around_the_middle(item, request.suffix, request, services)
    if len(item) == 0:
        raise empty_prompt()
    if isinstance(item, str):
        add_special_tokens = request.add_special_tokens is not False
        prompt = encode_text(item, request, services, info, add_special_tokens=add_special_tokens)
    else:
        check_token_ids(item, info, "prompt")
        prompt = Prompt(fit(item, request, info))
    if request.echo:
        tokenizer, token_ids = services.tokenizer, prompt.token_ids
        # Of ids the special tokens are shown: they are part of what the client sent.
        prompt.echo = tokenizer.decode(token_ids, skip_special_tokens=False) if prompt.text is None else prompt.text
        if request.logprobs is not None:
            prompt.echo_offsets = prompt_offsets(token_ids, prompt.echo, tokenizer)
    return prompt


def _around_the_middle(prefix: str | list[int], suffix: str, request: CompletionRequest, services: Services) -> str:
    """The prompt for filling in the middle: the model writes what belongs between prefix and suffix. Raises ApiError
    400."""
    found = middle_format(services.tokenizer)
    if found is None:
        message = (
            f"suffix is not currently supported by {services.model_name}, whose tokenizer has no tokens for filling in "
            "the middle."
        )
        raise bad_request(message, "suffix")
    if not isinstance(prefix, str):
        raise bad_request("`suffix` needs a prompt that is text, not token ids.", "suffix")
    if request.echo:
        raise bad_request("`echo` cannot be used with `suffix`.", "suffix")
    return found.prompt(prefix, suffix)
