"""Boot from process start to first token: the worker is started N times. Prints the median and range of each phase.

    python benchmarks/boot.py [--model demo|qwen3-0.6b|DIRECTORY|FILE.gguf] [--runs 5] [--cold] [--skip-transformers]
                              [--llama-python PYTHON] [--plain-tokenizer]

These are measured alternately in the same run: a process that only imports torch; the worker with all of torch
(EMBER_LEAN_TORCH=false), and with its boot steps one after the other (serial_boot/); transformers from process start to
its first token on the same model; llama.cpp's Python package and its server on the same weights in bf16, with the same
prompt and threads, and Ember's server, if `--llama-python` names a Python that has `llama-cpp-python[server]`, gguf and
numpy; and the rates at which `dd` and our reader read the weights. A random checkpoint's tokenizer is in its prepared
form (docs/boot.md), as the image's build leaves it, unless `--plain-tokenizer` is given. The page cache is warm: every
file is read once before the first run. A GGUF file is run as it is, by Ember and by llama.cpp, without transformers and
the rates of reading. With `--cold` the page cache is dropped before every process, which needs root.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)  # not this directory: its queue.py is not the library's

from benchmarks.shapes import SHAPES, make_checkpoint  # noqa: E402
from ember.front.text import prepared_tokenizer  # noqa: E402

JOB = {"input": {"messages": [{"role": "user", "content": "What is the capital of France?"}]}}
TRANSFORMERS = """
import sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.bfloat16)
inputs = tokenizer.apply_chat_template(
    [{"role": "user", "content": "What is the capital of France?"}],
    add_generation_prompt=True, return_tensors="pt", return_dict=True)
model.generate(**inputs, max_new_tokens=1, do_sample=False)
"""

PROMPT = (
    "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"  # as shapes.py renders it
)
THREADS = len(os.sched_getaffinity(0))
LLAMA = """
import sys
from llama_cpp import Llama
threads = int(sys.argv[3])
model = Llama(sys.argv[1], n_ctx=2048, n_threads=threads, n_threads_batch=threads, verbose=False)
print(model(sys.argv[2], max_tokens=1, temperature=0)["usage"]["prompt_tokens"])
"""
LLAMA_SERVER = ("--n_ctx", "2048", "--n_threads", str(THREADS), "--n_threads_batch", str(THREADS), "--verbose", "false")
SERVER_SECONDS = 120.0
TO_GGUF = """
import sys
from pathlib import Path
sys.path.insert(0, "benchmarks/peer_runs")
from run_llama_cpp import to_gguf
print(to_gguf(Path(sys.argv[1])))
"""

READER = """
import sys, time
from pathlib import Path
from ember.engine.loading import mapped
from ember.engine.loading.plan import make_plan, read_headers
from ember.engine.loading.reader import WeightRead
from ember.engine.description.read_config import load_config
mapped._is_cached = lambda descriptor, chunk: False
path = Path(sys.argv[1])
config = load_config(path)
plan = make_plan(config, read_headers(path), config.dtype)
places = mapped.Mapped(plan)
reading = WeightRead(plan, lambda: mapped.Warming(places))
reading.wait()
print(reading.nbytes / reading.seconds / 1e9)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="demo", help=f"demo, {', '.join(SHAPES)}, a directory or a GGUF file")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--cold", action="store_true", help="drop the page cache before every process")
    parser.add_argument("--skip-transformers", action="store_true")
    parser.add_argument("--llama-python", metavar="PYTHON")
    parser.add_argument("--plain-tokenizer", action="store_true", help="leave the tokenizer in tokenizer.json alone")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        cache = Path(os.environ.get("EMBER_BENCH_DIR", scratch))
        directory = str(make_checkpoint(options.model, cache)) if options.model in SHAPES else options.model
        files = directory if options.model != "demo" else str(ROOT / "src/ember/demo")
        is_gguf = Path(files).is_file()
        subprocess.run([sys.executable, "-m", "compileall", "-q", "src", "kernels", "handler.py"], cwd=ROOT, check=True)
        if options.model in SHAPES:
            prepare_tokenizer(Path(files), options.plain_tokenizer)
        read_all(Path(files))
        boots: list[dict[str, Any]] = []
        whole: list[dict[str, Any]] = []
        serial: list[dict[str, Any]] = []
        imports: list[float] = []
        peers: list[float] = []
        llamas: list[float] = []
        servers: dict[str, list[float]] = {"Ember's server": [], "llama.cpp's server": []}
        gguf = _gguf(options.llama_python, files, Path(scratch)) if options.llama_python else ""
        rates: dict[str, list[float]] = {"dd": [], "our reader": []}
        cool = _drop_page_cache if options.cold else lambda: None
        report = Path(scratch) / "report.json"
        for _ in range(options.runs):
            cool()
            imports.append(_timed([sys.executable, "-c", "import torch"]))
            cool()
            boots.append(_boot(directory, report))
            cool()
            whole.append(_boot(directory, report, {"EMBER_LEAN_TORCH": "false"}))
            cool()
            serial.append(_boot(directory, report, {"PYTHONPATH": str(ROOT / "benchmarks/serial_boot")}))
            if not is_gguf:
                cool()
                rates["dd"].append(_dd_rate(Path(files)))
                cool()
                read = [sys.executable, "-c", READER, files]
                rates["our reader"].append(float(subprocess.run(read, check=True, capture_output=True).stdout))
            if not options.skip_transformers and not is_gguf:
                cool()
                peers.append(_timed([sys.executable, "-c", TRANSFORMERS, files]))
            if gguf:
                cool()
                llamas.append(_timed([options.llama_python, "-c", LLAMA, gguf, PROMPT, str(THREADS)]))
                cool()
                serve = [options.llama_python, "-m", "llama_cpp.server", "--model", gguf, *LLAMA_SERVER]
                servers["llama.cpp's server"].append(served(serve))
                cool()
                serve = [sys.executable, "-m", "ember", "serve", directory, "--max-model-len", "2048"]
                servers["Ember's server"].append(served(serve))
    _print(options.model, boots, imports)
    _print_torch(boots, whole, imports)
    _print_others(boots, serial, {"transformers": peers, "llama.cpp's Python package": llamas}, rates)
    for name, seconds in servers.items():
        if seconds:
            ratio = statistics.median(seconds) / statistics.median(imports)
            print(f"{name}, process start to the answer of one token: {_spread(seconds)}, {ratio:.2f}x `import torch`")


def _gguf(python: str, files: str, scratch: Path) -> str:
    """The model as a GGUF file, in bf16 if it is no such file. Returns its path."""
    if Path(files).is_file():
        return files
    copy = scratch / "gguf"
    copy.mkdir()
    for path in Path(files).resolve().iterdir():
        if path.is_file():
            (copy / path.name).symlink_to(path)
    done = subprocess.run([python, "-c", TO_GGUF, copy], cwd=ROOT, check=True, capture_output=True, text=True)
    made = done.stdout.strip()
    Path(made).read_bytes()
    return made


def prepare_tokenizer(directory: Path, is_plain: bool) -> None:
    prepared = directory / prepared_tokenizer.BESIDE
    if is_plain:
        prepared.unlink(missing_ok=True)
    else:
        prepared_tokenizer.prepare(directory / "tokenizer.json", prepared)


def served(command: list[str], variables: dict[str, str] | None = None) -> float:
    """Seconds from the start of a server's process until it has completed the prompt with one token."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    body = json.dumps({"prompt": PROMPT, "max_tokens": 1, "temperature": 0}).encode()
    url, form = f"http://127.0.0.1:{port}/v1/completions", {"Content-Type": "application/json"}
    start = time.perf_counter()
    command = [*command, "--host", "127.0.0.1", "--port", str(port)]
    silent: Any = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    server = subprocess.Popen(command, cwd=ROOT, env=os.environ | (variables or {}), **silent)
    try:
        while time.perf_counter() < start + SERVER_SECONDS and server.poll() is None:
            try:
                with urllib.request.urlopen(urllib.request.Request(url, body, form), timeout=SERVER_SECONDS) as answer:
                    answer.read()
                return time.perf_counter() - start
            except OSError:  # it does not listen yet, or says that it is not ready
                time.sleep(0.005)
        raise SystemExit(f"no answer from {' '.join(command)}")
    finally:
        server.terminate()
        server.wait()


def _drop_page_cache() -> None:
    os.sync()
    try:
        Path("/proc/sys/vm/drop_caches").write_text("3")
    except OSError as error:
        raise SystemExit(f"--cold: the page cache cannot be dropped here: {error}") from None


def _dd_rate(directory: Path) -> float:
    """GB/s at which `dd` reads the weight files one after the other."""
    files = sorted(directory.glob("*.safetensors"))
    seconds = sum(_timed(["dd", f"if={file}", "of=/dev/null", "bs=16M"]) for file in files)
    return sum(file.stat().st_size for file in files) / seconds / 1e9


def _boot(model: str, report: Path, variables: dict[str, str] | None = None) -> dict[str, Any]:
    """Run one job in a fresh worker. Returns its boot report."""
    report.unlink(missing_ok=True)
    environment = {
        **os.environ,
        **(variables or {}),
        "MODEL_NAME": model,
        "EMBER_BOOT_REPORT": str(report),
        "MAX_MODEL_LEN": "2048",
    }
    job = json.dumps({"input": {**JOB["input"], "sampling_params": {"max_tokens": 1}}})
    command = [sys.executable, "handler.py", "--test_input", job]
    start = time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - start
    if done.returncode:
        raise SystemExit(f"the worker failed:\n{done.stderr}\n{done.stdout}")
    content: dict[str, Any] = json.loads(report.read_text())
    content["marks"]["end of the process"] = seconds
    return content


def _timed(command: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - start


def read_all(model: Path) -> None:
    for path in model.iterdir() if model.is_dir() else [model]:
        if path.is_file():
            path.read_bytes()


def _print(model: str, boots: list[dict[str, Any]], imports: list[float]) -> None:
    print(f"\nBoot of {model}, median (fastest - slowest) of {len(boots)} runs, seconds from process start\n")
    print("| phase | process | start | end | duration |")
    print("|---|---|---|---|---|")
    for phase in boots[0]["phases"]:
        key = (phase["process"], phase["name"])
        found = [p for boot in boots for p in boot["phases"] if (p["process"], p["name"]) == key]
        duration = statistics.median(p["end"] - p["start"] for p in found)
        start, end = (statistics.median(p[name] for p in found) for name in ("start", "end"))
        print(f"| {phase['name']} | {phase['process']} | {start:.3f} | {end:.3f} | {duration:.3f} |")
    torch_alone = statistics.median(imports)
    for name in ("ready", "first_token", "end of the process"):
        values = [boot["marks"][name] for boot in boots]
        median = statistics.median(values)
        ratio = f"{median / torch_alone:.2f}x `import torch`"
        print(f"| **{name}** | | | {median:.3f} ({min(values):.3f} - {max(values):.3f}) | {ratio} |")
    print(f"\n`python -c 'import torch'` alone: {_spread(imports)}")


def _print_torch(boots: list[dict[str, Any]], whole: list[dict[str, Any]], imports: list[float]) -> None:
    """The engine's import of torch (libraries and modules), lean and not, beside a process that only imports it."""
    alone = statistics.median(imports)
    for label, runs in (("the engine's import of torch", boots), ("the same with EMBER_LEAN_TORCH=false", whole)):
        seconds = [_duration(boot, "load_libraries") + _duration(boot, "import_torch") for boot in runs]
        tokens = [boot["marks"]["first_token"] for boot in runs]
        print(f"{label}: {_spread(seconds)}, {statistics.median(seconds) / alone:.2f}x; first token {_spread(tokens)}")


def _duration(boot: dict[str, Any], phase: str) -> float:
    return float(sum(each["end"] - each["start"] for each in boot["phases"] if each["name"] == phase))


def _print_others(
    boots: list[dict[str, Any]],
    serial: list[dict[str, Any]],
    peers: dict[str, list[float]],
    rates: dict[str, list[float]],
) -> None:
    ours = statistics.median(boot["marks"]["first_token"] for boot in boots)
    steps = [boot["marks"]["first_token"] for boot in serial]
    ratio = statistics.median(steps) / ours
    print(f"the same steps one after the other, to the first token: {_spread(steps)}, {ratio:.2f}x Ember's")
    end = statistics.median(boot["marks"]["end of the process"] for boot in boots)
    for name, seconds in peers.items():
        if seconds:
            median = statistics.median(seconds)
            print(
                f"{name}, process start to the end after one token: {_spread(seconds)}, {median / end:.2f}x Ember's end"
            )
    for name, found in rates.items():
        if found:
            print(f"{name}: {statistics.median(found):.2f} GB/s ({min(found):.2f} - {max(found):.2f})")


def _spread(seconds: list[float]) -> str:
    return f"{statistics.median(seconds):.3f} s ({min(seconds):.3f} - {max(seconds):.3f})"


if __name__ == "__main__":
    main()
