"""Each example of docs/offline.md runs, one after the other in one program."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parents[2] / "docs" / "offline.md"


def test_the_examples_run(capsys: pytest.CaptureFixture[str]) -> None:
    examples = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    names: dict[str, object] = {}
    for example in examples:
        exec(compile(example, str(PAGE), "exec"), names)
    lines = capsys.readouterr().out.splitlines()
    assert len(examples) == 6 and lines[0].startswith("The sky is ") and lines[2] in ("yes", "no")
    assert any(line.startswith("1 ") and "maximum context length" in line for line in lines)
    assert lines[-3].isdigit() and all(-1 <= float(line) <= 1 for line in lines[-2:])
