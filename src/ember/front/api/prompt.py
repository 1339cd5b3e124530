"""From what the client sent to prompt token ids. Everything here is plain CPU work that the routes run in a thread."""

from __future__ import annotations

import reprlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from ember.front.api.body import reported
from ember.front.api.logprobs import prompt_offsets
from ember.front.api.messages import USUAL_HISTORY, content_text, has_tool_calls, prepare_messages
from ember.front.api.schemas import ChatRequest, CompletionRequest, GenerationRequest, TokenizeRequest
from ember.front.api.services import Services
from ember.front.api.templates import Template, chosen_template, content_format
from ember.front.errors import ApiError, bad_request, encodable
from ember.front.text.fim import middle_format
from ember.front.text.panics import TokenizerPanic
from ember.front.text.reasoning import SWITCHES
from ember.front.text.template_error import TemplateError
from ember.front.text.tokenizer import Tokenizer
from ember.wire import Ready

MAX_LISTED = 128  # wrong values that one error message names
_NO_PROMPT = "Either prompt or prompt_embeds must be provided and non-empty."
USUAL_CHARS_PER_TOKEN = 8  # a text below this many per token of context is counted without looking at the vocabulary


@dataclass(slots=True)
class Prompt:
    """One prompt, ready for the engine."""

    token_ids: list[int]
    text: str | None = None  # as given or rendered; None for a prompt given as token ids
    echo: str = ""  # what `echo` puts before the answer
    echo_offsets: list[int] | None = None  # where each token begins in it; only for log probabilities of completions


# ------------------------------------------------------------------------------------------------------------- chat


def adds_generation_prompt(request: ChatRequest) -> bool:
    """Continuing the last message leaves no place for a generation prompt. Raises ApiError 400 for both at once."""
    if request.continue_final_message:
        if request.add_generation_prompt:
            message = "Cannot set both `continue_final_message` and `add_generation_prompt` to True."
            raise bad_request(message, "continue_final_message")
        return False
    return request.add_generation_prompt is not False


def response_role(request: ChatRequest, services: Services) -> str:
    """Without a generation prompt the answer goes on in the last message, so it has that one's role."""
    return services.settings.response_role if adds_generation_prompt(request) else request.messages[-1]["role"]


def chat_prompt(
    request: ChatRequest, services: Services, info: Ready, tools: list[dict[str, Any]] | None
) -> tuple[Prompt, list[str]]:
    """Renders and tokenises. Returns also what was given to the template and is not read by it. Raises ApiError 400."""
    text, messages, unread = render_chat(request, services, tools)
    prompt = _encode_text(text, request, services, info, add_special_tokens=bool(request.add_special_tokens))
    last = messages[-1]
    if request.echo and last["role"] == response_role(request, services):
        prompt.echo = content_text(last["content"])
    return prompt, unread


def render_chat(
    request: ChatRequest, services: Services, tools: list[dict[str, Any]] | None
) -> tuple[str, list[dict[str, Any]], list[str]]:
    """The prompt's text, the messages as the template had them, and what of the request it does not read. Raises
    ApiError 400."""
    try:
        with chosen_template(request, services, tools) as template:
            history = template.history_form if has_tool_calls(request.messages) else USUAL_HISTORY
            messages = prepare_messages(
                request.messages,
                content_format(template, services),
                knows_developer="developer" in template.source,
                model_name=services.model_name,
                history=history,
            )
            text = template.render(
                messages,
                tools=tools,
                add_generation_prompt=adds_generation_prompt(request),
                continue_final_message=bool(request.continue_final_message),
                documents=request.documents,
                keep_null_content=history.empty_content == "null",
                **_template_variables(request, services, template),
            )
            return text, messages, _unread(request, services, template, tools)
    except TemplateError as error:
        raise bad_request(str(error)) from None


def asked_variables(request: ChatRequest, services: Services) -> dict[str, Any]:
    """What the template is told beside the conversation, whether it reads it or not: the operator's defaults, and over
    them what the request says."""
    own = dict(request.chat_template_kwargs or {})
    if request.enable_thinking is not None:  # a field says more than a variable, by either of its names
        own |= dict.fromkeys(SWITCHES, request.enable_thinking)
    if request.reasoning_effort is not None:
        own["reasoning_effort"] = request.reasoning_effort
        if not any(name in own for name in SWITCHES):
            own["enable_thinking"] = request.reasoning_effort != "none"
    return {**_both_switches(services.settings.default_chat_template_kwargs), **_both_switches(own)}


def _both_switches(given: dict[str, Any]) -> dict[str, Any]:
    """Templates know the switch for reasoning under two names; who uses one of them means both."""
    named = [given[name] for name in SWITCHES if name in given]
    return {**dict.fromkeys(SWITCHES, named[0]), **given} if named else given


def _template_variables(request: ChatRequest, services: Services, template: Template) -> dict[str, Any]:
    """Of `asked_variables`, those that the template reads."""
    read = _free_variables(services, template)
    return {name: value for name, value in asked_variables(request, services).items() if name in read}


def _free_variables(services: Services, template: Template) -> frozenset[str]:
    """What the template reads and a request may set."""
    own = {
        "messages",
        "tools",
        "documents",
        "add_generation_prompt",
        "continue_final_message",
        "keep_null_content",
        "self",
    }
    return template.variables - own - services.tokenizer.special_tokens.keys()


def _unread(
    request: ChatRequest, services: Services, template: Template, tools: list[dict[str, Any]] | None
) -> list[str]:
    """The parts of the request that are for the template, and change nothing with this one."""
    read = _free_variables(services, template)
    if read.intersection(SWITCHES):
        read = read.union(SWITCHES)
    names = [f"chat_template_kwargs.{name}" for name in request.chat_template_kwargs or {} if name not in read]
    if request.reasoning_effort is not None and not read & {"reasoning_effort", *SWITCHES}:
        names.append("reasoning_effort")
    if request.enable_thinking is not None and not read.intersection(SWITCHES):
        names.append("enable_thinking")
    given = {"documents": request.documents, "tools": tools}
    names += [name for name, value in given.items() if value and name not in template.variables]
    return reported(names, "the chat template does not read %s, which has no effect (said once per name)")


# ------------------------------------------------------------------------------------------------------ completions


def completion_prompts(request: CompletionRequest, services: Services, info: Ready) -> list[Prompt]:
    """One for each prompt of the request, in order. Raises ApiError 400."""
    given = request.prompt
    if given is None or (len(given) == 0 and not (given == "" and request.suffix)):
        raise bad_request(_NO_PROMPT, "prompt")
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
        raise _empty_prompt()
    if isinstance(item, str):
        add_special_tokens = request.add_special_tokens is not False
        prompt = _encode_text(item, request, services, info, add_special_tokens=add_special_tokens)
    else:
        check_token_ids(item, info, "prompt")
        prompt = Prompt(_fit(item, request, info))
    if request.echo:
        tokenizer, token_ids = services.tokenizer, prompt.token_ids
        # Of ids the special tokens are shown: they are part of what the client sent.
        prompt.echo = tokenizer.decode(token_ids, skip_special_tokens=False) if prompt.text is None else prompt.text
        if request.logprobs is not None:
            prompt.echo_offsets = prompt_offsets(token_ids, prompt.echo, tokenizer)
    return prompt


def _empty_prompt() -> ApiError:
    """The error for one of several prompts, or for one of which nothing is left."""
    return bad_request(f"The decoder prompt cannot be empty. {_NO_PROMPT}", "prompt")


def _around_the_middle(prefix: str | list[int], suffix: str, request: CompletionRequest, services: Services) -> str:
    """The prompt that makes the model write what belongs between the two. Raises ApiError 400."""
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


def check_token_ids(token_ids: Collection[int], info: Ready, param: str) -> None:
    """Raises ApiError 400, which names those that are wrong, unless the model has all of them."""
    if (problem := out_of_vocabulary(token_ids, info, param)) is not None:
        raise bad_request(problem, param)


def out_of_vocabulary(token_ids: Collection[int], info: Ready, param: str) -> str | None:
    """A message that names the ids that the model does not have; None where it has all of them."""
    if not token_ids or (min(token_ids) >= 0 and max(token_ids) < info.vocab_size):
        return None
    wrong = list(dict.fromkeys(token_id for token_id in token_ids if not 0 <= token_id < info.vocab_size))
    named = listed([str(token_id)[:24] for token_id in wrong])
    return (
        f"token_id(s) [{named}] in {param} contain out-of-vocab token ids. Vocabulary size: {info.vocab_size}. An id "
        f"out of vocabulary cannot be used. (parameter={param}, value=[{named}])"
    )


def listed(names: Sequence[str]) -> str:
    """The names with commas between them, at most `MAX_LISTED`, and how many more there are."""
    more = len(names) - MAX_LISTED
    return ", ".join([*names[:MAX_LISTED], *([f"and {more} more"] if more > 0 else [])])


# ------------------------------------------------------------------------------------------------------------- both


def _encode_text(
    text: str, request: GenerationRequest, services: Services, info: Ready, *, add_special_tokens: bool
) -> Prompt:
    text = encodable(text)
    kept = _guarded(text, request, services.tokenizer, info)
    param = "messages" if isinstance(request, ChatRequest) else "prompt"
    token_ids = encode(services.tokenizer, kept, add_special_tokens, param)
    fitted = _fit(token_ids, request, info)
    _check_rows(fitted, services.tokenizer, info, param)
    if len(fitted) < len(token_ids) or len(kept) < len(text):
        text = services.tokenizer.decode(fitted)
    return Prompt(fitted, text)


def encode(tokenizer: Tokenizer, text: str, add_special_tokens: bool, param: str) -> list[int]:
    """Raises ApiError 400 for a text that the tokenizer gives up on: its regular expressions have limits."""
    try:
        return tokenizer.encode(text, add_special_tokens)
    except TokenizerPanic:
        reason = "its patterns need too many steps, or a character has no token"
        message = f"The model's tokenizer gives up on a text in {param}: {reason}."
        raise bad_request(message, param) from None


def _check_rows(token_ids: Sequence[int], tokenizer: Tokenizer, info: Ready, param: str) -> None:
    """A tokenizer may know more tokens than the model. Raises ApiError 400 for a text that holds such a token."""
    if token_ids and (largest := max(token_ids)) >= info.vocab_size:
        token = reprlib.repr(tokenizer.vocab_entry(largest))
        message = (
            f"Token id {largest} ({token} in {param}) is out of vocabulary: the model has {info.vocab_size} tokens, "
            "fewer than its tokenizer."
        )
        raise bad_request(message, param)


def _guarded(text: str, request: GenerationRequest, tokenizer: Tokenizer, info: Ready) -> str:
    """Bounds the work of tokenising: no text may be longer than the context filled with the longest token."""
    if len(text) <= info.max_model_len * USUAL_CHARS_PER_TOKEN:
        return text
    most = info.max_model_len * _longest_token(tokenizer)
    if len(text) <= most:
        return text
    if request.truncate_prompt_tokens is not None:
        return text[-most:] if _truncates_left(request) else text[:most]
    message = (
        f"This model's maximum context length is {info.max_model_len} tokens. However, your prompt has {len(text)} "
        f"characters, more than {most}, which cannot fit. Please reduce the length of the input prompt. "
        f"(parameter=input_text, value={len(text)})"
    )
    raise bad_request(message, "input_text")


@lru_cache(maxsize=4)
def _longest_token(tokenizer: Tokenizer) -> int:
    return max((len(tokenizer.token_text(token_id)) for token_id in range(tokenizer.vocab_size)), default=1) or 1


def _truncates_left(request: GenerationRequest | TokenizeRequest) -> bool:
    return request.truncation_side != "right"


def _fit(token_ids: list[int], request: GenerationRequest, info: Ready) -> list[int]:
    """Truncates as asked. Raises ApiError 400 for what is still longer than the context, and where nothing is left."""
    longest = info.max_model_len
    token_ids = truncated(token_ids, request, info)
    if len(token_ids) > longest:
        raise too_long(len(token_ids), longest)
    if not token_ids:
        raise _empty_prompt()
    return token_ids


def truncated(token_ids: list[int], request: GenerationRequest | TokenizeRequest, info: Ready) -> list[int]:
    """What `truncate_prompt_tokens` leaves. Raises ApiError 400."""
    keep = request.truncate_prompt_tokens
    longest = info.max_model_len
    if keep is not None:
        if keep > longest:
            message = (
                f"truncate_prompt_tokens={keep} cannot be greater than max_model_len={longest}. "
                f"Please request a smaller truncation size. (parameter=truncate_prompt_tokens, value={keep})"
            )
            raise bad_request(message, "truncate_prompt_tokens")
        keep = longest - 1 if keep == -1 else keep  # one place is left for the output
        if len(token_ids) > keep:
            token_ids = token_ids[len(token_ids) - keep :] if _truncates_left(request) else token_ids[:keep]
    return token_ids


def too_long(num_tokens: int, max_model_len: int) -> ApiError:
    message = (
        f"This model's maximum context length is {max_model_len} tokens. However, your prompt contains {num_tokens} "
        "input tokens, which exceeds this limit even without any output tokens. Please reduce the length of the input "
        f"prompt. (parameter=input_tokens, value={num_tokens})"
    )
    return bad_request(message, "input_tokens")
