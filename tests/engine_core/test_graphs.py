"""Which decode steps are recorded as graphs, and when."""

from __future__ import annotations

from typing import Any

import pytest

from ember.engine.core.gpu.graphs import DecodeGraphs


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


def make(recorder: Any, max_rows: int = 64) -> DecodeGraphs:
    return DecodeGraphs(lambda rows: None, lambda: None, max_rows, recorder)


def test_all_sizes_are_recorded_while_the_engine_is_idle(recorder: Recorder) -> None:
    graphs = make(recorder)
    while graphs.record_next(is_idle=True):
        pass
    assert graphs.recorded == [1, 2, 4, 8, 16, 24, 32, 48, 64]
    assert recorder.num_parts == 18
    assert graphs.size_for(17) == 24


@pytest.mark.parametrize(("num_rows", "size"), [(1, 1), (3, 4), (17, 24), (64, 64)])
def test_running_streams_wait_for_the_size_in_use_alone(recorder: Recorder, num_rows: int, size: int) -> None:
    graphs = make(recorder)
    for _ in range(20):
        graphs.size_for(num_rows)
        assert graphs.record_next(is_idle=False)
    assert graphs.recorded == [size]
    assert recorder.num_parts == 2


def test_streams_that_become_more_or_fewer_get_a_graph_when_none_fits(recorder: Recorder) -> None:
    graphs = make(recorder, max_rows=256)
    for num_rows in (10, 200, 12, 90, 20):
        graphs.size_for(num_rows)
        for _ in range(3):
            assert graphs.record_next(is_idle=False)
    assert graphs.recorded == [16, 24, 96, 256]  # 20 rows in 96, or 90 in 256, would be mostly padding
    while graphs.record_next(is_idle=True):
        pass
    assert len(graphs.recorded) == 13


def test_a_part_that_would_delay_streams_waits_until_the_engine_is_idle(recorder: Recorder) -> None:
    graphs = make(recorder)
    graphs.observe_eager(1.0)
    graphs.size_for(5)
    assert graphs.record_next(is_idle=False)
    assert recorder.num_parts == 0
    assert graphs.record_next(is_idle=True)
    assert recorder.num_parts == 1
