"""Boot work that is deferred until after the first answer, and done in short parts.

A running request waits for a part, so a part takes some hundredths of a second at most.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import Tensor

from ember.engine.layers.linear import Linear, Pages, in_own_memory
from ember.engine.models.decoder import Decoder

log = logging.getLogger(__name__)

_DONE = object()


@dataclass(slots=True)
class Chore:
    """One kind of deferred boot work.

    `do` takes whether the engine is idle, does the next part, and returns whether more parts are left. While requests
    are running it may skip a part that would delay them, and then returns True.
    """

    name: str  # completes the sentence "deferred boot work failed and was skipped: ..."
    do: Callable[[bool], bool]


class Chores:
    """The list of deferred chores, which are done in order."""

    def __init__(self, chores: list[Chore]) -> None:
        self._chores = deque(chores)

    def do_next(self, is_idle: bool) -> bool:
        """Do one part of the first chore. Returns whether more is left.

        A chore that raises an error is dropped with a warning: the engine goes on without it.
        """
        if not self._chores:
            return False
        chore = self._chores[0]
        try:
            is_left = chore.do(is_idle)
        except Exception as error:
            reason = str(error).partition("\n")[0]
            log.warning(
                "deferred boot work failed and was skipped: %s: %s: %s", chore.name, type(error).__name__, reason
            )
            is_left = False
        if not is_left:
            self._chores.popleft()
        return bool(self._chores)


def settling(decoder: Decoder, pages: Pages | None) -> Chore:
    """The chore that packs or copies a decoder's weights (`settle_weights`)."""
    pieces = settle_weights(decoder, pages)
    return Chore("moving the weights", lambda is_idle: next(pieces, _DONE) is not _DONE)


def settle_weights(decoder: Decoder, pages: Pages | None) -> Iterator[None]:
    """Pack each matrix for oneDNN if the operators read packed matrices, or copy it to memory of its own if it is
    mapped from a file. A generator: it yields between chunks so that requests can run.

    `pages` drops the page-cache pages of copied weights; None if no weight is mapped.

    Packed weights replace plain ones. The exception is a head that is tied to the token embedding, whose look-up needs
    the plain rows: packing it makes a second copy.
    """
    packs = decoder.ops.reads_packed
    if not packs and pages is None:
        return
    parts = decoder.parts
    for index, block in enumerate(parts.blocks):
        for linear in block.matrices():
            yield from linear.settle(packs, pages)
            decoder.ops.weights_moved(index)
        yield
    is_tied, embedding = decoder.config.tie_word_embeddings, parts.embedding
    if pages is not None and isinstance(embedding.tokens, Tensor) and pages.hold(embedding.tokens.data_ptr()):
        embedding.tokens = yield from in_own_memory(pages, embedding.tokens)
        if embedding.positions is not None:
            embedding.positions = embedding.positions.clone()
        if embedding.token_types is not None:
            embedding.token_types = embedding.token_types.clone()
        if is_tied:
            parts.head = Linear(embedding.tokens, bias=parts.head.bias)
    elif isinstance(embedding.tokens, Linear):
        yield from embedding.tokens.settle(False, pages)
    if parts.has_head:
        yield from parts.head.settle(packs, None if is_tied else pages)
        decoder.ops.weights_moved(None)
    for extra in parts.others():
        yield from extra.settle(packs, pages)
