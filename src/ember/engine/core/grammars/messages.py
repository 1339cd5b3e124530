"""What the engine, the host of its grammars and their workers say to each other.

All of it travels as msgpack in the frames of `ember.wire`. A `Fork` brings the worker's end of a socketpair along as a
file descriptor, the `Hello` of the host the memory that the masks are in.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import Any, Generic, TypeVar

import msgspec
from msgspec import Struct

from ember.wire import FrameBuffer, frame

QUICK_SECONDS = 0.01  # of the processor; a mask that takes longer is slow
NUM_QUICK = 4  # quick masks in a row, and a grammar is not slow any more


class Start(Struct, tag="start", frozen=True):
    """To the host: what to load, and how many masks there is to be room for."""

    tokenizer_dir: str
    vocab_size: int
    eos_token_ids: list[int]
    num_slots: int


class Fork(Struct, tag="fork", frozen=True):
    """To the host: start a worker for a grammar. Its end of the socketpair comes along."""

    worker_id: int
    kind: str
    text: str


class Kill(Struct, tag="kill", frozen=True):
    """To the host: end a worker now, whatever it is doing."""

    worker_id: int


HostMessage = Start | Fork | Kill


class Hello(Struct, frozen=True):
    """From the host, once: the tokenizer is loaded, or why it cannot be."""

    vocab_size: int  # the bits of a mask
    error: str | None = None


class Order(IntEnum):
    """What a worker is told to do with a slot, which is one sample's matcher and its mask."""

    OPEN = 0
    ADVANCE = 1
    CLOSE = 2
    TRY = 3  # whether the grammar can begin with these tokens


class News(IntEnum):
    """What a worker tells."""

    PROCESS = 0  # `slot` is the id of its process
    THREAD = 1  # another thread does its work from now on; `slot` is the id of that
    COMPILED = 2
    FAILED = 3  # the grammar cannot be used
    MASK = 4  # the slot's mask is there
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
    seconds: float = 0.0  # of the processor, that this took
    text: str = ""
    token_ids: Sequence[int] = ()


T = TypeVar("T")


class Mailbox(Generic[T]):
    """Cuts what arrives into messages of one type."""

    def __init__(self, kind: Any) -> None:
        """`kind` is T, as msgspec wants it: a union is no type."""
        self._decoder: msgspec.msgpack.Decoder[T] = msgspec.msgpack.Decoder(kind)
        self._buffer = FrameBuffer()

    def feed(self, data: bytes) -> list[T]:
        return [self._decoder.decode(payload) for payload in self._buffer.feed(data)]


_encoder = msgspec.msgpack.Encoder()


def encode(message: object) -> bytes:
    """A frame with one message."""
    return frame(_encoder.encode(message))
