"""A worker that cannot start says why in one line that a person can act on, and exits with a non-zero status."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from tests.engine_models.tiny import make_tiny
from tests.support.processes import ROOT, Process

DEMO = ROOT / "src" / "ember" / "demo"
JOB = json.dumps({"input": {"messages": [{"role": "user", "content": "hi"}], "sampling_params": {"max_tokens": 4}}})


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """A tiny model with the demo model's tokenizer."""
    directory = make_tiny("qwen3", tmp_path_factory.mktemp("model"), vocab_size=5000)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(DEMO / name, directory / name)
    return directory


def boot(command: list[str], env: dict[str, str]) -> tuple[int, list[str]]:
    """The exit status, and what was said; what the front found in the files before the engine failed is no error."""
    with Process(*command, env=env) as process:
        status = process.wait(60)
        return status, [line for line in process.log().splitlines() if " INFO ember.front.formats: " not in line]


def broken(checkpoint: Path, tmp_path: Path, name: str, content: bytes | None) -> str:
    """A copy of the checkpoint in which one file is other than it should be."""
    directory = tmp_path / "model"
    shutil.copytree(checkpoint, directory)
    if content is None:
        (directory / name).unlink()
    else:
        (directory / name).write_bytes(content)
    return str(directory)


BAD_SETTINGS = [  # found by the settings, the engine, the front
    ({"MAX_MODEL_LEN": "abc"}, r"MAX_MODEL_LEN=abc: .*integer"),
    ({"DEVICE": "cuda", "CUDA_VISIBLE_DEVICES": ""}, r"DEVICE=cuda.*DEVICE=cpu"),
    ({"CUSTOM_CHAT_TEMPLATE": "{% if %}"}, r"[Tt]emplate"),
    ({"GPU_MEMORY_UTILIZATION": "3"}, r"GPU_MEMORY_UTILIZATION=3: .*less than or equal to 1"),
    ({"MAX_MODEL_LEN": "100000"}, r"MAX_MODEL_LEN=100000 is more than the model's 256 positions; set"),
    ({"KV_CACHE_MEMORY_BYTES": "1000"}, r"KV cache has room for 0 tokens.*KV_CACHE_MEMORY_BYTES"),
    ({"MODEL_NAME": "/no/such/directory"}, r"/no/such/directory.*(not exist|no such)"),
    ({"GENERATION_CONFIG": "/no/such"}, r"GENERATION_CONFIG=/no/such"),
]


@pytest.mark.parametrize(
    ("face", "env", "says"),
    [("worker", *each) for each in BAD_SETTINGS] + [("serve", *each) for each in BAD_SETTINGS[:3]],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else value if value.isalpha() else "",
)
def test_bad_settings(checkpoint, face, env, says):
    """Both faces pass on what any of the three has found."""
    command = ["handler.py", "--test_input", JOB] if face == "worker" else ["-m", "ember", "serve", "--port", "0"]
    status, lines = boot(command, {"MODEL_NAME": str(checkpoint), **env})
    lines = [line for line in lines if "listening on" not in line]
    assert status == 1
    assert len(lines) == 1 and re.search(says, lines[0]), lines


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("model.safetensors", b"\x10\x00", r"model\.safetensors.*(truncated|download|short)"),
        ("model.safetensors", None, r"safetensors"),
        ("config.json", b"{", r"config\.json"),
        ("config.json", None, r"config\.json"),
        ("config.json", b'{"architectures": ["RwkvForCausalLM"]}', r"RwkvForCausalLM is not of Ember's families"),
        ("tokenizer.json", None, r"tokenizer\.json"),
        ("tokenizer.json", b"{}", r"tokenizer\.json"),
        ("chat_template.jinja", b"{% if %}", r"template is not valid Jinja: line 1.*CUSTOM_CHAT_TEMPLATE"),
    ],
)
def test_broken_files(checkpoint, tmp_path, name, content, says):
    directory = broken(checkpoint, tmp_path, name, content)
    status, lines = boot(["handler.py", "--test_input", JOB], {"MODEL_NAME": directory})
    assert status == 1
    assert len(lines) == 1 and re.search(says, lines[0]), lines


def test_weights_cut_off_in_the_middle(checkpoint, tmp_path):
    whole = (checkpoint / "model.safetensors").read_bytes()
    directory = broken(checkpoint, tmp_path, "model.safetensors", whole[: len(whole) // 2])
    status, lines = boot(["handler.py", "--test_input", JOB], {"MODEL_NAME": directory})
    assert status == 1
    assert len(lines) == 1 and re.search(r"model\.safetensors.*(truncated|download)", lines[0]), lines


def test_no_chat_template_fails_the_chat_and_nothing_else(checkpoint, tmp_path):
    config = json.loads((DEMO / "tokenizer_config.json").read_text())
    del config["chat_template"]
    directory = broken(checkpoint, tmp_path, "tokenizer_config.json", json.dumps(config).encode())
    for job, status in ((JOB, 1), (json.dumps({"input": {"prompt": "hi", "sampling_params": {"max_tokens": 2}}}), 0)):
        with Process("handler.py", "--test_input", job, env={"MODEL_NAME": directory}) as process:
            document = json.loads(process.output())
            assert process.wait() == status
        if status:
            assert document["status"] == "FAILED"
            assert "chat template" in json.loads(document["error"])["message"]
        else:
            assert document["status"] == "COMPLETED"


def test_a_queue_without_a_model_name_is_an_error():
    env = {"RUNPOD_WEBHOOK_GET_JOB": "http://127.0.0.1:9/job-take/$ID?x=1"}
    status, lines = boot(["handler.py"], env)
    assert status == 1
    assert len(lines) == 1 and "MODEL_NAME" in lines[0], lines


@pytest.mark.parametrize("name", ["REASONING_PARSER", "TOOL_CALL_PARSER"])
def test_an_unknown_format_ends_the_boot_with_the_names_there_are(name: str) -> None:
    with Process("-m", "ember", "serve", "demo", "--host", "127.0.0.1", "--port", "0", env={name: "gpt9"}) as server:
        assert server.wait(60) == 1
        assert f"{name}=gpt9: there is no such format; there are " in server.log()
        assert "hermes" in server.log() or "qwen3" in server.log()
        assert "Traceback" not in server.log()
