"""The engine's log probabilities in the three shapes the API has for them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ember.front.text.tokenizer import Tokenizer
from ember.wire import TokenLogprobs

LOWEST = -9999.0  # stands for minus infinity, which JSON cannot say


def finite(logprob: float) -> float:
    """NaN and anything below `LOWEST` become `LOWEST`."""
    return logprob if logprob >= LOWEST and not math.isinf(logprob) else LOWEST


class TokenNames:
    """How the tokens of an answer are written: as text, or as `token_id:123`."""

    def __init__(self, tokenizer: Tokenizer, as_ids: bool) -> None:
        self._tokenizer = tokenizer
        self._as_ids = as_ids

    def name(self, token_id: int) -> str:
        return f"token_id:{token_id}" if self._as_ids else self._tokenizer.token_text(token_id)

    def bytes(self, token_id: int) -> list[int]:
        return list(self._tokenizer.token_bytes(token_id))


def _shown(entry: TokenLogprobs, count: int) -> list[tuple[int, float]]:
    """The first `count` (-1 = all) of: the sampled token, then the most likely ones without it. Behind them the tokens
    that the request named, if it did; the sampled one then comes in any case."""
    top = zip(entry.top_ids, entry.top_logprobs, strict=True)
    ranked = [(entry.token_id, entry.logprob), *(pair for pair in top if pair[0] != entry.token_id)]
    kept = ranked if count == -1 else ranked[: max(count, 1) if entry.asked_ids else count]
    known = {token_id for token_id, _ in kept}
    asked = zip(entry.asked_ids, entry.asked_logprobs, strict=True)
    return [*kept, *(pair for pair in asked if pair[0] not in known)]


def chat_logprobs(entries: Sequence[TokenLogprobs], num_top: int, names: TokenNames) -> dict[str, Any]:
    """`{"content": [...]}`; `num_top` -1 = all. The alternatives begin with the sampled token."""
    content = []
    for entry in entries:
        top = _shown(entry, num_top)
        content.append(
            {
                **_chat_entry(entry.token_id, entry.logprob, names),
                "top_logprobs": [_chat_entry(token_id, logprob, names) for token_id, logprob in top],
            }
        )
    return {"content": content}


def _chat_entry(token_id: int, logprob: float, names: TokenNames) -> dict[str, Any]:
    return {"token": names.name(token_id), "logprob": finite(logprob), "bytes": names.bytes(token_id)}


class CompletionLogprobs:
    """The columns of /v1/completions for one choice. Offsets run on from one call of `take` to the next."""

    def __init__(self, num_top: int, names: TokenNames) -> None:
        self._num_top = num_top
        self._names = names
        self._offset = 0

    def take(self, token_ids: Sequence[int], entries: Sequence[TokenLogprobs | None]) -> dict[str, Any]:
        """The columns for these tokens; an entry is None where there is no prediction (the first of a prompt)."""
        offsets: list[int] = []
        tokens: list[str] = []
        logprobs: list[float | None] = []
        top: list[dict[str, float] | None] = []
        for token_id, entry in zip(token_ids, entries, strict=True):
            name = self._names.name(token_id)
            offsets.append(self._offset)
            tokens.append(name)
            self._offset += len(name)
            if entry is None:
                logprobs.append(None)
                top.append(None)
                continue
            kept = _shown(entry, -1 if self._num_top == -1 else self._num_top + 1)
            logprobs.append(finite(entry.logprob))
            by_name: dict[str, float] = {}
            for alternative, logprob in kept:  # where two tokens have one name, the sampled or likelier one stays
                by_name.setdefault(self._names.name(alternative), finite(logprob))
            top.append(by_name)
        return {"text_offset": offsets, "token_logprobs": logprobs, "tokens": tokens, "top_logprobs": top}


def prompt_logprobs(
    entries: Sequence[TokenLogprobs | None] | None, num_top: int, names: TokenNames
) -> list[dict[str, Any] | None] | None:
    """One object by token id for each position of the prompt, null at the first."""
    if entries is None:
        return None
    positions: list[dict[str, Any] | None] = []
    for entry in entries:
        if entry is None:
            positions.append(None)
            continue
        ranks = {token_id: rank for rank, token_id in enumerate(entry.top_ids, start=1)}
        kept = _shown(entry, -1 if num_top == -1 else num_top + 1)
        positions.append(
            {
                str(token_id): {
                    "logprob": finite(logprob),
                    "rank": entry.rank if token_id == entry.token_id else ranks[token_id],
                    "decoded_token": names.name(token_id),
                }
                for token_id, logprob in kept
            }
        )
    return positions
