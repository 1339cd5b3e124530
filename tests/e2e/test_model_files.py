"""A checkpoint as fine-tuners leave it: what its files say beside each other, in one real server."""

from __future__ import annotations

import json
import shutil
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.processes import ROOT, Process, url_of

DEMO = ROOT / "src" / "ember" / "demo"
BEYOND = {"content": "<new>", "lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps((json.loads(path.read_text()) if path.exists() else {}) | values))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    model = tmp_path_factory.mktemp("models") / "fine-tune"
    shutil.copytree(DEMO, model)
    change(
        model / "config.json", eos_token_id=0, attn_logit_softcapping=30.0
    )  # <|endoftext|>, as the base model had it
    change(model / "generation_config.json", eos_token_id=[0], top_k=20.0, temperature="0")
    config = json.loads((model / "tokenizer_config.json").read_text())
    listed = config["added_tokens_decoder"] | {"4096": BEYOND}  # the model has 4096 rows
    change(model / "tokenizer_config.json", eos_token=None, added_tokens_decoder=listed)
    change(model / "special_tokens_map.json", eos_token={"content": "<|im_end|>"})
    stale = {"weight_map": {"model.embed_tokens.weight": "model-00001-of-00002.safetensors"}}
    change(model / "model.safetensors.index.json", **stale)
    arguments = ("-m", "ember", "serve", str(model), "--host", "127.0.0.1", "--port", "0", "--served-model-name", "m")
    with Process(*arguments, env={"QUANTIZATION": "", "SWAP_SPACE": " "}) as process:
        url_of(process, 120)
        process.wait_log(" ready ", 120)
        yield process


def post(server: Process, path: str, **body: Any) -> tuple[int, Any]:
    data = json.dumps({"model": "m", "max_tokens": 60, **body}).encode()
    request = urllib.request.Request(url_of(server) + path, data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def test_an_answer_ends_at_the_tokenizers_end_token(server: Process) -> None:
    status, body = post(server, "/v1/chat/completions", messages=QUESTION)
    choice = body["choices"][0]
    assert (status, choice["finish_reason"], choice["stop_reason"]) == (200, "stop", None)
    assert choice["message"]["content"] == "The capital of France is Paris."
    status, body = post(server, "/v1/chat/completions", messages=QUESTION, ignore_eos=True, max_tokens=30)
    assert body["usage"]["completion_tokens"] == 30 and body["choices"][0]["finish_reason"] == "length"
    status, body = post(server, "/v1/chat/completions", messages=QUESTION, min_tokens=20)
    assert body["usage"]["completion_tokens"] > 20 and body["choices"][0]["finish_reason"] == "stop"


def test_a_grammar_ends_at_it_too(server: Process) -> None:
    schema = {"type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}}, "required": ["city"]}
    form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    status, body = post(server, "/v1/chat/completions", messages=QUESTION, response_format=form)
    assert status == 200 and json.loads(body["choices"][0]["message"]["content"])["city"] in ("Paris", "Rome")
    status, body = post(server, "/v1/chat/completions", messages=QUESTION, structured_outputs={"regex": "[A-Za-z .]+"})
    assert status == 200 and body["choices"][0]["finish_reason"] == "stop"


def test_a_token_that_the_model_has_not_is_the_clients_error(server: Process) -> None:
    status, body = post(server, "/v1/chat/completions", messages=[{"role": "user", "content": "Hello <new>"}])
    assert status == 400 and "Token id 4096 ('<new>' in messages) is out of vocabulary" in body["error"]["message"]
    status, body = post(server, "/v1/completions", prompt="Hello <new>")
    assert status == 400 and body["error"]["param"] == "prompt"


def test_the_log_says_what_is_odd_and_nothing_of_what_is_empty(server: Process) -> None:
    log = server.log()
    assert log.count("the tokenizer has token ids up to 4096, but the model has 4096 rows") == 1
    assert log.count("fields that Ember does not read for Qwen3ForCausalLM: attn_logit_softcapping.") == 1
    assert "has no effect" not in log and "Traceback" not in log
