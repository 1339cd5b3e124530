"""What is told of a long download or load: lines for a log, a bar for a terminal, nothing of a short one."""

import io
import re
import time
from functools import partial
from pathlib import Path

import pytest
import torch

from ember.engine.description.read_config import load_config
from ember.engine.loading import progress as telling
from ember.engine.loading import reader
from ember.engine.loading.load import load_decoder
from ember.engine.loading.progress import Progress
from tests.engine_models.tiny import make_tiny

GB = 10**9


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(telling, "time", made)
    return made


def test_a_log_gets_a_line_every_few_seconds(clock: Clock) -> None:
    lines: list[str] = []
    done = 0
    progress = Progress("loading", 8 * GB, lambda: done, lines.append, terminal=io.StringIO())
    for _ in range(48):  # 12 seconds
        clock.now += 0.25
        done += GB // 8
        progress.step()
    progress.end()
    assert lines == [
        "loading: 2.5 GB of 8.0 GB (31 %), 500.0 MB/s, 11 s left",
        "loading: 5.0 GB of 8.0 GB (62 %), 500.0 MB/s, 6 s left",
    ]


def test_a_terminal_gets_a_bar_that_goes_away(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "90")
    terminal = Terminal()
    done = 0
    progress = Progress("loading", 4 * GB, lambda: done, pytest.fail, terminal=terminal)
    for _ in range(4):
        clock.now += 1.0
        done += GB
        progress.step()
    progress.end()
    frames = terminal.getvalue().split("\r")
    assert frames[0] == "" and frames[-1] == "" and frames[-2] == " " * 89
    assert [frame.count("#") for frame in frames[1:-2]] == [6, 12, 18, 24]
    assert frames[2].startswith(f"loading [{'#' * 12}{'.' * 12}] 2.0 GB of 4.0 GB (50 %), 1.0 GB/s, 2 s left")
    assert {len(frame) for frame in frames[1:-1]} == {89}
    assert "\n" not in terminal.getvalue()


def test_a_narrow_terminal_does_not_wrap(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    terminal = Terminal()
    progress = Progress("loading", GB, lambda: 0, pytest.fail, terminal=terminal)
    clock.now += 1.0
    progress.step()
    assert terminal.getvalue() == "\rloading [.........."


@pytest.mark.parametrize("terminal", [io.StringIO(), Terminal()])
def test_a_short_wait_is_not_worth_a_word(clock: Clock, terminal: io.StringIO) -> None:
    progress = Progress("loading", GB, lambda: 0, pytest.fail, quiet_seconds=3.0, terminal=terminal)
    for _ in range(29):
        clock.now += 0.1
        progress.step()
    progress.end()
    assert terminal.getvalue() == ""


def test_what_grows_beyond_its_size_and_what_has_none(clock: Clock) -> None:
    lines: list[str] = []
    for total, done in ((GB, 2 * GB), (0, 0), (GB, -5)):
        progress = Progress("loading", total, partial(int, done), lines.append, terminal=io.StringIO())
        clock.now += 10.0
        progress.step()
    assert lines == [
        "loading: 1.0 GB of 1.0 GB (100 %), 100.0 MB/s, 0 s left",
        "loading: 0 bytes of 0 bytes (0 %)",
        "loading: 0 bytes of 1.0 GB (0 %)",
    ]


def load(directory: Path, lines: list[str], dtype: torch.dtype = torch.float32) -> None:
    load_decoder(directory, load_config(directory), dtype=dtype, device=torch.device("cpu"), say=lines.append)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])  # mapped, and converted
def test_a_slow_load_says_how_far_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    directory = make_tiny("llama", tmp_path)
    monkeypatch.setattr("sys.stderr", io.StringIO())  # no terminal
    lines: list[str] = []
    load(directory, lines, dtype)
    assert lines == []  # it was quick

    def slowly(descriptor: int, view: memoryview, file: Path, offset: int) -> None:
        time.sleep(0.05)
        read_exactly(descriptor, view, file, offset)

    read_exactly = reader.read_exactly
    for module in ("mapped", "reader"):
        monkeypatch.setattr(f"ember.engine.loading.{module}.read_exactly", slowly)
    monkeypatch.setattr(reader, "QUIET_SECONDS", 0.05)
    monkeypatch.setattr(reader, "LINE_SECONDS", 0.02)
    load(directory, lines, dtype)
    assert len(lines) > 1 and all(re.fullmatch(r"loading weights: .* \(\d+ %\).*", line) for line in lines[:-1])
    assert re.fullmatch(r"loaded weights: [\d.]+ [kM]B in [\d.]+ s, [\d.]+ [kM]B/s", lines[-1])
