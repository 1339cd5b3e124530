"""One job without a queue: where it is read from, and the one document that it prints."""

from __future__ import annotations

import json
import signal
import time
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
    code, document, log = run({"id": "mine", "input": {"prompt": "a"}}, boot_error="no such\nmodel")
    assert code == 1
    assert document == {"id": "mine", "status": "FAILED", "error": "no such model"}
    assert log.count("no such model") == 1
    assert "Traceback" not in log


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize("boot", [0, 60])
def test_a_signal_ends_the_engine_too(number: int, status: int, boot: int) -> None:
    job = {"messages": [], "words": 1, "pace": 60}
    with Process(SCRIPT, json.dumps({"face": "local", "job": job, "boot": boot})) as process:
        process.wait_log("the fake boots")
        time.sleep(0 if boot else 0.5)
        process.popen.send_signal(number)
        assert process.wait(5) == status
        assert "the fake is closed" in process.log()
        assert "Traceback" not in process.log()


def test_a_document_can_always_be_printed() -> None:
    code, document, log = run({"id": "\ud800", "input": {"prompt": "\ud800"}})
    assert (code, document["status"]) == (1, "FAILED")
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


@pytest.mark.parametrize("content", [b'{"prompt": "\xff"}', b"[" * 5000, b"\xff\xfe{\x00"])
def test_a_file_that_is_no_json_text(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "test_input.json"
    file.write_bytes(content)
    with pytest.raises(LocalJobError, match="test_input.json") as caught:
        read_job(None, file)
    assert "\n" not in str(caught.value)


def test_the_repository_has_a_job() -> None:
    assert "messages" in read_job(None, ROOT / "test_input.json")["input"]
