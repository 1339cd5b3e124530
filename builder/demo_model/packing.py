"""From conversations to rows of tokens.

Several conversations share a row and do not see each other. Short ones go to short rows, because the cost of
attention grows with the square of the row's length.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from builder.demo_model.chat import Example, render, trained_spans

LENGTHS = (128, 320, 512)


@dataclass
class Rows:
    """Token ids, which of them are trained, and the number of the conversation each belongs to (0: padding)."""

    ids: np.ndarray
    trained: np.ndarray
    owner: np.ndarray

    def batch(self, index: np.ndarray, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Ids, trained flags and the attention mask of some rows."""
        ids = torch.from_numpy(self.ids[index].astype(np.int64)).to(device)
        trained = torch.from_numpy(self.trained[index]).to(device)
        owner = torch.from_numpy(self.owner[index].astype(np.int64)).to(device)
        mask = (owner[:, :, None] == owner[:, None, :]).tril()
        return ids, trained, mask[:, None]


Encoded = tuple[list[int], list[bool]]


def encode(tokenizer: Tokenizer, examples: Iterable[Example]) -> list[Encoded]:
    """Ids and trained flags of every conversation."""
    kept = list(examples)
    texts = [render(example).rstrip("\n") for example in kept]
    out: list[Encoded] = []
    for example, text, encoding in zip(kept, texts, tokenizer.encode_batch(texts), strict=True):
        spans = trained_spans(text, example.thinking)
        flags = [any(start <= left < end for start, end in spans) for left, _ in encoding.offsets]
        out.append((encoding.ids, flags))
    return out


def pack(encoded: list[Encoded], length: int) -> Rows:
    """Fill rows greedily, longest conversations first, each into the fullest row it fits in."""
    room: dict[int, list[int]] = {}
    rows: list[list[Encoded]] = []
    for item in sorted(encoded, key=lambda pair: -len(pair[0])):
        size = len(item[0])
        free = next((gap for gap in range(size, length + 1) if room.get(gap)), None)
        if free is None:
            rows.append([])
            row, free = len(rows) - 1, length
        else:
            row = room[free].pop()
        rows[row].append(item)
        room.setdefault(free - size, []).append(row)
    shape = (len(rows), length)
    packed = Rows(np.zeros(shape, np.int16), np.zeros(shape, np.bool_), np.zeros(shape, np.uint8))
    for number, row_items in enumerate(rows):
        at = 0
        for owner, (ids, flags) in enumerate(row_items, 1):
            packed.ids[number, at : at + len(ids)] = ids
            packed.trained[number, at : at + len(ids)] = flags
            packed.owner[number, at : at + len(ids)] = owner
            at += len(ids)
    return packed


def split_by_length(encoded: list[Encoded]) -> list[list[Encoded]]:
    """The conversations for each row length; those longer than the longest row are left out."""
    bounds = zip((0, *LENGTHS), LENGTHS, strict=False)
    return [[item for item in encoded if low < len(item[0]) <= high] for low, high in bounds]
