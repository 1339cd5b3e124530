"""The engine's process loop over a real socket: it answers, does its chores, and ends with the front."""

from __future__ import annotations

import socket
import threading
import time

import pytest

from ember import wire
from ember.engine.core.chores import Chore, Chores
from ember.engine.core.process import Connection, _serve
from tests.engine_core.inline import greedy, make_engine
from tests.engine_models.tiny import make_tiny


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return make_tiny("qwen3", tmp_path_factory.mktemp("qwen3"))


class Front:
    """The other end of the socket, with the loop in a thread."""

    def __init__(self, engine) -> None:
        self.socket, theirs = socket.socketpair()
        self.socket.settimeout(10)
        self.thread = threading.Thread(target=_serve, args=(engine, Connection(theirs)), daemon=True)
        self.thread.start()

    def send(self, *messages: wire.FrontMessage) -> None:
        self.socket.sendall(wire.frame_front([wire.encode_front(message) for message in messages]))

    def receive(self) -> wire.EngineMessage:
        payload = wire.recv_frame(self.socket)
        assert payload is not None
        return wire.decode_engine(payload)

    def answer(self, request: wire.Generate) -> list[int]:
        self.send(request)
        tokens: list[int] = []
        while True:
            message = self.receive()
            assert isinstance(message, wire.Outputs)
            for output in message.outputs:
                tokens += output.token_ids
                if output.finish_reason:
                    return tokens


def test_weights_are_repacked_after_the_first_answer_and_not_before(directory):
    engine = make_engine(directory)
    front = Front(engine)
    front.send(wire.GetStats())
    assert isinstance(front.receive(), wire.Stats)
    assert not engine.runner.model.parts.blocks[0].attention.qkv.packed
    request = wire.Generate(1, [5, 6, 7, 8], greedy(6))
    first = front.answer(request)
    deadline = time.monotonic() + 10
    while not engine.runner.model.parts.head.packed and time.monotonic() < deadline:
        time.sleep(0.01)
    assert (
        all(block.attention.qkv.packed for block in engine.runner.model.parts.blocks)
        and engine.runner.model.parts.head.packed
    )
    second = front.answer(wire.Generate(2, request.prompt_token_ids, request.sampling))
    assert first == second
    front.socket.close()
    front.thread.join(10)
    assert not front.thread.is_alive()


def test_a_busy_engine_repacks_between_steps(directory):
    engine = make_engine(directory)
    front = Front(engine)
    front.answer(wire.Generate(1, [5, 6, 7, 8], greedy(100)))
    assert engine.runner.model.parts.head.packed
    front.send(wire.Shutdown())
    front.thread.join(10)
    assert not front.thread.is_alive()


def test_all_that_arrived_is_taken_before_the_next_step(directory):
    engine = make_engine(directory)
    front = Front(engine)
    requests = [wire.Generate(i, [i + 3] * 5, greedy(3)) for i in range(6)]
    front.send(*requests, wire.Abort(5), wire.GetStats())
    messages = [front.receive() for _ in range(4)]
    assert isinstance(messages[0], wire.Stats) and messages[0].num_waiting == 5
    outputs = [message for message in messages if isinstance(message, wire.Outputs)]
    assert [{output.request_id for output in message.outputs} for message in outputs] == [set(range(5))] * 3
    front.send(wire.Shutdown())
    front.thread.join(10)


@pytest.mark.parametrize("data", [b"\xff\xff\xff\xff", b"\x03\x00\x00\x00abc"], ids=["too long", "no message"])
def test_a_frame_that_makes_no_sense_ends_the_loop(directory, data):
    ours, theirs = socket.socketpair()
    failures = []

    def serve() -> None:
        try:
            _serve(make_engine(directory), Connection(theirs))
        except Exception as error:
            failures.append(error)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    ours.sendall(data)
    thread.join(10)
    assert not thread.is_alive() and len(failures) == 1


def test_a_chore_that_fails_harms_neither_requests_nor_the_next_chore(directory, caplog):
    engine = make_engine(directory)
    done: list[bool] = []

    def fails(is_idle: bool) -> bool:
        raise RuntimeError("no memory for a second copy")

    def succeeds(is_idle: bool) -> bool:
        done.append(is_idle)
        return len(done) < 3

    engine.chores = Chores([Chore("a copy", fails), Chore("a count", succeeds)])
    front = Front(engine)
    for i in range(2):
        assert len(front.answer(wire.Generate(i, [5, 6, 7], greedy(40)))) == 40
    front.send(wire.Shutdown())
    front.thread.join(10)
    assert not front.thread.is_alive() and len(done) == 3
    assert "skipped: a copy: RuntimeError: no memory for a second copy" in caplog.text
