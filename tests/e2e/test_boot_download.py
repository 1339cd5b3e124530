"""A worker whose model is on the Hub: fetches the files, says how far it is, and serves under the name it was given."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.fake_hub import FakeHub
from tests.support.processes import ROOT, Process

DEMO = ROOT / "src" / "ember" / "demo"
JOB = json.dumps({"input": {"messages": [{"role": "user", "content": "hi"}], "sampling_params": {"max_tokens": 4}}})


@pytest.fixture(scope="module")
def hub() -> Iterator[FakeHub]:
    with FakeHub() as hub:
        hub.add("Org/Demo", {file.name: file.read_bytes() for file in DEMO.iterdir() if file.is_file()})
        hub.add("org/unknown", {"config.json": b'{"architectures": ["RwkvForCausalLM"]}', "model.safetensors": b"x"})
        yield hub


def environment(hub: FakeHub, tmp_path: Path, **more: str) -> dict[str, str]:
    cache = {"HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": "", "BASE_PATH": str(tmp_path)}
    return {"HF_ENDPOINT": hub.url, **cache, **more}


def test_a_model_from_the_hub_answers_and_a_second_boot_needs_no_hub(hub: FakeHub, tmp_path: Path) -> None:
    env = environment(hub, tmp_path, MODEL_NAME="Org/Demo", EMBER_BOOT_REPORT=str(tmp_path / "boot.json"))
    with Process("handler.py", "--test_input", JOB, env=env) as process:
        document = json.loads(process.output())
        assert process.wait() == 0
        log = process.log()
    assert document["output"]["model"] == "Org/Demo"
    assert re.search(r"INFO .*downloading Org/Demo: 1 weight file, .* MB, to ", log)
    assert re.search(r"INFO .*downloaded Org/Demo: ", log)
    phases = {phase["name"]: phase for phase in json.loads((tmp_path / "boot.json").read_text())["phases"]}
    assert phases["locate"]["end"] <= phases["first_step"]["start"] < phases["first_step"]["end"]
    hub.refuse = 500
    try:
        with Process("handler.py", "--test_input", JOB, env=env) as process:
            document = json.loads(process.output())
            assert process.wait() == 0
            assert "download" not in process.log()
    finally:
        hub.refuse = 0
    assert document["output"]["model"] == "Org/Demo"


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"MODEL_NAME": "org/none"}, r"org/none was not found.*MODEL_NAME.*HF_TOKEN"),
        ({"MODEL_NAME": "Org/Demo", "HF_TOKEN": "hf_planted"}, r"refuses HF_TOKEN"),
        ({"MODEL_NAME": "org/unknown"}, r"RwkvForCausalLM"),
        ({"MODEL_NAME": "Org/Demo", "HF_ENDPOINT": "http://127.0.0.1:9"}, r"Hub cannot be reached.*network"),
    ],
    ids=["unknown", "wrong token", "unsupported", "unreachable"],
)
def test_a_download_that_cannot_be_is_one_line(hub: FakeHub, tmp_path: Path, more: dict[str, str], says: str) -> None:
    with Process("handler.py", "--test_input", JOB, env=environment(hub, tmp_path, **more)) as process:
        assert process.wait(60) == 1
        lines = process.log().splitlines()
    assert len(lines) == 1 and re.search(says, lines[0]), lines
    assert "hf_planted" not in lines[0]
