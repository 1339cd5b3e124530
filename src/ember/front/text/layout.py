"""Where a tokenizer puts special tokens: around one text, and around and between the two texts of a pair.

The post-processor in tokenizer.json decides it. Its effect is read once from an encoded sample, so that texts can be
encoded once each, cut by token, and put together as lists of ids: a query that is paired with thousands of documents is
not encoded thousands of times.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import tokenizers


@dataclass(frozen=True, slots=True)
class Layout:
    """The special tokens before, between and behind the texts, and the token type (segment) of every token."""

    special: tuple[tuple[int, ...], ...]  # one more than there are texts
    special_types: tuple[tuple[int, ...], ...]
    text_types: tuple[int, ...]  # of the tokens of each text
    order: tuple[int, ...]  # which text comes where

    @property
    def num_special(self) -> int:
        return sum(len(part) for part in self.special)

    def join(self, *texts: Sequence[int]) -> list[int]:
        """The token ids of the whole, from those of the texts."""
        ids = list(self.special[0])
        for place, index in enumerate(self.order):
            ids += texts[index]
            ids += self.special[place + 1]
        return ids

    def types(self, *texts: Sequence[int]) -> list[int]:
        """The token types of the same tokens."""
        types = list(self.special_types[0])
        for place, index in enumerate(self.order):
            types += [self.text_types[place]] * len(texts[index])
            types += self.special_types[place + 1]
        return types


def layout_of(backend: tokenizers.Tokenizer, *sample: str) -> Layout:
    """Read the layout from the encoded sample, one text or two. Texts that a post-processor repeats or leaves out are
    put one behind the other."""
    encoding = backend.encode(sample[0], sample[1] if len(sample) > 1 else None)
    special: list[list[int]] = [[]]
    special_types: list[list[int]] = [[]]
    order: list[int] = []
    text_types: list[int] = []
    inside = None
    for token_id, token_type, sequence in zip(encoding.ids, encoding.type_ids, encoding.sequence_ids, strict=True):
        if sequence is None:
            special[-1].append(token_id)
            special_types[-1].append(token_type)
        elif sequence != inside:
            order.append(sequence)
            text_types.append(token_type)
            special.append([])
            special_types.append([])
        inside = sequence
    if sorted(order) != list(range(len(sample))):
        count = len(sample)
        return Layout(((),) * (count + 1), ((),) * (count + 1), tuple(range(count)), tuple(range(count)))
    return Layout(
        tuple(tuple(part) for part in special),
        tuple(tuple(part) for part in special_types),
        tuple(text_types),
        tuple(order),
    )


def cut(token_ids: list[int], num_kept: int, side: str) -> list[int]:
    """The tokens that are left when a text is truncated at its `left` or `right` side."""
    if len(token_ids) <= num_kept:
        return token_ids
    return token_ids[len(token_ids) - num_kept :] if side == "left" else token_ids[:num_kept]


def longest_first(lengths: tuple[int, int], num_kept: int) -> tuple[int, int]:
    """How many tokens of each text of a pair are kept, where both together may have `num_kept`: the longer one is cut
    first, then both alike. The rule is that of `longest_first` in the tokenizers library."""
    short, long = sorted(lengths)
    if short + long <= num_kept:
        return lengths
    if 2 * short < num_kept:
        long = num_kept - short
    else:
        short = num_kept // 2
        long = num_kept - short
    return (short, long) if lengths[0] <= lengths[1] else (long, short)
