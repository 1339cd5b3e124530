"""Coding agents in one-shot mode against a scripted model: each reads a file with its own tool and says what is in it.

`make test-agents` installs them (a gigabyte) and runs this.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.processes import ROOT

AGENTS = ROOT / ".venv-clients/agents"
SECONDS = 240.0
ANSWER = "The file says hello."

pytestmark = pytest.mark.skipif(not (AGENTS / ".made").exists(), reason="`make test-agents` installs the agents")


def ends_reasoning(text: str) -> str:
    return f"I look.\n</think>\n\n{text}"


def calls(name: str, **arguments: Any) -> str:
    call = json.dumps({"name": name, "arguments": arguments})
    return ends_reasoning(f"Let me look.\n<tool_call>\n{call}\n</tool_call>")


def run(directory: Path, texts: list[str], command: list[str], files: dict[str, str], env: dict[str, str]) -> str:
    """What the agent prints. `{url}` in its files and in `env` is the server's address."""
    (directory / "script.json").write_text(json.dumps(texts))
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.clients.scripted_server", str(directory / "script.json")],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert server.stdout is not None
        url = server.stdout.readline().strip()
        home, project = directory / "home", directory / "project"
        project.mkdir()
        (project / "a.txt").write_text("hello\n")
        for name, text in files.items():
            path = directory / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text.replace("{url}", url))
        given = {name: value.replace("{url}", url) for name, value in env.items()}
        done = subprocess.run(
            [str(AGENTS / "node_modules/.bin" / command[0]), *command[1:]],
            cwd=project,
            env={"PATH": os.environ["PATH"], "HOME": str(home), **given},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout
    finally:
        server.kill()
        server.wait()


def test_claude_code(tmp_path: Path) -> None:
    texts = [calls("Read", file_path=str(tmp_path / "project/a.txt")), ends_reasoning(ANSWER)]
    env = {
        "ANTHROPIC_BASE_URL": "{url}",
        "ANTHROPIC_API_KEY": "none",
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
    }
    assert ANSWER in run(tmp_path, texts, ["claude", "-p", "What does a.txt say?"], {}, env)


def test_codex(tmp_path: Path) -> None:
    provider = 'name = "Ember"\nbase_url = "{url}/v1"\nwire_api = "responses"\nenv_key = "EMBER_KEY"\n'
    config = 'model = "org/tiny"\nmodel_provider = "ember"\nweb_search = "disabled"\n'
    files = {"home/.codex/config.toml": f"{config}[model_providers.ember]\n{provider}"}
    command = ["codex", "exec", "--skip-git-repo-check", "--dangerously-bypass-approvals-and-sandbox"]
    texts = [calls("exec_command", cmd="cat a.txt"), ends_reasoning(ANSWER)]
    said = run(tmp_path, texts, [*command, "What does a.txt say?"], files, {"EMBER_KEY": "x"})
    assert ANSWER in said


def test_opencode(tmp_path: Path) -> None:
    model = {"name": "tiny", "limit": {"context": 900_000, "output": 4000}}
    options = {"baseURL": "{url}/v1", "apiKey": "none"}
    provider = {"npm": "@ai-sdk/openai-compatible", "name": "Ember", "options": options, "models": {"org/tiny": model}}
    config = {"model": "ember/org/tiny", "small_model": "ember/org/tiny", "provider": {"ember": provider}}
    texts = [calls("read", filePath=str(tmp_path / "project/a.txt")), ends_reasoning(ANSWER)]
    files = {"project/opencode.json": json.dumps(config)}
    assert ANSWER in run(tmp_path, texts, ["opencode", "run", "What does a.txt say?"], files, {})
