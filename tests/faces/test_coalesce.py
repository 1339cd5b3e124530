"""Joining events: what one loop produces, another takes in pieces."""

from __future__ import annotations

import asyncio
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ember.front.loop import EngineLoop
from ember.front.worker.coalesce import MAX_PIECE_BYTES, BatchSizes, Pieces, cut, wire_bytes


async def _put_all(pieces: Pieces, events: list[str]) -> None:
    for event in events:
        await pieces.put(event)
    pieces.finish("the end")


async def _take_all(pieces: Pieces) -> list[list[str]]:
    return [piece async for piece in pieces]


def test_slow_consumer_gets_the_events_joined() -> None:
    async def scenario() -> None:
        pieces = Pieces()
        await pieces.put("first")
        assert await anext(pieces) == ["first"]
        for number in range(100):
            await pieces.put(str(number))
        assert await anext(pieces) == [str(number) for number in range(100)]
        pieces.finish({"a": 1})
        assert await _take_all(pieces) == []
        assert pieces.result == {"a": 1}

    asyncio.run(scenario())


def test_first_event_does_not_wait_for_a_second() -> None:
    async def scenario() -> None:
        pieces = Pieces()
        taking = asyncio.create_task(anext(pieces))
        await asyncio.sleep(0)
        await pieces.put("first")
        assert await asyncio.wait_for(taking, 5) == ["first"]

    asyncio.run(scenario())


def test_pieces_are_bounded_in_bytes_and_events() -> None:
    async def scenario(pieces: Pieces) -> list[list[str]]:
        producer = asyncio.create_task(_put_all(pieces, ["x" * 40] * 10 + ["y" * 500] + ["z"] * 10))
        taken = await _take_all(pieces)
        await producer
        return taken

    taken = asyncio.run(scenario(Pieces(max_bytes=100)))
    assert "".join(event for piece in taken for event in piece) == "x" * 400 + "y" * 500 + "z" * 10
    assert all(len(piece) == 1 or sum(map(len, piece)) <= 100 for piece in taken)
    assert ["y" * 500] in taken
    assert max(len(piece) for piece in asyncio.run(scenario(Pieces(sizes=BatchSizes(most=3))))) == 3


def test_producer_pauses_when_nobody_takes() -> None:
    async def scenario() -> None:
        pieces = Pieces(max_bytes=100)
        producer = asyncio.create_task(_put_all(pieces, ["x" * 40] * 10))
        await asyncio.sleep(0.05)
        assert not producer.done()
        assert sum(map(len, await anext(pieces))) <= 100
        await _take_all(pieces)
        await producer

    asyncio.run(scenario())


def test_fewest_events_of_a_piece_grow() -> None:
    async def scenario(sizes: BatchSizes, count: int) -> list[int]:
        pieces = Pieces(sizes=sizes)
        producer = asyncio.create_task(_put_all(pieces, ["x"] * count))
        taking = asyncio.create_task(_take_all(pieces))
        await producer
        return [len(piece) for piece in await taking]

    async def one_by_one(sizes: BatchSizes, count: int) -> list[int]:
        pieces = Pieces(sizes=sizes)

        async def put() -> None:
            for _ in range(count):
                await pieces.put("x")
                await asyncio.sleep(0)
                await asyncio.sleep(0)
            pieces.finish()

        producer = asyncio.create_task(put())
        taken = [len(piece) for piece in await _take_all(pieces)]
        await producer
        return taken

    assert asyncio.run(one_by_one(BatchSizes(least=1, growth=3, most=10), 25)) == [1, 3, 9, 10, 2]
    assert asyncio.run(one_by_one(BatchSizes(least=7, most=4), 10)) == [4, 4, 2]  # the bound wins
    assert sum(asyncio.run(scenario(BatchSizes(least=1000), 30))) == 30  # the end does not wait


def test_a_full_piece_does_not_wait_for_the_fewest() -> None:
    async def scenario() -> list[list[str]]:
        pieces = Pieces(max_bytes=100, sizes=BatchSizes(least=1000))
        producer = asyncio.create_task(_put_all(pieces, ["x" * 40] * 10))
        taken = await _take_all(pieces)
        await producer
        return taken

    assert sum(map(len, asyncio.run(asyncio.wait_for(scenario(), 5)))) == 10


def test_an_error_comes_after_the_events_before_it() -> None:
    async def scenario() -> None:
        pieces = Pieces()
        await pieces.put("a")
        pieces.fail(ValueError("bad"))
        pieces.finish()  # the first end counts
        assert await anext(pieces) == ["a"]
        with pytest.raises(ValueError, match="bad"):
            await anext(pieces)

    asyncio.run(scenario())


def test_between_two_loops() -> None:
    """Producer and consumer in different threads: all arrives, in order, for many at once."""
    loop = EngineLoop()
    loop.start()

    async def one(number: int) -> list[str]:
        pieces = Pieces(max_bytes=200)
        source = loop.submit(_put_all(pieces, [f"{number}:{count};" for count in range(500)]))
        taken = [event for piece in await _take_all(pieces) for event in piece]
        await asyncio.wrap_future(source)
        return taken

    async def scenario() -> list[list[str]]:
        return await asyncio.wait_for(asyncio.gather(*(one(number) for number in range(20))), 60)

    try:
        for number, taken in enumerate(asyncio.run(scenario())):
            assert taken == [f"{number}:{count};" for count in range(500)]
    finally:
        loop.stop()


@settings(max_examples=50, deadline=None)
@given(st.text(alphabet='aé日𝄞"\\\n', max_size=200), st.integers(min_value=8, max_value=64))
def test_cut_keeps_the_text_and_the_bound(text: str, bound: int) -> None:
    parts = cut(text, bound)
    assert "".join(parts) == text
    for part in parts:
        assert wire_bytes(part) <= bound
        assert len(json.dumps(part, ensure_ascii=False).encode()) == wire_bytes(part) + 2


def test_a_piece_fits_the_platform() -> None:
    assert MAX_PIECE_BYTES + len('{"output": ""}') < 1_000_000
