"""`ember serve` with one GGUF file, which has the weights, the configuration, the tokenizer and the chat template."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from gguf import MODEL_ARCH

from tests.e2e.conftest import BOOT_SECONDS
from tests.gguf_files.convert import Case, convert
from tests.gguf_files.vocabularies import of_tokenizer
from tests.support.processes import ROOT, Process, url_of

DEMO = ROOT / "src" / "ember" / "demo"
QUESTION: Any = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model with matrices of Q8_0."""
    template = json.loads((DEMO / "tokenizer_config.json").read_text())["chat_template"]
    metadata = of_tokenizer(DEMO, "smollm", **{"ggml.eos_token_id": 2, "chat_template": template})
    sampling = {"general.sampling.top_k": 7, "general.sampling.temp": 0.25}
    path = tmp_path_factory.mktemp("gguf") / "demo-Q8_0.gguf"
    return convert(DEMO, path, Case(MODEL_ARCH.QWEN3, ""), lambda name, array: "Q8_0", extra=metadata | sampling)


@pytest.fixture(scope="module")
def client(file: Path) -> Iterator[openai.OpenAI]:
    command = ("-m", "ember", "serve", str(file), "--host", "127.0.0.1", "--port", "0", "--served-model-name", "demo")
    with Process(*command, env={"ENABLE_TOKENIZER_INFO_ENDPOINT": "1"}) as server:
        yield openai.OpenAI(base_url=url_of(server, BOOT_SECONDS) + "/v1", api_key="none", max_retries=0, timeout=120)
        assert "Q8_0" in str(file) and "Qwen3ForCausalLM" in server.log()


def test_a_chat_is_answered(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="demo", messages=QUESTION, temperature=0, max_tokens=40)
    assert "Paris" in (answer.choices[0].message.content or "")
    assert answer.choices[0].finish_reason == "stop"


def test_an_answer_keeps_to_a_schema(client: openai.OpenAI) -> None:
    schema = {
        "type": "object",
        "properties": {"n": {"type": "integer"}},
        "required": ["n"],
        "additionalProperties": False,
    }
    form: Any = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
    answer = client.chat.completions.create(model="demo", messages=QUESTION, response_format=form, max_tokens=80)
    assert type(json.loads(answer.choices[0].message.content or "")["n"]) is int


def test_what_is_said_of_the_model(client: openai.OpenAI) -> None:
    assert client.models.list().data[0].id == "demo"
    url = str(client.base_url).removesuffix("v1/")
    info = client._client.get(url + "tokenizer_info").json()
    assert info["eos_token"] == "<|im_end|>" and "messages" in info["chat_template"]
    boot = client._client.get(url + "boot").json()
    assert "ready" in json.dumps(boot)
