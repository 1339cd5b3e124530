"""The fields that make single tokens likelier, forbid them or allow no others: `logit_bias`, `allowed_token_ids`,
`bad_words`."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ember.front.api.prompt import encode
from ember.front.api.services import Services
from ember.front.api.vocabulary import check_token_ids, listed, out_of_vocabulary
from ember.front.errors import bad_request
from ember.wire import Ready

MAX_BAD_WORDS = 128
MAX_BAD_WORD_TOKENS = 1024  # of one: each step compares them with the end of the output
MAX_LOGIT_BIAS = 100.0


def logit_bias(given: dict[str, float], info: Ready) -> dict[int, float]:
    """The biases by token id, each cut to +-`MAX_LOGIT_BIAS`. Raises ApiError 400."""
    bias: dict[int, float] = {}
    if len(given) > info.vocab_size:
        message = f"logit_bias must have at most {info.vocab_size} entries, one for each token, got {len(given)}."
        raise bad_request(message, "logit_bias")
    invalid = []
    for key, value in given.items():
        try:
            bias[int(key)] = max(-MAX_LOGIT_BIAS, min(MAX_LOGIT_BIAS, value))
        except ValueError:
            invalid.append(key)
    problems = []
    if invalid:
        named = listed([repr(key[:64]) for key in invalid])
        message = f"Invalid key{'s' if len(invalid) > 1 else ''} in 'logit_bias': {named}. Keys must be token ids."
        problems.append(f"{message} (parameter=logit_bias, value={named})")
    if (unknown := out_of_vocabulary(bias.keys(), info, "logit_bias")) is not None:
        problems.append(unknown)
    no_numbers = [repr(key[:64]) for key, value in given.items() if math.isnan(value)]
    if no_numbers:
        problems.append(f"The value of {listed(no_numbers)} in 'logit_bias' is not a number.")
    if problems:
        raise bad_request(" ".join(problems), "logit_bias")
    return bias


def allowed_token_ids(given: list[int] | None, info: Ready) -> list[int] | None:
    """The only tokens that may come; None = any. Raises ApiError 400."""
    if given is None:
        return None
    if not given:
        raise bad_request("allowed_token_ids must not be empty.", "allowed_token_ids")
    check_token_ids(given, info, "allowed_token_ids")
    return sorted(set(given))


def bad_words(words: Sequence[str], services: Services, info: Ready) -> list[list[int]]:
    """The token sequences that must not be completed. Each word is forbidden as it is and after a blank, as its tokens
    differ between the two. Raises ApiError 400."""
    if len(words) > MAX_BAD_WORDS:
        raise bad_request(f"bad_words must have at most {MAX_BAD_WORDS} entries, got {len(words)}.", "bad_words")
    sequences: list[list[int]] = []
    for word in words:
        bare = word.lstrip()
        if len(bare) > info.max_model_len:
            raise bad_request(f"bad_words contains a word of {len(bare)} characters, which is too long.", "bad_words")
        spelled = (bare, f" {bare}") if bare else ()
        found = [encode(services.tokenizer, text, False, "bad_words") for text in spelled]
        if not any(found):
            raise bad_request(f"bad_words contains {word[:64]!r}, which has no tokens.", "bad_words")
        sequences.extend(token_ids for token_ids in found if token_ids and token_ids not in sequences)
    if len(sequences) > MAX_BAD_WORDS:
        message = f"bad_words must have at most {MAX_BAD_WORDS} entries after tokenising, got {len(sequences)}."
        raise bad_request(message, "bad_words")
    for sequence in sequences:
        if len(sequence) > MAX_BAD_WORD_TOKENS:
            message = f"bad_words contains a word of {len(sequence)} tokens; {MAX_BAD_WORD_TOKENS} are allowed."
            raise bad_request(message, "bad_words")
        check_token_ids(sequence, info, "bad_words")
    return sequences
