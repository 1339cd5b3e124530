"""Which steps are recorded as graphs, and when."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from ember.engine.core.gpu.graph_sizes import DECODE, MIXED, Kind
from ember.engine.core.gpu.graphs import StepGraphs, record_next


class Recorder:
    """An accelerator that counts what it is asked for."""

    def __init__(self) -> None:
        self.num_parts = 0

    def rehearse(self, body: Any) -> None:
        self.num_parts += 1

    def record(self, body: Any) -> Any:
        self.num_parts += 1
        return body


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


def make(recorder: Any, largest: int = 64, kind: Kind = DECODE) -> StepGraphs:
    return StepGraphs(kind, kind.sizes_up_to(largest), lambda size: None, lambda: None, recorder)


def test_all_sizes_are_recorded_while_the_engine_is_idle(recorder: Recorder) -> None:
    graphs = make(recorder)
    while record_next([graphs], is_idle=True):
        pass
    assert graphs.recorded == [1, 2, 4, 8, 16, 24, 32, 48, 64]
    assert recorder.num_parts == 18
    assert graphs.size_for(17) == 24


@pytest.mark.parametrize(("num_rows", "size"), [(1, 1), (3, 4), (17, 24), (64, 64)])
def test_running_streams_wait_for_the_size_in_use_alone(recorder: Recorder, num_rows: int, size: int) -> None:
    graphs = make(recorder)
    for _ in range(20):
        graphs.size_for(num_rows)
        assert record_next([graphs], is_idle=False)
    assert graphs.recorded == [size]
    assert recorder.num_parts == 2


def test_streams_that_become_more_or_fewer_get_a_graph_when_none_fits(recorder: Recorder) -> None:
    graphs = make(recorder, largest=256)
    for num_rows in (10, 200, 12, 90, 20):
        graphs.size_for(num_rows)
        for _ in range(3):
            assert record_next([graphs], is_idle=False)
    assert graphs.recorded == [16, 24, 96, 256]  # 20 rows in 96, or 90 in 256, would be mostly padding
    while record_next([graphs], is_idle=True):
        pass
    assert len(graphs.recorded) == 13


def test_a_part_that_would_delay_streams_waits_until_the_engine_is_idle(recorder: Recorder) -> None:
    graphs = make(recorder)
    graphs.observe_eager(1.0)
    graphs.size_for(5)
    assert record_next([graphs], is_idle=False)
    assert recorder.num_parts == 0
    assert record_next([graphs], is_idle=True)
    assert recorder.num_parts == 1


@pytest.mark.parametrize(
    ("largest", "sizes"),
    [(9, [9]), (32, [32]), (100, [32, 64, 100]), (1024, list(MIXED.sizes)), (8192, list(MIXED.sizes))],
)
def test_no_size_is_larger_than_a_step(recorder: Recorder, largest: int, sizes: list[int]) -> None:
    assert MIXED.sizes_up_to(largest) == sizes
    assert MIXED.sizes_up_to(0) == []


def test_a_step_is_not_mostly_padding() -> None:
    for kind in (DECODE, MIXED):
        for smaller, larger in itertools.pairwise(kind.sizes):
            assert larger <= max(kind.small, kind.stretch * (smaller + 1)), (kind.name, smaller + 1)


def test_of_two_kinds_the_one_in_use_is_recorded_between_steps(recorder: Recorder) -> None:
    kinds = decode, mixed = make(recorder), make(recorder, 512, MIXED)
    assert record_next(kinds, is_idle=False)
    assert recorder.num_parts == 0  # nothing has run yet
    mixed.size_for(100)
    for _ in range(4):
        assert record_next(kinds, is_idle=False)
    assert (decode.recorded, mixed.recorded) == ([], [128])
    decode.size_for(3)
    mixed.size_for(300)
    for _ in range(8):
        assert record_next(kinds, is_idle=False)
    assert (decode.recorded, mixed.recorded) == ([4], [128, 384])
    assert recorder.num_parts == 6


def test_decode_steps_are_recorded_before_others(recorder: Recorder) -> None:
    kinds = decode, mixed = make(recorder, 8), make(recorder, 64, MIXED)
    mixed.size_for(40)
    seen = []
    while record_next(kinds, is_idle=True):
        seen += [each for each in (*decode.recorded, *mixed.recorded) if each not in seen]
    assert seen == [1, 2, 4, 8, 64]
    assert mixed.recorded == [32, 64]
    assert not record_next(kinds, is_idle=True)
