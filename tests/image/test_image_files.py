"""The Dockerfile and what stands beside it: pinned, consistent with the code, and free of what must not be shipped."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import threading
import tomllib
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from builder import lock, precompile
from ember import health
from ember.engine.loading import resolve
from ember.settings import Settings, variable_names

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
BAKE = (ROOT / "docker-bake.hcl").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def versions(file: Path) -> dict[str, str]:
    lines = (line.split("==") for line in file.read_text().splitlines() if "==" in line and not line.startswith("#"))
    return {name.lower().replace("_", "-"): version for name, version in lines}


def arguments() -> dict[str, str]:
    """Defaults of the Dockerfile's build arguments."""
    return {name: value.strip('"') for name, value in re.findall(r"^ARG (\w+)=(.*)$", DOCKERFILE, re.MULTILINE)}


def test_every_dependency_is_locked_to_the_version_that_is_tested() -> None:
    locked, tested = versions(lock.LOCK), versions(ROOT / "constraints.txt")
    names = {re.split(r"[<>=\[ ]", line)[0].lower().replace("_", "-") for line in PROJECT["dependencies"]} - {"torch"}
    assert names <= set(locked), "run: make lock"
    assert {name: locked[name] for name in locked if name in tested} == {
        name: tested[name] for name in tested if name in locked
    }
    assert not [name for name in locked if name.startswith(lock._TORCHS_OWN)]


def test_render_leaves_torch_to_the_image() -> None:
    text = lock.render({"torch": "1", "nvidia-cublas-cu12": "1", "triton": "1", "PyYAML": "6", "hf_xet": "2"})
    assert text.splitlines()[1:] == ["hf-xet==2", "pyyaml==6"]


def test_paths_are_those_of_the_code() -> None:
    assert (
        f"--into {resolve.BAKED}" in DOCKERFILE and f"COPY --from=baked {resolve.BAKED} {resolve.BAKED}" in DOCKERFILE
    )
    cache = re.search(r"TRITON_CACHE_DIR=(\S+)", DOCKERFILE)
    assert cache and f"--cache {cache[1]}" in DOCKERFILE and f"COPY --from=kernels {cache[1]} {cache[1]}" in DOCKERFILE
    assert tuple(map(int, arguments()["CAPABILITIES"].split())) == precompile.CAPABILITIES


def test_variables_of_the_image_are_settings_or_other_programs() -> None:
    read = {name for field in Settings.model_fields for name in variable_names(field)}
    block = DOCKERFILE[DOCKERFILE.index("ENV PATH=") : DOCKERFILE.index("WORKDIR /opt/ember\n")]
    names = set(re.findall(r"(\w+)=", block))
    others = {"PATH", "PYTHONPATH", "PYTHONDONTWRITEBYTECODE", "TRITON_CACHE_DIR", "HF_HUB_DISABLE_TELEMETRY"}
    assert names - others - {"NVIDIA_VISIBLE_DEVICES", "NVIDIA_DRIVER_CAPABILITIES"} <= read
    assert "HF_TOKEN" not in names and not re.search(r"^(ARG|ENV) HF_TOKEN", DOCKERFILE, re.MULTILINE)


def test_the_last_stage_builds_nothing() -> None:
    final = DOCKERFILE[DOCKERFILE.index("AS final") :]
    assert "apt-get" not in final and "pip install" not in final
    assert "HEALTHCHECK" in final and '"-P", "-m", "ember.health"' in final and "handler.py" in final


def test_everything_that_is_copied_exists_and_is_in_the_context() -> None:
    allowed = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    sources = [
        word for line in re.findall(r"^COPY (?!--from)(.*)$", DOCKERFILE, re.MULTILINE) for word in line.split()[:-1]
    ]
    assert len(sources) > 10
    for source in sources:
        assert (ROOT / source).exists(), source
        assert source.split("/")[0] in allowed, source


def test_versions_are_pinned() -> None:
    assert "+cu128" in arguments()["TORCH_VERSION"] and arguments()["TORCH_INDEX"].endswith("/cu128")
    assert re.search(r":\d+\.\d+", arguments()["BASE_IMAGE"])
    minimum = next(line for line in PROJECT["dependencies"] if line.startswith("torch>="))[len("torch>=") :]
    for version in re.findall(r'TORCH_VERSION\s*=\s*"([^"+]+)', BAKE):
        assert tuple(map(int, version.split(".")))[:2] >= tuple(map(int, minimum.split(".")))


def test_the_bake_file_has_the_variants_and_passes_arguments_that_exist() -> None:
    targets = re.findall(r'^target "([^"]+)"', BAKE, re.MULTILINE)
    assert set(targets) == {"common", "cuda12-8", "cuda13", "cpu"}
    names = re.findall(r'^(?:target|group) "([^"]+)"', BAKE, re.MULTILINE)
    assert all(re.fullmatch(r"[a-zA-Z0-9_-]+", name) for name in names), "buildx takes no other names"
    known = set(re.findall(r"^ARG (\w+)", DOCKERFILE, re.MULTILINE))
    passed = {
        name for block in re.findall(r"args = \{(.*?)\}", BAKE, re.DOTALL) for name in re.findall(r"(\w+)\s+=", block)
    }
    assert passed and passed <= known
    for version, index in re.findall(r'TORCH_VERSION = "([^"]+)"\n\s+TORCH_INDEX\s+= "([^"]+)"', BAKE):
        assert index.endswith("/" + version.partition("+")[2])
    default = re.search(r'TORCH_VERSION = "([^"]+)"', BAKE[BAKE.index('target "cuda12-8"') :])
    assert default and default[1] == arguments()["TORCH_VERSION"]


# ------------------------------------------------------------------ the entry point


def enter(tmp_path: Path, uid: int, writers: set[int], **environment: str) -> str:
    """What the entry point runs, with its tools replaced by scripts; the users in `writers` may write the volume."""
    tools = tmp_path / "tools"
    tools.mkdir(exist_ok=True)
    scripts = {
        "id": f"echo {uid}",
        "setpriv": 'while [ "$1" != -- ]; do shift; done; shift; AS=ember exec "$@"',
        "test": f'[ "${{AS:-root}}" = ember ] && exit {0 if 1000 in writers else 1}; exit 0',
    }
    for name, script in scripts.items():
        (tools / name).write_text(f"#!/bin/sh\n{script}\n")
        (tools / name).chmod(0o755)
    command = ["/bin/sh", str(ROOT / "builder" / "entrypoint.sh"), "/bin/sh", "-c", "echo ${AS:-root} $HOME"]
    path = f"{tools}:{os.environ['PATH']}"
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env={"PATH": path, "HOME": "/root", **environment}
    )
    return done.stdout.strip()


def test_without_a_volume_the_worker_gives_up_root(tmp_path: Path) -> None:
    assert enter(tmp_path, 0, set(), BASE_PATH="/no-such-volume") == "ember /home/ember"


def test_a_volume_that_all_may_write_needs_no_root(tmp_path: Path) -> None:
    volume = tmp_path / "volume"
    volume.mkdir()
    assert enter(tmp_path, 0, {1000}, BASE_PATH=str(volume)) == "ember /home/ember"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may always write")
def test_a_volume_of_roots_keeps_the_worker_root(tmp_path: Path) -> None:
    volume = tmp_path / "volume"
    volume.mkdir()
    assert enter(tmp_path, 0, set(), BASE_PATH=str(volume)) == "root /root"
    assert enter(tmp_path, 0, set(), BASE_PATH=str(volume), DOWNLOAD_DIR="/no-such") == "ember /home/ember"


def test_who_is_not_root_stays_who_they_are(tmp_path: Path) -> None:
    assert enter(tmp_path, 1234, set(), BASE_PATH="/no-such-volume") == "root /root"
    assert enter(tmp_path, 0, set(), EMBER_USER="root") == "root /root"


# ------------------------------------------------------------------ the health check


def proc(tmp_path: Path, *commands: tuple[str, str]) -> Path:
    """A /proc with processes of a state and a command line."""
    for pid, (state, line) in enumerate(commands, 1):
        directory = tmp_path / str(pid)
        directory.mkdir()
        (directory / "stat").write_text(f"{pid} (python3) {state} 0 1 1")
        (directory / "cmdline").write_text(line.replace(" ", "\0") + "\0")
    return tmp_path


WORKER = "/opt/ember/venv/bin/python /opt/ember/handler.py"


@pytest.mark.parametrize(("state", "status"), [("S", 0), ("R", 0), ("Z", 1)])
def test_a_queue_worker_is_well_while_its_engine_runs(tmp_path: Path, state: str, status: int) -> None:
    directory = proc(tmp_path, ("S", WORKER), (state, "/opt/ember/venv/bin/python -P -m ember.engine 7"))
    assert health.main(directory) == status


def test_a_worker_without_an_engine_is_ill(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert health.main(proc(tmp_path, ("S", WORKER))) == 1
    assert "engine" in capsys.readouterr().out


@pytest.mark.parametrize(("answer", "status"), [(200, 0), (204, 0), (503, 1), (None, 1)])
def test_a_server_is_asked(tmp_path: Path, answer: int | None, status: int) -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(answer if self.path == "/ping" and answer else 404)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        port = server.server_address[1]
        threading.Thread(target=server.serve_forever, daemon=True).start()
        if answer is None:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                port = free.getsockname()[1]
        line = f"/opt/ember/venv/bin/python /opt/ember/app/bin/ember serve demo --port {port}"
        assert health.main(proc(tmp_path, ("S", line))) == status
        server.shutdown()


def test_the_port_is_that_of_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PORT", raising=False)
    assert health._port(["ember", "serve", "--port=81", ""]) == 81
    assert health._port(["ember", "serve", ""]) == Settings.model_fields["port"].default
    monkeypatch.setenv("PORT", "82")
    assert health._port(["ember", "serve", ""]) == 82


def test_the_check_imports_nothing_of_the_worker() -> None:
    code = "import sys, ember.health; print([name for name in sys.modules if name.startswith(('ember', 'torch'))])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['ember', 'ember.health']"
