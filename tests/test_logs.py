"""The log's lines: one for each record, whatever its values hold, and nothing in them that a terminal obeys."""

import json
import logging
import subprocess
import sys
from typing import Any

import pytest

from ember.logs import Formatter, printable

ODD = "a\r\n2026-01-01 ERROR ember: forged "
ODD += "\x1b[2J\x1b]0;t\x07 \x9b31m \x7f\x00\t \u2028\u2029 \u202eexe\u2066 \ud800 \x85 end"


def record(message: str, *values: object, exc_info: Any = None) -> logging.LogRecord:
    return logging.LogRecord("ember.x", logging.WARNING, __file__, 1, message, values, exc_info)


@pytest.mark.parametrize("as_json", [False, True])
def test_a_record_is_one_line_without_control_characters(as_json: bool) -> None:
    line = Formatter(as_json).format(record("worker %s says %r: %s", ODD, ODD, "日本 é"))
    assert len(line.splitlines()) == 1
    assert printable(line) == line
    assert "日本 é" in line and "forged" in line and "end" in line
    line.encode()
    if as_json:
        message = json.loads(line)["message"]
        assert message == f"worker {ODD} says {ODD!r}: 日本 é"


@pytest.mark.parametrize("as_json", [False, True])
def test_an_exceptions_text_cannot_pass_for_a_record(as_json: bool) -> None:
    try:
        raise ValueError(ODD)
    except ValueError:
        line = Formatter(as_json).format(record("it failed", exc_info=sys.exc_info()))
    first, *others = line.split("\n")
    assert "it failed" in first
    assert all(each.startswith("  ") for each in others) and bool(others) is not as_json
    assert all(printable(each) == each for each in [first, *others])
    assert "ValueError" in line


def test_what_is_given_as_fields_is_bounded_too() -> None:
    given = record("done")
    given.fields = {"path\x1b": ODD}
    line = Formatter(as_json=True).format(given)
    assert printable(line) == line
    assert json.loads(line)["path\x1b"] == ODD


def test_ordinary_text_is_left_as_it_is() -> None:
    assert printable("naïve – “日本” 😀 \\n") == "naïve – “日本” 😀 \\n"
    assert printable("a\nb\x1b[0m") == "a\\nb\\x1b[0m"


def test_the_engines_lines_are_like_the_fronts() -> None:
    """In the form of LOG_FORMAT, without secrets and controls. Its front is gone here, so that it says why it ends."""
    code = (
        "from ember.engine.core import process; from ember.wire import Configure\n"
        "class Closed:\n"
        "    def receive(self): return [Configure('/nowhere/hf_token1\x1b[0m', hf_token='hf_token1', **MORE)]\n"
        "    def send(self, message): raise BrokenPipeError\n"
        "process._Opening(Closed()).run()\n"
    )
    for form in ("json", "text"):
        command = [sys.executable, "-c", code.replace("MORE", repr({"log_format": form}))]
        (line,) = subprocess.run(command, capture_output=True, text=True).stderr.splitlines()
        assert "(hidden)" in line and "hf_token1" not in line and "\x1b" not in line
        if form == "json":
            assert json.loads(line)["level"] == "error" and "\x1b[0m does not exist" in json.loads(line)["message"]
        else:
            assert " ERROR ember.engine.core.process: /nowhere/" in line


def test_a_line_does_not_wait_for_the_end_of_what_holds_standard_error_back() -> None:
    """A tokenizer's load keeps the library's lines back. A boot that fails meanwhile says why, and ends."""
    code = (
        "import logging, os; from ember import logs; from ember.front.text.panics import without_panic_lines\n"
        "from ember.settings import Settings\n"
        "logs.set_up(Settings(model_name='demo'))\n"
        "with without_panic_lines():\n"
        "    logging.getLogger('ember').error('the reason')\n"
        "    os._exit(1)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.endswith("ERROR ember: the reason\n")
