"""What a step says of a sequence, as messages to the front."""

from __future__ import annotations

from collections.abc import Container

from ember.engine.core.sequence import Sequence
from ember.wire import Pooled, SequenceOutput, TokenLogprobs


def append(
    sequence: Sequence, token_ids: list[int], logprobs: list[TokenLogprobs] | None, eos_token_ids: Container[int]
) -> SequenceOutput:
    """Append the tokens that a step sampled, up to the one that ends the sequence, apart from its grammar. Later tokens
    of the step are dropped, with their log probabilities."""
    sampling = sequence.sampling
    is_first = not sequence.is_prefilled
    sequence.is_prefilled = True
    finish_reason: str | None = None
    stop_reason: int | None = None
    num_kept = 0
    if sampling.max_tokens == 0:  # the request only scores the prompt
        logprobs, finish_reason = None, "length"
    else:
        if is_first:  # before its first token a sample shares the prompt's list with the others
            sequence.token_ids = list(sequence.token_ids)
        for token_id in token_ids:
            sequence.token_ids.append(token_id)
            num_kept += 1
            is_eos = token_id in eos_token_ids and not sampling.ignore_eos
            if is_eos or token_id in sampling.stop_token_ids:
                finish_reason, stop_reason = "stop", token_id
                break
            if sequence.num_tokens >= sequence.max_num_tokens:
                finish_reason = "length"
                break
    return SequenceOutput(
        request_id=sequence.request_id,
        index=sequence.index,
        token_ids=token_ids[:num_kept],
        finish_reason=finish_reason,
        stop_reason=stop_reason,
        logprobs=logprobs[:num_kept] if logprobs is not None else None,
        num_cached_tokens=max(sequence.num_cached_tokens, 0) if is_first else 0,
        prompt_logprobs=sequence.scored_prompt if is_first else None,
        queue_seconds=sequence.admitted - sequence.arrived if is_first else 0.0,
        num_preemptions=sequence.num_preemptions,
    )


def pooled(sequence: Sequence, result: Pooled) -> SequenceOutput:
    """The only output of a request for a pooling task."""
    return SequenceOutput(
        request_id=sequence.request_id,
        index=0,
        token_ids=[],
        finish_reason="stop",
        num_cached_tokens=max(sequence.num_cached_tokens, 0),
        queue_seconds=sequence.admitted - sequence.arrived,
        pooled=result,
    )


def failed(request_id: int, index: int, error: str, param: str | None = None) -> SequenceOutput:
    """The last output of a sample that ends with an error. `param`: the request's field that is the cause."""
    return SequenceOutput(request_id, index, [], finish_reason="error", error=error, error_param=param)
