"""/v1/files and /v1/batches of a real server as OpenAI's SDK uses them, also over a restart."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.support.processes import Process, url_of

COMMAND = ("-m", "ember", "serve", "demo", "--host", "127.0.0.1", "--port", "0")


def lines_of(count: int, max_tokens: int = 16, **fields: Any) -> bytes:
    body = {"prompt": "A fox", "max_tokens": max_tokens, "ignore_eos": True}
    line = {"method": "POST", "url": "/v1/completions", "body": body, **fields}
    return "".join(json.dumps({"custom_id": f"r{number}", **line}) + "\n" for number in range(count)).encode()


def wait_for(found: Callable[[], Any], is_over: Callable[[Any], bool], seconds: float = 90.0) -> Any:
    deadline = time.monotonic() + seconds
    while not is_over(value := found()):
        assert time.monotonic() < deadline, value
        time.sleep(0.05)
    return value


def test_files_and_batches_as_the_sdk_uses_them(tmp_path: Path) -> None:
    env = {"BATCH_DIR": str(tmp_path)}
    with Process(*COMMAND, "--max-num-seqs", "2", env=env) as server:
        client = openai.OpenAI(base_url=url_of(server, 120) + "/v1", api_key="none", max_retries=0)
        content = lines_of(100) + lines_of(1, custom_id="bad", body={"prompt": "x", "temperature": -1})
        file = client.files.create(file=("in.jsonl", content), purpose="batch")
        assert file.bytes == len(content) and client.files.retrieve(file.id) == file
        assert client.files.content(file.id).content == content
        other = client.files.create(file=("other.jsonl", lines_of(2, url="/v1/chat/completions")), purpose="batch")
        assert [each.id for each in client.files.list(order="asc")] == [file.id, other.id]
        azure = openai.AzureOpenAI(base_url=str(client.base_url), api_key="none", api_version="2025-04-01-preview")
        assert [each.id for each in azure.files.list()] == [other.id, file.id] and not azure.batches.list().data
        wrong = client.batches.create(input_file_id=other.id, endpoint="/v1/completions", completion_window="24h")
        wrong = wait_for(lambda: client.batches.retrieve(wrong.id), lambda batch: batch.status == "failed")
        assert [(each.line, each.code) for each in wrong.errors.data] == [
            (1, "mismatched_endpoint"),
            (2, "mismatched_endpoint"),
        ]
        options: Any = {"endpoint": "/v1/completions", "completion_window": "24h", "metadata": {"run": "1"}}
        raw = client.batches.with_raw_response.create(input_file_id=file.id, **options, extra_body={"priority": 1})
        batch = raw.parse()
        assert raw.headers["X-Ember-Ignored-Fields"] == "priority"
        assert batch.status == "validating" and batch.output_file_id is None
        for call, status, message in (
            (lambda: client.files.create(file=b"x", purpose="vision"), 400, "purpose must be 'batch'"),
            (lambda: client.files.retrieve("file-" + "0" * 32), 404, "No such file"),
            (lambda: client.files.retrieve("..%2f..%2fsecret"), 404, "No such file"),
            (lambda: client.files.delete(file.id), 400, "which is not over"),
            (
                lambda: client.batches.create(input_file_id=file.id, **options | {"completion_window": "soon"}),
                400,
                "24h",
            ),
            (
                lambda: client.batches.create(input_file_id=file.id, **options | {"endpoint": "/v1/files"}),
                400,
                "endpoint",
            ),
            (lambda: client.batches.create(input_file_id="file-x", **options), 404, "No such file"),
            (
                lambda: client.batches.create(input_file_id=file.id, **options | {"endpoint": "/v1/embeddings"}),
                400,
                "endpoint must be .* needs a model that does embed. The model `demo` does generate",
            ),
            (
                lambda: client.batches.create(input_file_id=file.id, **options | {"endpoint": "/bad"}),
                400,
                "No route answers",
            ),
            (lambda: client.batches.list(limit=0), 400, "limit must be a number from 1 to 100"),
            (lambda: client.batches.list(extra_query={"order": "foo"}), 400, "order must be 'asc' or 'desc'"),
            (lambda: client.files.list(extra_query={"order": "foo"}), 400, "order must be 'asc' or 'desc'"),
            (lambda: client.batches.list(after=file.id), 400, "after must be an id of the list"),
            (lambda: client.files.list(after="batch_" + "0" * 32), 400, "after must be an id of the list"),
            (lambda: client.batches.list(extra_query={"purpose": "x"}), 400, "`purpose` is no query parameter"),
            (lambda: client.files.list(extra_query={"before": "x"}), 400, "`before` is no query parameter"),
            (lambda: client.files.list(limit=10_001), 400, "limit must be a number from 1 to 10000"),
        ):
            with pytest.raises(openai.APIStatusError, match=message) as caught:
                call()
            assert caught.value.status_code == status
        output = tmp_path / "files" / json.loads((tmp_path / "batches" / f"{batch.id}.json").read_text())["_output"]
        wait_for(lambda: output.exists() and output.read_text().count("\n"), lambda count: count >= 5)
        server.popen.send_signal(signal.SIGKILL)
        server.wait()
    with Process(*COMMAND, env=env) as server:
        client = openai.OpenAI(base_url=url_of(server, 120) + "/v1", api_key="none", max_retries=0)
        done = wait_for(lambda: client.batches.retrieve(batch.id), lambda batch: batch.status == "completed")
        assert (done.request_counts.total, done.request_counts.completed, done.request_counts.failed) == (101, 100, 1)
        results = [json.loads(line) for line in client.files.content(done.output_file_id).text.splitlines()]
        assert sorted(each["custom_id"] for each in results) == sorted(f"r{number}" for number in range(100))
        assert all(each["response"]["body"]["usage"]["completion_tokens"] == 16 for each in results)
        (failed,) = client.files.content(done.error_file_id).text.splitlines()
        assert json.loads(failed)["response"]["status_code"] == 400 and done.metadata == {"run": "1"}
        long = client.files.create(file=("long.jsonl", lines_of(300, max_tokens=1500)), purpose="batch")
        cancelled = client.batches.create(input_file_id=long.id, **options)
        assert client.batches.cancel(cancelled.id).status in ("cancelling", "cancelled")
        ended = wait_for(lambda: client.batches.retrieve(cancelled.id), lambda batch: batch.status == "cancelled")
        assert ended.cancelled_at is not None and ended.request_counts.completed < 300
        with pytest.raises(openai.BadRequestError, match="is cancelled and cannot be cancelled"):
            client.batches.cancel(cancelled.id)
        oldest = client.batches.list(limit=1, extra_query={"order": "asc"}).data[0]
        assert oldest.id == wrong.id
        first = client.batches.list(limit=2)
        assert len(first.data) == 2 and first.has_more and len(first.get_next_page().data) == 1
        assert client.files.delete(file.id).deleted
        assert not list((tmp_path / "files").glob("upload-*")) and not list(tmp_path.rglob("*.tmp"))
        server.terminate()
        assert server.wait() == 0
