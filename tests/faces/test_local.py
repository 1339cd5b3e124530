"""One job without a queue: where it is read from, and the one document that it prints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ember.front.worker.local import LocalJobError, read_job
from tests.support.processes import ROOT, Process

SCRIPT = str(ROOT / "tests/faces/face_process.py")


def run(job: Any, **options: Any) -> tuple[int, dict[str, Any], str]:
    """Exit code, the document on stdout, and stderr."""
    with Process(SCRIPT, json.dumps({"face": "local", "job": job, **options})) as process:
        out = process.output()
        document = json.loads(out) if out else {}
        assert out.count("\n") == (1 if out else 0)
        return process.wait(), document, process.log()


def test_whole_answer() -> None:
    code, document, _ = run({"input": {"messages": [], "words": 2}})
    assert code == 0
    body = {"object": "chat.completion", "echo": {"words": 2, "messages": [], "model": "m"}}
    assert document == {"id": "local_test", "status": "COMPLETED", "output": body}


def test_stream_without_the_outer_input() -> None:
    code, document, _ = run({"prompt": "a", "stream": True, "words": 3})
    assert code == 0
    assert document["status"] == "COMPLETED"
    assert "".join(document["output"]).endswith("data: [DONE]\n\n")


def test_failed_job() -> None:
    code, document, log = run({"id": "mine", "input": {"messages": [], "fail": "bad"}})
    assert code == 1
    assert (document["id"], document["status"]) == ("mine", "FAILED")
    assert json.loads(document["error"])["param"] == "temperature"
    assert "Traceback" not in log


def test_failed_boot() -> None:
    code, document, log = run({"prompt": "a"}, boot_error="no such model")
    assert (code, document) == (1, {})
    assert "no such model" in log
    assert "Traceback" not in log


@pytest.mark.parametrize("text", ['{"input": {"prompt": "a"}}', '{"prompt": "a"}'])
def test_read_job(text: str, tmp_path: Path) -> None:
    job = {"id": "local_test", "input": {"prompt": "a"}}
    assert read_job(text) == job
    file = tmp_path / "test_input.json"
    file.write_text(text)
    assert read_job(None, file) == job


@pytest.mark.parametrize(("text", "said"), [("{", "not valid JSON"), ("[1]", "JSON object"), (None, "no job to run")])
def test_no_job(text: str | None, said: str, tmp_path: Path) -> None:
    with pytest.raises(LocalJobError, match=said) as caught:
        read_job(text, tmp_path / "missing.json")
    assert "\n" not in str(caught.value)


def test_the_repository_has_a_job() -> None:
    assert "messages" in read_job(None, ROOT / "test_input.json")["input"]
