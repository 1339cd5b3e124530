"""The bodies of POST /v1/chat/completions and /v1/completions.

`null` means the same as leaving a field out, so every field is optional with the default None, and values are coerced
where that is harmless (`"1"` is 1). Unknown fields are kept in `model_extra`. Ranges are checked where each
field is read, because the messages name what is allowed; what this version cannot do is refused in `unsupported.py`.

Every list and open object has a longest length, and the validation of a list ends at the first wrong item: pydantic
makes an error for each, and nothing else can run meanwhile, so a body of 1 MB could stop the worker for seconds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Required, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WrapValidator, model_validator
from pydantic_core import PydanticCustomError
from typing_extensions import TypedDict

from ember.front.errors import bad_request

Int64 = Annotated[int, Field(ge=-(2**63), le=2**63 - 1)]
Item = TypeVar("Item")
MAX_PROMPTS = 1024
MAX_ITEMS = 16384  # of a list that a person or a program writes: messages, parts, tools, documents, words
MAX_TOKEN_IDS = 2**22  # longer than any context
MAX_KEYS = 1024  # of the body, and of an object in it that may have unknown keys
Items = Annotated[list[Item], Field(max_length=MAX_ITEMS, fail_fast=True)]
TokenIds = Annotated[list[int], Field(max_length=MAX_TOKEN_IDS, fail_fast=True)]  # ranges: `check_token_ids`
Objects = Items[dict[str, Any]]


def _first_wrong_number(given: Any, validate: Callable[[Any], Any]) -> Any:
    """Validate entries that are not plain numbers first and alone, so that the first wrong one ends the validation, as
    `fail_fast` does for lists."""
    if isinstance(given, dict):
        for key, value in given.items():
            if type(value) is not int and type(value) is not float:
                validate({key: value})
    return validate(given)


def _few_prompts(given: Any) -> Any:
    """Raises ApiError 400 for too many prompts. This runs before validation, which takes long with millions of them."""
    if isinstance(given, list) and len(given) > MAX_PROMPTS and isinstance(given[0], str | list):
        raise bad_request(f"prompt must have at most {MAX_PROMPTS} items, got {len(given)}.", "prompt")
    return given


def few_keys(given: Any) -> Any:
    if isinstance(given, dict) and len(given) > MAX_KEYS:
        raise PydanticCustomError("too_long", f"Object should have at most {MAX_KEYS} keys, not {len(given)}")
    return given


def _demanded(schema: dict[str, Any]) -> None:
    """Mark a field as required and not empty in the schema that clients see. The model itself lets it be absent, so
    that the error can be clearer."""
    schema["anyOf"] = [kind for kind in schema["anyOf"] if kind.get("type") != "null"]
    for kind in schema["anyOf"]:
        kind["minLength" if kind["type"] == "string" else "minItems"] = 1
    schema.pop("default", None)


class OpenModel(BaseModel):
    """A body or an object that keeps unknown keys."""

    model_config = ConfigDict(extra="allow", protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _check_keys(cls, given: Any) -> Any:
        return few_keys(given)


class StreamOptions(OpenModel):
    """The usage that a stream reports."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class RepetitionDetection(OpenModel):
    """When repeated output ends; see `repetition.py`."""

    max_pattern_size: Int64 | None = None
    min_pattern_size: Int64 | None = None
    min_count: Int64 | None = None


_FORMAT_EXTRA = {
    "json_object": frozenset({"schema"}),
    "structural_tag": frozenset({"format", "structures", "triggers"}),
}


class ResponseFormat(OpenModel):
    """`schema`, `format`, `structures` and `triggers` are among the unknown keys; see `structured.py`."""

    type: str
    json_schema: dict[str, Any] | None = None

    @property
    def read_extra(self) -> frozenset[str]:
        """The unknown keys that mean something in this type."""
        return _FORMAT_EXTRA.get(self.type, frozenset())


class GenerationRequest(OpenModel):
    """The fields that chat and completions share."""

    model: str | None = None
    # sampling
    n: Int64 | None = None
    best_of: Int64 | None = None
    use_beam_search: bool | None = None
    length_penalty: float | None = None
    early_stopping: bool | str | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: Int64 | None = None
    min_p: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    repetition_penalty: float | None = None
    seed: Int64 | None = None
    logit_bias: Annotated[dict[str, float], WrapValidator(_first_wrong_number)] | None = None
    allowed_token_ids: TokenIds | None = None
    bad_words: Items[str] | None = None
    # the end of the output
    max_tokens: Int64 | None = None
    max_completion_tokens: Int64 | None = None  # wins in chats, where it is the newer name
    min_tokens: Int64 | None = None
    stop: str | Items[str] | None = None
    stop_token_ids: TokenIds | None = None
    ignore_eos: bool | None = None
    include_stop_str_in_output: bool | None = None
    repetition_detection: RepetitionDetection | None = None
    # what is returned
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    stream_interval: Annotated[Int64, Field(ge=1)] | None = None
    echo: bool | None = None
    prompt_logprobs: Int64 | None = None
    logprob_token_ids: TokenIds | None = None
    skip_special_tokens: bool | None = None
    spaces_between_special_tokens: bool | None = None
    return_tokens_as_token_ids: bool | None = None
    return_token_ids: bool | None = None
    return_token_offsets: bool | None = None
    # the prompt
    add_special_tokens: bool | None = None
    truncate_prompt_tokens: Annotated[Int64, Field(ge=-1)] | None = None
    truncation_side: Annotated[str, Field(pattern="^(left|right)$")] | None = None
    # scheduling
    priority: Int64 | None = None
    cache_salt: str | None = None
    request_id: str | None = None
    # the form of the output, under its names of every version; see `structured.py`
    response_format: ResponseFormat | None = None
    structured_outputs: dict[str, Any] | None = None
    guided_decoding: dict[str, Any] | None = None
    guided_json: Any = None
    guided_regex: Any = None
    guided_choice: Any = None
    guided_grammar: Any = None
    guided_json_object: bool | None = None
    guided_whitespace_pattern: Any = None
    guided_decoding_backend: Any = None
    structural_tag: Any = None


class Message(TypedDict, total=False):
    """One message of a chat. Further keys are kept and handed to the template."""

    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]

    role: Required[str]
    content: str | Items[str | dict[str, Any]] | None
    name: str | None
    tool_calls: Objects | None
    function_call: dict[str, Any] | None
    tool_call_id: str | None
    reasoning: str | None
    reasoning_content: str | None


Messages = Annotated[
    list[Annotated[Message, BeforeValidator(few_keys)]], Field(min_length=1, max_length=MAX_ITEMS, fail_fast=True)
]


class ChatRequest(GenerationRequest):
    """POST /v1/chat/completions."""

    messages: Messages
    logprobs: bool | None = None
    top_logprobs: Int64 | None = None
    # the template
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    documents: Objects | None = None
    reasoning_effort: Annotated[str, Field(pattern="^(none|minimal|low|medium|high|xhigh|max)$")] | None = None
    # reasoning
    include_reasoning: bool | None = None
    enable_thinking: bool | None = None
    thinking_token_budget: Any = None
    # tools; the last two are their names of 2023
    tools: Objects | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    functions: Objects | None = None
    function_call: str | dict[str, Any] | None = None
    return_prompt_text: bool | None = None


class CompletionRequest(GenerationRequest):
    """POST /v1/completions. Prompts are text or token ids, one or a list."""

    model_config = ConfigDict(json_schema_extra={"required": ["prompt"]})

    prompt: Annotated[str | TokenIds | Items[TokenIds] | Items[str] | None, BeforeValidator(_few_prompts)] = Field(
        None, json_schema_extra=_demanded
    )
    logprobs: Int64 | None = None
    suffix: str | None = None


class BatchChatRequest(OpenModel):
    """POST /v1/chat/completions/batch. Each conversation becomes a `ChatRequest` with the body's other fields."""

    model: str | None = None
    messages: Annotated[list[Messages], Field(min_length=1, max_length=MAX_PROMPTS, fail_fast=True)]
    n: Int64 | None = None


class TokenizeRequest(OpenModel):
    """POST /tokenize with a text."""

    model: str | None = None
    prompt: str
    add_special_tokens: bool | None = None
    truncate_prompt_tokens: Annotated[Int64, Field(ge=-1)] | None = None
    truncation_side: Annotated[str, Field(pattern="^(left|right)$")] | None = None
    return_token_strs: bool | None = None


class TokenizeChatRequest(ChatRequest):
    """POST /tokenize with a conversation."""

    return_token_strs: bool | None = None


class DetokenizeRequest(OpenModel):
    """POST /detokenize."""

    model: str | None = None
    tokens: TokenIds
