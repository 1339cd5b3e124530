"""Bad words of several tokens: the tokens that would complete one."""

from __future__ import annotations

from ember.engine.core.sequence import Sequence


def completed_words(sequence: Sequence) -> list[int]:
    """The tokens that would complete a bad word of several tokens. The last but one token excludes most words, so a
    step costs little whatever the lengths of words and output."""
    token_ids = sequence.token_ids
    num_output = len(token_ids) - sequence.num_prompt_tokens
    return [
        word[-1]
        for word in sequence.sampling.bad_words
        if 1 < len(word) <= num_output + 1 and token_ids[-1] == word[-2] and token_ids[1 - len(word) :] == word[:-1]
    ]
