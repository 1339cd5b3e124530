"""The engine's log probabilities in the three shapes the API has for them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ember.front.text.detokenizer import Detokenizer
from ember.front.text.tokenizer import Tokenizer
from ember.wire import TokenLogprobs

LOWEST = -9999.0  # for minus infinity, which JSON cannot hold


def finite(logprob: float) -> float:
    """The value as JSON can hold it: NaN and anything below `LOWEST` become `LOWEST`."""
    return logprob if logprob >= LOWEST and not math.isinf(logprob) else LOWEST


class TokenNames:
    """Writes the tokens of an answer as text, or as `token_id:123`."""

    def __init__(self, tokenizer: Tokenizer, as_ids: bool) -> None:
        self._tokenizer = tokenizer
        self._as_ids = as_ids

    def name(self, token_id: int) -> str:
        return f"token_id:{token_id}" if self._as_ids else self._tokenizer.token_text(token_id)

    def bytes(self, token_id: int) -> list[int]:
        return list(self._tokenizer.token_bytes(token_id))


def alternatives(entry: TokenLogprobs, num_top: int) -> list[tuple[int, float]]:
    """The alternatives at one position: the token itself, then the others of the `num_top` likeliest (-1 = all). Tokens
    that the request names in `logprob_token_ids` replace the likeliest."""
    if entry.asked_ids:
        others = zip(entry.asked_ids, entry.asked_logprobs, strict=True)
    else:
        end = None if num_top == -1 else num_top  # the engine may have been asked for more: the prompt's share a field
        others = zip(entry.top_ids[:end], entry.top_logprobs[:end], strict=True)
    return [(entry.token_id, entry.logprob), *(pair for pair in others if pair[0] != entry.token_id)]


def chat_logprobs(entries: Sequence[TokenLogprobs], num_top: int, names: TokenNames) -> dict[str, Any]:
    """`{"content": [...]}`; `num_top` -1 = all. The alternatives begin with the sampled token, which counts as one of
    the `num_top`; tokens that the request named are all there."""
    content = []
    for entry in entries:
        top = alternatives(entry, num_top)
        if num_top != -1 and not entry.asked_ids:
            top = top[:num_top]
        content.append(
            {
                **logprob_entry(entry.token_id, entry.logprob, names),
                "top_logprobs": [logprob_entry(token_id, logprob, names) for token_id, logprob in top],
            }
        )
    return {"content": content}


def logprob_entry(token_id: int, logprob: float, names: TokenNames) -> dict[str, Any]:
    return {"token": names.name(token_id), "logprob": finite(logprob), "bytes": names.bytes(token_id)}


class CompletionLogprobs:
    """The columns of /v1/completions for one choice: lists with one element for each token.

    `text_offset` says where the token's text begins in the choice's `text`, in characters. `detokenizer` is one of its
    own with the options of the choice's: tokens that give no text have no width, and those of one character share its
    offset. The offsets run on from one call to the next.
    """

    def __init__(self, num_top: int, names: TokenNames, detokenizer: Detokenizer) -> None:
        self._num_top = num_top
        self._names = names
        self._detokenizer = detokenizer
        self._offset = 0

    def echo(
        self, token_ids: Sequence[int], entries: Sequence[TokenLogprobs | None], offsets: Sequence[int], length: int
    ) -> dict[str, list[Any]]:
        """The columns of the prompt, which `echo` puts before the output with a text of `length` characters. An entry
        is None where there is no prediction: at the first token."""
        self._offset += length
        return self._columns(token_ids, entries, list(offsets))

    def take(self, token_ids: Sequence[int], entries: Sequence[TokenLogprobs]) -> dict[str, list[Any]]:
        """The columns of the output's next tokens."""
        offsets = []
        for token_id in token_ids:
            offsets.append(self._offset)
            self._offset += len(self._detokenizer.push((token_id,)))
        return self._columns(token_ids, entries, offsets)

    def _columns(
        self, token_ids: Sequence[int], entries: Sequence[TokenLogprobs | None], offsets: list[int]
    ) -> dict[str, list[Any]]:
        logprobs: list[float | None] = []
        top: list[dict[str, float] | None] = []
        for entry in entries:
            if entry is None:
                logprobs.append(None)
                top.append(None)
                continue
            logprobs.append(finite(entry.logprob))
            by_name: dict[str, float] = {}
            for alternative, logprob in alternatives(entry, self._num_top):
                # Where two tokens have one name, the sampled or likelier one stays.
                by_name.setdefault(self._names.name(alternative), finite(logprob))
            top.append(by_name)
        tokens = [self._names.name(token_id) for token_id in token_ids]
        return {"text_offset": offsets, "token_logprobs": logprobs, "tokens": tokens, "top_logprobs": top}


def prompt_offsets(token_ids: Sequence[int], text: str, tokenizer: Tokenizer) -> list[int]:
    """Where each token of a prompt begins in the prompt's `text`. A special token that the text does not spell, such as
    a BOS that the tokenizer added, has no width."""
    detokenizer = Detokenizer(tokenizer, skip_special_tokens=False)
    offsets = []
    position = 0
    for token_id in token_ids:
        offsets.append(position)
        piece = detokenizer.push((token_id,))
        spelled = next((form for form in (piece, piece.lstrip(" ")) if text.startswith(form, position)), None)
        if spelled is not None:
            position += len(spelled)
        elif token_id not in tokenizer.special_token_ids:  # the tokenizer normalised the text
            position = min(position + len(piece), len(text))
    return offsets


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
        kept = alternatives(entry, num_top)
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
