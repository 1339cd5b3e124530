"""The messages between the engine, the grammar host and the workers.

They are msgpack in the frames of `ember.wire`. A `Fork` carries the worker's end of a socketpair as a file descriptor,
and the host's `Hello` carries the shared memory of the masks.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import Any, Generic, TypeVar

import msgspec
from msgspec import Struct

from ember.wire import FrameBuffer, frame

QUICK_SECONDS = 0.01  # CPU time; a mask that takes longer is slow
NUM_QUICK = 4  # consecutive quick masks after which a grammar is not slow any more


class Start(Struct, tag="start", frozen=True):
    """To the host: the tokenizer to load, and the number of masks in shared memory."""

    tokenizer_dir: str
    vocab_size: int
    eos_token_ids: list[int]
    num_slots: int


class Fork(Struct, tag="fork", frozen=True):
    """To the host: start a worker for a grammar. The message carries the worker's end of a socketpair."""

    worker_id: int
    kind: str
    text: str


class Kill(Struct, tag="kill", frozen=True):
    """To the host: kill a worker."""

    worker_id: int


HostMessage = Start | Fork | Kill


class Hello(Struct, frozen=True):
    """From the host, once: the tokenizer is loaded, or the error."""

    vocab_size: int  # bits of a mask
    error: str | None = None


class Order(IntEnum):
    """A command to a worker for a slot: one sample's matcher and its mask."""

    OPEN = 0
    ADVANCE = 1
    CLOSE = 2
    TRY = 3  # whether the grammar can begin with these tokens


class News(IntEnum):
    """A report of a worker."""

    PROCESS = 0  # `slot` is the id of its process
    THREAD = 1  # another thread has taken over; `slot` is its id
    COMPILED = 2
    FAILED = 3  # the grammar cannot be used
    MASK = 4  # the slot's mask is written
    ADVANCED = 5
    COMPLETE = 6  # advanced, and nothing can follow
    ERROR = 7  # the slot's matcher cannot go on
    ACCEPTED = 8  # the grammar can begin with `token_ids`
    REFUSED = 9
    CLOSED = 10  # the slot's memory is not written any more


class Command(Struct, array_like=True, frozen=True):
    order: Order
    slot: int
    token_ids: Sequence[int] = ()


class Reply(Struct, array_like=True, frozen=True):
    news: News
    slot: int = 0
    seconds: float = 0.0  # CPU time
    text: str = ""
    token_ids: Sequence[int] = ()


T = TypeVar("T")


class Mailbox(Generic[T]):
    """Splits received bytes into messages of one type."""

    def __init__(self, kind: Any) -> None:
        """`kind`: T for msgspec, which may be a union."""
        self._decoder: msgspec.msgpack.Decoder[T] = msgspec.msgpack.Decoder(kind)
        self._buffer = FrameBuffer()

    def feed(self, data: bytes) -> list[T]:
        return [self._decoder.decode(payload) for payload in self._buffer.feed(data)]


_encoder = msgspec.msgpack.Encoder()


def encode(message: object) -> bytes:
    """A frame with one message."""
    return frame(_encoder.encode(message))
