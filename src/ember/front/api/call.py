"""What chat and completions do alike: ids, headers, the jobs for the engine, the usage of the answer."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ember.front.api.body import IGNORED_FIELDS_HEADER, MAX_IGNORED, ignored_fields
from ember.front.api.exchange import REQUEST_ID_HEADER, Request, request_id
from ember.front.api.logprobs import TokenNames
from ember.front.api.prompt import Prompt
from ember.front.api.runs import Job, Runs
from ember.front.api.samples import TextOptions
from ember.front.api.sampling import check_num_samples, priority, sampling_params, stop_strings, with_lengths
from ember.front.api.schemas import GenerationRequest
from ember.front.api.services import Services
from ember.front.api.unsupported import REFUSED
from ember.front.api.usage import StreamUsage, stream_usage, usage_body, usage_for_stream
from ember.wire import Ready


@dataclass(slots=True)
class Call:
    """One accepted request: everything its answer is made of, apart from the tokens."""

    services: Services
    info: Ready
    id: str
    created: int
    headers: dict[str, str]
    stream_usage: StreamUsage
    names: TokenNames
    jobs: list[Job]

    def runs(self) -> Runs:
        return Runs(self.jobs, self.services)

    @property
    def n(self) -> int:
        return self.jobs[0].sampling.n

    @property
    def num_choices(self) -> int:
        return len(self.jobs) * self.n

    @property
    def fingerprint(self) -> str:
        return self.services.fingerprint(self.info)

    def usage(self, runs: Runs, completion_tokens: int) -> dict[str, Any]:
        """For a whole answer, nulls included."""
        return usage_body(runs.prompt_tokens(), completion_tokens, self._cached(runs))

    def final_usage(self, runs: Runs, completion_tokens: int) -> dict[str, Any]:
        """For the last chunk of a stream."""
        return usage_for_stream(runs.prompt_tokens(), completion_tokens, self._cached(runs))

    def _cached(self, runs: Runs) -> int | None:
        return runs.cached_tokens() if self.services.settings.enable_prompt_tokens_details else None


def open_call(
    request: Request,
    fields: GenerationRequest,
    services: Services,
    info: Ready,
    prompts: Sequence[Prompt],
    id_prefix: str,
    ignored: Sequence[str] = (),
) -> Call:
    """Checks what is left to check and plans the jobs. Tokenises bad words: runs in a thread. Raises ApiError 400.

    `ignored` are the parts of the request that were found to have no effect, beside the fields nobody knows.
    """
    params = sampling_params(fields, services, info)
    check_num_samples(params.n, len(prompts), info)
    stop = stop_strings(fields, services.settings)
    rank = priority(fields, request.headers.get("x-vllm-priority"))
    usage = stream_usage(fields, services.settings)
    shows_special = services.generation_defaults.get("skip_special_tokens") is False
    ends = frozenset(params.stop_token_ids).union(() if params.ignore_eos else info.eos_token_ids)
    jobs = []
    for prompt in prompts:
        sampling = with_lengths(params, fields, services, info, len(prompt.token_ids))
        text = TextOptions(
            stop=stop,
            include_stop=bool(fields.include_stop_str_in_output),
            min_tokens=sampling.min_tokens,
            skip_special_tokens=not shows_special if fields.skip_special_tokens is None else fields.skip_special_tokens,
            spaces_between_special_tokens=fields.spaces_between_special_tokens is not False,
            end_token_ids=ends,
            stop_token_ids=frozenset(params.stop_token_ids),
        )
        jobs.append(Job(prompt, sampling, text, rank, fields.cache_salt))
    as_ids = fields.return_tokens_as_token_ids
    if as_ids is None:
        as_ids = services.settings.return_tokens_as_token_ids
    name = request_id(request.headers.get(REQUEST_ID_HEADER.lower()), fields.request_id)  # the header wins
    return Call(
        services=services,
        info=info,
        id=f"{id_prefix}-{name}",
        created=int(time.time()),
        headers=_headers([*ignored_fields(fields, REFUSED), *ignored], services, name),
        stream_usage=usage,
        names=TokenNames(services.tokenizer, as_ids),
        jobs=jobs,
    )


def _headers(ignored: Sequence[str], services: Services, name: str) -> dict[str, str]:
    headers = {}
    if ignored:
        headers[IGNORED_FIELDS_HEADER] = ", ".join(ignored[:MAX_IGNORED])
    if services.settings.enable_request_id_headers:
        headers[REQUEST_ID_HEADER] = name
    return headers
