"""What chats and completions have in common: ids, headers, the engine's requests, the usage of the answer."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from ember.front.api.beams import requested_beams, without_effect
from ember.front.api.body import IGNORED_FIELDS_HEADER, MAX_IGNORED, ignored_fields, reported
from ember.front.api.call_grammar import constrained
from ember.front.api.ends import end_token_ids, requested_ends
from ember.front.api.exchange import MAX_ID_CHARS, REQUEST_ID_HEADER, Request, is_fit_id, request_id
from ember.front.api.logprobs import TokenNames
from ember.front.api.meter import Meter, request_metrics
from ember.front.api.output_reader import ReaderOptions
from ember.front.api.prompt import Prompt
from ember.front.api.repetition import requested_repetition
from ember.front.api.run import RunSpec
from ember.front.api.runs import Runs
from ember.front.api.samples import TextOptions
from ember.front.api.sampling import sampling_params
from ember.front.api.scheduling import requested_cache_salt, requested_priority
from ember.front.api.schemas import GenerationRequest
from ember.front.api.services import Services
from ember.front.api.unsupported import REFUSED
from ember.front.api.usage import StreamUsage, stream_usage, usage_body, usage_for_stream
from ember.front.errors import bad_request
from ember.logs import REQUEST_ID
from ember.wire import Ready, Thinking


@dataclass(slots=True)
class ApiCall:
    """One accepted request to the API, with everything that its answer needs except the tokens."""

    services: Services
    info: Ready
    id: str
    log_id: str  # the same, unless a route replaces `id` by one that no client can repeat
    name: str  # of the request: the last part of `log_id`
    created: int
    headers: dict[str, str]
    stream_usage: StreamUsage
    stream_interval: int  # tokens of a choice in one chunk, after the first
    names: TokenNames
    specs: list[RunSpec]
    arrived: float  # reading of time.monotonic()

    def runs(self) -> Runs:
        meter = Meter(self.services.metrics, self.log_id, self.arrived)
        return Runs(self.specs, self.services, meter, frozenset({self.id, self.log_id, self.name}))

    @property
    def n(self) -> int:
        """The number of choices of each prompt."""
        return self.specs[0].n

    @property
    def num_choices(self) -> int:
        return len(self.specs) * self.n

    @property
    def fingerprint(self) -> str:
        return self.services.fingerprint(self.info)

    def usage(self, runs: Runs, completion_tokens: int) -> dict[str, Any]:
        """The usage of a whole answer, nulls included."""
        return usage_body(runs.prompt_tokens(), completion_tokens, self._cached(runs), self._reasoning(runs))

    def final_usage(self, runs: Runs, completion_tokens: int) -> dict[str, Any]:
        """The usage in a chunk of a stream, without nulls."""
        return usage_for_stream(runs.prompt_tokens(), completion_tokens, self._cached(runs), self._reasoning(runs))

    def metrics(self, runs: Runs) -> dict[str, float | None] | None:
        """The times of a finished request. None if the deployment does not show them, or with several choices."""
        if not self.services.settings.enable_per_request_metrics or self.num_choices > 1:
            return None
        run = runs.runs[0]
        sample = run.samples[0]
        return request_metrics(run.clocks[sample], sample.num_tokens, self.arrived)

    def final_chunk(self, runs: Runs) -> dict[str, Any]:
        """The fields of the usage chunk at the end of a stream, beside those of every chunk."""
        usage = self.final_usage(runs, runs.completion_tokens())
        chunk = {"choices": [], "usage": usage, "system_fingerprint": self.fingerprint}
        if (metrics := self.metrics(runs)) is not None:
            chunk["metrics"] = {name: value for name, value in metrics.items() if value is not None}
        return chunk

    def _cached(self, runs: Runs) -> int | None:
        return runs.cached_tokens() if self.services.settings.enable_prompt_tokens_details else None

    def _reasoning(self, runs: Runs) -> int | None:
        """The reasoning tokens. None when outputs are not read for reasoning."""
        reader = self.specs[0].text.reader
        return None if reader is None or reader.reasoning is None else runs.reasoning_tokens()


def open_call(
    raw_request: Request,
    request: GenerationRequest,
    services: Services,
    info: Ready,
    prompts: Sequence[Prompt],
    id_prefix: str,
    ignored: Sequence[str] = (),
    reader: ReaderOptions | None = None,
) -> ApiCall:
    """Check the remaining fields and make the engine's requests. Raises ApiError 400.

    It tokenises bad words, so it runs in a thread.

    `ignored` names parts of the request that have no effect, apart from unknown fields. A chat has a `reader` and one
    prompt.
    """
    ends = requested_ends(request, services, info)
    params = sampling_params(request, services, info, ends, len(prompts))
    if reader is not None:
        params = constrained(params, reader, prompts[0].token_ids)
        _check_thinking(params.thinking, info)
    beams = requested_beams(request, params, ends, info)
    priority = requested_priority(request, raw_request.headers.get("x-vllm-priority"))
    cache_salt = requested_cache_salt(request)
    usage = stream_usage(request, services.settings)
    skips_special = request.skip_special_tokens
    if skips_special is None:
        skips_special = services.generation_defaults.get("skip_special_tokens") is not False
    text = TextOptions(
        stop=ends.stop,
        include_stop=bool(request.include_stop_str_in_output),
        min_tokens=ends.min_tokens,
        skip_special_tokens=skips_special,
        spaces_between_special_tokens=request.spaces_between_special_tokens is not False,
        end_token_ids=end_token_ids(params, info),
        stop_token_ids=frozenset(ends.stop_token_ids),
        repetition=requested_repetition(request),
        reader=reader,
    )
    specs = []
    for prompt in prompts:
        max_tokens = ends.max_tokens(len(prompt.token_ids), info.max_model_len)
        sampling = msgspec.structs.replace(params, max_tokens=max_tokens)
        specs.append(RunSpec(prompt, sampling, text, priority, cache_salt, n=request.n or 1, beams=beams))
    as_ids = request.return_tokens_as_token_ids
    if as_ids is None:
        as_ids = services.settings.return_tokens_as_token_ids
    name = request_name(raw_request, request.request_id)
    return ApiCall(
        services=services,
        info=info,
        id=f"{id_prefix}{name}",
        log_id=f"{id_prefix}{name}",
        name=name,
        created=int(time.time()),
        headers=answer_headers(
            [*ignored_fields(request, REFUSED), *_unread_options(request, services), *ignored], services, name
        ),
        stream_usage=usage,
        stream_interval=request.stream_interval or services.settings.stream_interval,
        names=TokenNames(services.tokenizer, as_ids),
        specs=specs,
        arrived=raw_request.arrived,
    )


def _check_thinking(thinking: Thinking | None, info: Ready) -> None:
    """Raises ApiError 400 if the model's vocabulary lacks the tokens that begin and end its reasoning."""
    if thinking is None:
        return
    forced = (thinking.start_token_ids, thinking.forced_token_ids, thinking.gap_token_ids, *thinking.end_token_ids)
    largest = max((token_id for token_ids in forced for token_id in token_ids), default=0)
    if largest >= info.vocab_size:
        message = (
            f"Reasoning cannot be told from the answer: token id {largest} of its marks is out of vocabulary, as "
            f"the model has {info.vocab_size} tokens, fewer than its tokenizer."
        )
        raise bad_request(message, "thinking_token_budget")


def _unread_options(request: GenerationRequest, services: Services) -> list[str]:
    """The given options that have no effect with the others, or in this deployment."""
    message = "the request field %s has no effect together with use_beam_search, or without it (logged once per name)"
    names = reported(without_effect(request), message)
    return [*names, *unread_priority(request.priority, services)]


def unread_priority(priority: int | None, services: Services) -> list[str]:
    """`priority` where it is given and has no effect in this deployment."""
    if not priority or services.settings.scheduling_policy == "priority":
        return []
    return reported(
        ["priority"], "the request field %s has no effect without SCHEDULING_POLICY=priority (logged once per name)"
    )


def request_name(raw_request: Request, given: str | None) -> str:
    """The last part of the answer's id: from the header, which wins, from the body, or a new one. Raises ApiError
    400."""
    if given is not None and not is_fit_id(given):
        message = f"`request_id` must be 1 to {MAX_ID_CHARS} printable ASCII characters."
        raise bad_request(message, "request_id")
    return request_id(raw_request.headers.get(REQUEST_ID_HEADER.lower()), given, REQUEST_ID.get())


def answer_headers(ignored: Sequence[str], services: Services, name: str) -> dict[str, str]:
    """The headers of an answer: the fields that have no effect, and the id if the deployment shows it."""
    headers = {}
    if ignored:
        headers[IGNORED_FIELDS_HEADER] = ", ".join(ignored[:MAX_IGNORED])
    if services.settings.enable_request_id_headers:
        headers[REQUEST_ID_HEADER] = name
    return headers
