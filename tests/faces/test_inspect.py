"""`ember inspect`: the text, the JSON and its documentation, the settings, and the failures."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import pytest

from ember import cli
from ember.cli.inspect import Text
from ember.engine.core.prediction import DeviceReport, GroupReport, Prediction
from ember.engine.loading.resolve import DEMO
from tests.engine_models.tiny import make_tiny, rewrite_config

PAGE = Path(__file__).parents[2] / "docs" / "inspect.md"


def inspected(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert cli.main(["inspect", *arguments, "--json"]) == 0
    found = capsys.readouterr()
    assert found.err == ""
    document: dict[str, Any] = json.loads(found.out)
    return document


def test_it_loads_neither_torch_nor_weights() -> None:
    code = "import sys; from ember.cli import main; main(['inspect', 'demo']); print('', *sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "Qwen3ForCausalLM, 5 layers" in done.stdout and done.stderr == ""
    loaded = set(done.stdout.splitlines()[-1].split())
    assert "ember.engine.core.prediction" in loaded
    assert not loaded & {"torch", "numpy", "transformers", "triton", "aiohttp", "safetensors"}


def test_the_text_names_what_the_json_has(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TENSOR_PARALLEL_SIZE", "4")
    document = inspected(capsys, "demo")
    assert cli.main(["inspect", "demo"]) == 0
    text = capsys.readouterr().out
    assert text.splitlines()[0] == "demo"
    for device in document["devices"]:
        assert f"{device['name']}: fits" in text
        assert f"{device['operators']} ({device['operators_reason']}), {device['dtype']}" in text
    assert f"hermes ({document['text']['tool_calls_reason']})" in text
    assert f"qwen3 ({document['text']['reasoning_reason']})" in text
    (unused,) = document["unused_settings"]
    assert unused.startswith("TENSOR_PARALLEL_SIZE") and f"- {unused}" in text


def test_the_documentation_has_every_field(capsys: pytest.CaptureFixture[str]) -> None:
    document = inspected(capsys, "demo")
    rows = [line.split("|")[1] for line in PAGE.read_text().splitlines() if line.startswith("| `")]
    documented = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    names = {
        "model",
        "text",
        "unused_settings",
        *(field.name for kind in (Prediction, DeviceReport) for field in fields(kind)),
    }
    assert documented == names
    assert document.keys() <= names and document["devices"][0].keys() <= names
    assert document["text"].keys() == {field.name for field in fields(Text)}
    for field in fields(GroupReport):
        assert f"`{field.name}`" in PAGE.read_text()
    assert asdict(GroupReport(1, "full", None, 2, 0)).keys() == document["devices"][0]["cache_groups"][0].keys()


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    command = f"{sys.executable} -m ember inspect demo | true"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True)
    assert done.stderr == ""


def test_settings_count(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_OVERRIDES", '{"max_position_embeddings": 512, "model_type": "gpt_oss"}')
    monkeypatch.setenv("DTYPE", "float32")
    monkeypatch.setenv("KV_CACHE_DTYPE", "fp8")
    monkeypatch.setenv("MODEL_NAME", "demo")
    document = inspected(capsys, "--max-num-seqs", "5", "--tool-call-parser", "none")
    assert document["max_position_embeddings"] == 512
    assert any("model_type" in warning and "gpt_oss" in warning for warning in document["warnings"])
    device = document["devices"][0]
    assert (device["dtype"], device["cache_dtype"]) == ("float32", "float8_e4m3fn")
    assert (device["max_num_seqs"], device["max_model_len"], device["operators"]) == (5, 512, "torch")
    assert document["text"]["tool_calls"] == "none"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"architectures": ["RwkvForCausalLM"]}, r"config\.json: RwkvForCausalLM is not of Ember's families"),
        ({"vocab_size": None}, r"config\.json: the field vocab_size is missing"),
        ({"num_hidden_layers": 9}, r"num_hidden_layers=9, but the files have 3 layers"),
    ],
)
def test_a_model_that_cannot_be_served_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: dict[str, Any], says: str
) -> None:
    rewrite_config(make_tiny("llama", tmp_path), **change)
    capsys.readouterr()
    assert cli.main(["inspect", str(tmp_path)]) == 1
    found = capsys.readouterr()
    assert found.out == "" and found.err.count("\n") == 1
    assert found.err.startswith("ember: error: ") and re.search(says, found.err)
    assert cli.main(["inspect", str(tmp_path), "--json"]) == 1
    found = capsys.readouterr()
    assert re.search(says, json.loads(found.out)["error"])


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "MODEL_NAME is not set"),
        (["/no/such/model"], "/no/such/model does not exist"),
        (["demo", "--dtype", "x"], "DTYPE=x"),
        (["demo", "--reasoning-parser", "x"], "REASONING_PARSER=x: there is no such format"),
    ],
)
def test_failures_of_the_settings(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["inspect", *arguments]) == 1
    err = capsys.readouterr().err
    assert says in err and err.count("\n") == 1


def test_the_template_of_another_tokenizer_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "chat_template.jinja").write_text("[TOOL_CALLS] {{ messages }}")
    document = inspected(capsys, "demo", "--tokenizer-name", str(tmp_path))
    assert (document["text"]["tool_calls"], document["tokenizer_dir"]) == ("mistral", str(tmp_path))
    assert cli.main(["inspect", "demo", "--tokenizer-name", "/no/such"]) == 1
    assert "/no/such does not exist: set TOKENIZER_NAME" in capsys.readouterr().err


def copy_of_demo(directory: Path) -> Path:
    shutil.copytree(DEMO, directory, dirs_exist_ok=True)
    return directory


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("tokenizer.json", None, "has no tokenizer.json: download the model's tokenizer files"),
        ("chat_template.jinja", "{% if %}", "the chat template is not valid Jinja: line 1: Expected an expression"),
        ("tokenizer_config.json", '{"chat_template": 5}', "must be Jinja text, or named templates, not 5"),
        ("tokenizer_config.json", '{"chat_template": ["x"]}', "must be Jinja text, or named templates, not ['x']"),
        ("tokenizer_config.json", '{"chat_template": [{"name": "a", "template": 5}]}', "or named templates, not 5"),
        ("generation_config.json", '{"temperature": "hot"}', "the sampling default temperature must be a number"),
    ],
)
def test_what_the_front_refuses_is_refused(
    name: str, content: str | None, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = copy_of_demo(tmp_path) / name
    file.unlink() if content is None else file.write_text(content)
    assert cli.main(["inspect", str(tmp_path)]) == 1
    found = capsys.readouterr()
    assert found.out == "" and found.err.count("\n") == 1 and says in found.err


def test_a_model_without_a_chat_template_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = copy_of_demo(tmp_path) / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "chat_template": None}))
    text = inspected(capsys, str(tmp_path))["text"]
    assert text["chat_template"] == "none"
    assert text["chat_template_reason"].startswith("the model has no chat template: chat requests are refused unless")
    named = [{"name": "a\x1b[31m\n  b", "template": "x"}]
    file.write_text(json.dumps({**json.loads(file.read_text()), "chat_template": named}))
    assert cli.main(["inspect", str(tmp_path)]) == 0
    assert "choose one of: a\\x1b[31m\\n  b: chat" in capsys.readouterr().out  # a terminal obeys no name
    (tmp_path / "chat_template.jinja").write_text("{% if %}")
    text = inspected(capsys, str(tmp_path), "--custom-chat-template", "{{ messages }}")["text"]
    assert (text["chat_template"], text["chat_template_reason"]) == ("custom", "CUSTOM_CHAT_TEMPLATE")
    assert cli.main(["inspect", str(tmp_path), "--custom-chat-template", "{% if %}"]) == 1
    assert "CUSTOM_CHAT_TEMPLATE cannot be used: the chat template is not valid" in capsys.readouterr().err


def test_settings_of_cpus_have_no_effect_on_gpus(capsys: pytest.CaptureFixture[str]) -> None:
    cpu, *gpus = inspected(capsys, "demo", "--cpu-weights", "int8", "--cpu-activations", "float")["devices"]
    assert cpu["warnings"] == [] and len(gpus) == 3
    cpu, *_ = inspected(capsys, "demo", "--cpu-activations", "float")["devices"]
    assert "CPU_ACTIVATIONS=float has no effect: the model's weights are not quantized" in cpu["warnings"][0]
    for gpu in gpus:
        assert gpu["warnings"] == [
            f"{name} has no effect: the model runs on a GPU" for name in ("CPU_WEIGHTS=int8", "CPU_ACTIVATIONS=float")
        ]
