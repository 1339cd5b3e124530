"""`make image-check`: builds the image without a Docker engine, starts its own command on a queue, and gets answers.

    python -m tests.image.check [--work DIR] [--buildah "--volume /wheels:/mirror --build-arg PIP_FIND_LINKS=/mirror"]

As root, with buildah and debootstrap (Debian packages). The base is a Debian made on the spot, torch the CPU build, and
the demo model is baked in from its directory. What is checked is listed by `main`; the first thing that is not as it
should be ends it with status 1.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.support.fake_queue import FakeQueue

ROOT = Path(__file__).resolve().parents[2]
BASE, IMAGE = "localhost/ember-base", "localhost/ember:check"
MODEL = "ember/demo-baked"
TOKEN = "hf_planted_for_the_image_check"
QUESTION = {"messages": [{"role": "user", "content": "What is 7 plus 5?"}], "sampling_params": {"temperature": 0}}
COMPILERS = ("gcc", "cc", "g++", "ld", "make", "cmake", "nvcc", "rustc")


class Wrong(Exception):
    """Something is not as it should be."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "image-check")
    parser.add_argument("--suite", default="bookworm", help="Debian's name for the base")
    parser.add_argument("--mirror", default="http://deb.debian.org/debian")
    parser.add_argument("--torch-version", default="2.13.0+cpu")
    parser.add_argument("--torch-index", default="https://download.pytorch.org/whl/cpu")
    parser.add_argument("--buildah", default="", help="further arguments of `buildah build`")
    parser.add_argument("--no-build", action="store_true", help="check the image that the last call built")
    options = parser.parse_args()
    missing = [tool for tool in ("buildah", "debootstrap") if shutil.which(tool) is None]
    if missing or os.geteuid() != 0:
        wanted = f"apt-get install {' '.join(missing)}" if missing else "run it as root"
        print(f"image-check needs the rights of root, buildah and debootstrap: {wanted}")
        return 1
    options.work.mkdir(parents=True, exist_ok=True)
    check = Check(options.work)
    try:
        if not options.no_build:
            check.make_base(options.suite, options.mirror)
            check.build(options.torch_version, options.torch_index, shlex.split(options.buildah))
        check.inspect()
        check.run()
    except (Wrong, TimeoutError) as error:
        print(f"image-check: {error}")
        return 1
    print("image-check: the image is as it should be")
    return 0


def say(line: str) -> None:
    print(f"  {line}", flush=True)


class Check:
    """One image and what is asked of it. `work` holds buildah's storage and the base."""

    def __init__(self, work: Path) -> None:
        self.work = work
        storage = ["--root", str(work / "storage"), "--runroot", str(work / "run"), "--storage-driver", "vfs"]
        self.command = ["buildah", *storage]

    def buildah(self, *arguments: str) -> str:
        """Its stdout. Raises Wrong."""
        done = subprocess.run([*self.command, *arguments], capture_output=True, text=True, check=False, cwd=ROOT)
        if done.returncode != 0:
            raise Wrong(f"buildah {' '.join(arguments[:3])} failed:\n{(done.stdout + done.stderr)[-4000:]}")
        return done.stdout.strip()

    def make_base(self, suite: str, mirror: str) -> None:
        """A Debian with Python, as BASE_IMAGE wants it."""
        known = subprocess.run([*self.command, "inspect", "--type", "image", BASE], capture_output=True, check=False)
        if known.returncode == 0:
            return
        directory = self.work / "base"
        shutil.rmtree(directory, ignore_errors=True)
        packages = "python3,python3-venv,ca-certificates"
        command = ["debootstrap", "--variant=minbase", f"--include={packages}", suite, str(directory), mirror]
        with (self.work / "debootstrap.log").open("w") as log:
            if subprocess.run(command, stdout=log, stderr=log, check=False).returncode != 0:
                raise Wrong(f"debootstrap failed, see {log.name}")
        container = self.buildah("from", "scratch")
        self.buildah("add", "-q", container, str(directory), "/")
        self.buildah("commit", "-q", container, BASE)
        self.buildah("rm", container)
        shutil.rmtree(directory)
        say(f"base: Debian {suite} with Python")

    def build(self, torch_version: str, torch_index: str, more: list[str]) -> None:
        start = time.monotonic()
        with tempfile.NamedTemporaryFile("w") as token:
            token.write(TOKEN)
            token.flush()
            arguments = {
                "BASE_IMAGE": BASE,
                "TORCH_VERSION": torch_version,
                "TORCH_INDEX": torch_index,
                "MODEL_NAME": MODEL,
            }
            command = [*self.command, "build", "--isolation", "chroot", "--format", "docker"]
            command += [word for name, value in arguments.items() for word in ("--build-arg", f"{name}={value}")]
            command += ["--build-context", "model=src/ember/demo", "--secret", f"id=HF_TOKEN,src={token.name}"]
            with (self.work / "build.log").open("w") as log:
                done = subprocess.run(
                    [*command, *more, "-t", IMAGE, "."], stdout=log, stderr=log, cwd=ROOT, check=False
                )
        if done.returncode != 0:
            tail = (self.work / "build.log").read_text()[-3000:]
            raise Wrong(f"the build failed, see {self.work / 'build.log'}:\n{tail}")
        say(f"built in {time.monotonic() - start:.0f} s")

    @contextmanager
    def container(self) -> Iterator[str]:
        name = self.buildah("from", IMAGE)
        try:
            yield name
        finally:
            self.buildah("rm", name)

    # ------------------------------------------------------------------ what is in it

    def inspect(self) -> None:
        """Configuration, sizes, and what must not be there."""
        document = self.buildah("inspect", "--type", "image", IMAGE)
        if TOKEN in document:
            raise Wrong("the build secret stands in the image's configuration or history")
        config = json.loads(document)["Docker"]["config"]
        if not config.get("Healthcheck"):
            raise Wrong("the image has no health check")
        with self.container() as container:
            root = Path(self.buildah("mount", container))
            sizes = {name: size_of(root / "opt/ember" / name) for name in ("venv", "kernels", "models", "app")}
            total = size_of(root)
            say(
                ", ".join(f"{name} {size / 1e6:.0f} MB" for name, size in sizes.items()) + f"; all {total / 1e6:.0f} MB"
            )
            found = [
                name for name in COMPILERS for place in ("usr/bin", "usr/local/bin") if (root / place / name).exists()
            ]
            if found:
                raise Wrong(f"the image has build tools: {', '.join(found)}")
            if list((root / "opt").rglob("pip/__init__.py")):
                raise Wrong("pip was shipped")
            bare = [file for file in (root / "opt/ember/app").rglob("*.py") if not bytecode_of(file)]
            if bare:
                raise Wrong(f"{len(bare)} modules of Ember have no bytecode, such as {bare[0]}")
            if not list((root / "opt/ember/models").glob("models--*/snapshots/*/config.json")):
                raise Wrong("no model was baked in")
            grep = [
                "grep",
                "-rlF",
                "--binary-files=text",
                TOKEN,
                str(root / "opt"),
                str(root / "root"),
                str(root / "home"),
            ]
            if leaked := subprocess.run(grep, capture_output=True, text=True, check=False).stdout:
                raise Wrong(f"the build secret is in {leaked}")
            self.buildah("umount", container)
        say("no build tools, no pip, no token, bytecode for every module, a health check")

    # ------------------------------------------------------------------ what it does

    def run(self) -> None:
        with self.container() as container:
            self.serve(container, "without a volume", 1000)
        with self.container() as container, tempfile.TemporaryDirectory() as volume:
            os.chmod(volume, 0o755)
            self.serve(container, "with a volume that is root's", 0, "--volume", f"{volume}:/runpod-volume")

    def serve(self, container: str, what: str, user: int, *more: str) -> None:
        """Start the container's own command on a queue, have jobs answered, and end it as a platform does."""
        config = json.loads(self.buildah("inspect", "--type", "container", container))["Docker"]["config"]
        command = [*config["Entrypoint"], *config["Cmd"]]
        before = workers()
        with FakeQueue() as queue, tempfile.TemporaryFile("w+") as log:
            environment = {**queue.env(), "HF_ENDPOINT": "http://127.0.0.1:9"}  # there is no Hub
            flags = [word for name, value in environment.items() for word in ("--env", f"{name}={value}")]
            start = time.monotonic()
            process = subprocess.Popen(
                [*self.command, "run", "--isolation", "chroot", *flags, *more, container, "--", *command],
                stdout=log,
                stderr=log,
            )
            try:
                chat = queue.wait(queue.submit(QUESTION), 120)
                seconds = time.monotonic() - start
                text = chat.output[0]["choices"][0]["message"]["content"] if chat.status == "COMPLETED" else chat.error
                models = queue.wait(queue.submit({"openai_route": "/v1/models"}))
                stream = queue.wait(queue.submit({**QUESTION, "stream": True}))
                (worker,) = workers() - before
                owner = os.stat(f"/proc/{worker}").st_uid
                health = self.buildah(
                    "run", "--isolation", "chroot", container, "--", *config["Healthcheck"]["Test"][1:]
                )
                os.kill(worker, signal.SIGTERM)
                status = process.wait(60)
            except Exception:
                log.seek(0)
                print(log.read()[-4000:])
                raise
            finally:
                for pid in workers() - before:
                    os.kill(pid, signal.SIGKILL)
                if process.poll() is None:
                    process.kill()
        served = models.output[0]["data"][0]["id"]
        checks = {
            f"the answer is {text!r}": chat.status == "COMPLETED" and re.search(r"\b12\b", str(text)),
            f"the served model is {served}": served == MODEL,
            f"the stream ended {stream.status}": stream.status == "COMPLETED" and "[DONE]" in stream.text,
            f"the worker ran as user {owner}": owner == user,
            f"the health check said {health!r}": not health,
            f"the exit status was {status}": status == 0,
        }
        wrong = [line for line, holds in checks.items() if not holds]
        if wrong:
            raise Wrong(f"{what}: {'; '.join(wrong)}")
        say(f"{what}: {text!r} {seconds:.1f} s after the start; {'; '.join([*checks][1:])}")


def workers() -> set[int]:
    """The worker processes of containers on this machine; the SDK's ping process, a fork of its worker, is none."""
    found: dict[int, int] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if (entry / "cmdline").read_text().split("\0")[:2] == ["python", "/opt/ember/handler.py"]:
                found[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, IndexError):
            continue
    return {pid for pid, parent in found.items() if parent not in found}


def bytecode_of(file: Path) -> list[Path]:
    return list((file.parent / "__pycache__").glob(f"{file.stem}.*.pyc"))


def size_of(directory: Path) -> int:
    """Bytes of the files below it; links count nothing, as in a layer."""
    total = 0
    for entry in directory.rglob("*"):
        status: Any = entry.lstat()
        if not entry.is_dir() and not entry.is_symlink():
            total += status.st_size
    return total


if __name__ == "__main__":
    sys.exit(main())
