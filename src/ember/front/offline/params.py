"""The options of offline requests, under vLLM's names, and their translation to the fields of the API's bodies."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from ember.front.api.sampling_ranges import check_range
from ember.front.errors import ApiError
from ember.front.offline.checks import check_options

_NO_WAY = "is not supported by this version of Ember; leave it out"
_RANGED = (
    *("temperature", "top_p", "top_k", "min_p"),
    *("presence_penalty", "frequency_penalty", "repetition_penalty"),
)
_FORMS = ("json", "regex", "choice", "grammar", "json_object", "structural_tag")


def _refuse(options: Any, names: tuple[str, ...]) -> None:
    """Raises ValueError for the first of these options that asks for something."""
    for name in names:
        if getattr(options, name):
            raise ValueError(f"{name} {_NO_WAY}")


def _at_least_1(options: Any, name: str) -> None:
    value = getattr(options, name)
    if value is not None and value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}.")


@dataclass
class StructuredOutputsParams:
    """The form of an output. One of the first six is given."""

    json: str | dict[str, Any] | None = None
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None
    structural_tag: str | dict[str, Any] | None = None
    disable_fallback: bool = False
    disable_any_whitespace: bool = False
    disable_additional_properties: bool = False
    whitespace_pattern: str | None = None

    def __post_init__(self) -> None:
        """Raises ValueError for an option of a wrong type, and unless exactly one form is given."""
        check_options(self)
        given = [name for name in _FORMS if getattr(self, name) is not None]
        if len(given) != 1:
            found = ", ".join(given) or "none"
            raise ValueError(f"structured outputs must have exactly one of {', '.join(_FORMS)}; there is {found}.")


class GuidedDecodingParams(StructuredOutputsParams):
    """`StructuredOutputsParams` under the name that vLLM gave it first."""


@dataclass
class SamplingParams:
    """How prompts are continued. The last options are known and refused, as no version of Ember has them yet."""

    n: int = 1
    best_of: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool = False
    max_tokens: int | None = 16  # None: as many as the context leaves
    min_tokens: int = 0
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    logprob_token_ids: list[int] | None = None
    detokenize: bool = True
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool = True
    include_stop_str_in_output: bool = False
    truncate_prompt_tokens: int | None = None
    structured_outputs: StructuredOutputsParams | dict[str, Any] | None = None
    guided_decoding: StructuredOutputsParams | dict[str, Any] | None = None
    logit_bias: dict[int | str, float] | None = None
    allowed_token_ids: list[int] | None = None
    bad_words: list[str] | None = None
    repetition_detection: dict[str, int] | None = None
    thinking_token_budget: int | None = None  # of chats
    logits_processors: Any = None
    extra_args: Any = None
    output_kind: Any = None
    flat_logprobs: bool = False
    skip_reading_prefix_cache: bool | None = None

    def __post_init__(self) -> None:
        """Raises ValueError for an option of a wrong type, out of range, or that Ember does not have."""
        _refuse(self, _REFUSED)
        check_options(self)
        for name in _RANGED:
            try:
                check_range(name, getattr(self, name))
            except ApiError as error:
                raise ValueError(error.message) from None
        _at_least_1(self, "n")
        _at_least_1(self, "max_tokens")
        self.stop = [self.stop] if isinstance(self.stop, str) else self.stop
        for name in ("stop", "stop_token_ids", "bad_words"):
            setattr(self, name, getattr(self, name) or [])
        for name in ("stop", "bad_words"):
            if "" in getattr(self, name):
                raise ValueError(f"{name} cannot contain an empty string.")
        for name in ("logprobs", "prompt_logprobs", "thinking_token_budget"):
            if (getattr(self, name) or 0) < -1:
                raise ValueError(f"{name} must be at least 0, or -1 for no limit, got {getattr(self, name)}.")
        if self.min_tokens < 0 or (self.max_tokens is not None and self.min_tokens > self.max_tokens):
            most = "" if self.max_tokens is None else f" and at most max_tokens={self.max_tokens}"
            raise ValueError(f"min_tokens must be at least 0{most}, got {self.min_tokens}.")
        if self.seed is not None and not -(2**63) <= self.seed < 2**63:
            raise ValueError(f"seed must be a number of 64 bits, got {self.seed}.")
        self.thinking_token_budget = None if self.thinking_token_budget == -1 else self.thinking_token_budget

    def body(self, longest: int) -> dict[str, Any]:
        """The fields of a body for /v1/completions. `longest` is the length of the context: an output
        ends there, whatever `max_tokens` says. Raises ValueError for an option of chats."""
        if self.thinking_token_budget is not None:
            raise ValueError("thinking_token_budget is for chats: use LLM.chat, or leave it out.")
        return self._body(longest)

    def _body(self, longest: int) -> dict[str, Any]:
        found = {field.name: getattr(self, field.name) for field in fields(self) if field.name not in _NOT_SENT}
        found["max_tokens"] = longest if self.max_tokens is None else min(self.max_tokens, longest)
        for name in ("structured_outputs", "guided_decoding"):
            form = found[name]
            found[name] = asdict(form) if isinstance(form, StructuredOutputsParams) else form
        if self.logit_bias is not None:
            found["logit_bias"] = {str(token_id): bias for token_id, bias in self.logit_bias.items()}
        return {name: value for name, value in found.items() if value is not None}

    def chat_body(self, longest: int) -> dict[str, Any]:
        """The options as fields of a body for /v1/chat/completions, which has log probabilities in another form."""
        found = self._body(longest)
        if self.logprobs is not None:
            found |= {"logprobs": True, "top_logprobs": self.logprobs}
        if self.thinking_token_budget is not None:
            found["thinking_token_budget"] = self.thinking_token_budget
        return found


_REFUSED = ("logits_processors", "extra_args", "output_kind", "flat_logprobs", "skip_reading_prefix_cache")
_NOT_SENT = frozenset({"detokenize", "thinking_token_budget", *_REFUSED})


@dataclass
class BeamSearchParams:
    """A beam search."""

    beam_width: int
    max_tokens: int
    ignore_eos: bool = False
    temperature: float = 0.0
    length_penalty: float = 1.0
    include_stop_str_in_output: bool = False

    def __post_init__(self) -> None:
        """Raises ValueError for an option of a wrong type or out of range, and for a temperature: Ember's search ranks
        by the model's own probabilities."""
        check_options(self)
        _refuse(self, ("temperature",))
        _at_least_1(self, "beam_width")
        _at_least_1(self, "max_tokens")

    def body(self) -> dict[str, Any]:
        """The fields of a body for /v1/completions."""
        return {
            "use_beam_search": True,
            "n": self.beam_width,
            "best_of": self.beam_width,
            "max_tokens": self.max_tokens,
            "ignore_eos": self.ignore_eos,
            "length_penalty": self.length_penalty,
            "include_stop_str_in_output": self.include_stop_str_in_output,
            "logprobs": 0,
        }


@dataclass
class PoolingParams:
    """How texts are pooled."""

    truncate_prompt_tokens: int | None = None
    dimensions: int | None = None
    use_activation: bool | None = None
    task: str | None = None

    def __post_init__(self) -> None:
        """Raises ValueError for an option of a wrong type."""
        check_options(self)

    def body(self) -> dict[str, Any]:
        """The fields of a body for the pooling routes, without the task."""
        return {name: value for name, value in asdict(self).items() if value is not None and name != "task"}
