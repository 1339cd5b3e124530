"""Attacks by a model's files: each boot ends in one line and a non-zero status, or serves."""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import struct
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ember.demo
from tests.attack.report import Report, time_left
from tests.attack.server import BOOT_SECONDS, SECRETS, Server
from tests.support.processes import Process

DEMO = Path(ember.demo.__file__).parent


def _config(rng: random.Random, model: Path) -> str:
    """One field of config.json gets a value of another kind."""
    config = json.loads((model / "config.json").read_text())
    name = rng.choice([*config, "rope_theta", "rope_scaling", "rope_parameters", "layer_types", "quantization_config"])
    value: Any = rng.choice(
        [None, -1, 0, 10**9, 10**400, 1.5, float("nan"), "x", [], {}, [[]], True, {"a": [1]}, "\ud800"]
    )
    config[name] = value
    (model / "config.json").write_text(json.dumps(config))
    return f"config.json: {name} = {str(value)[:40]}"


def _damage(rng: random.Random, model: Path) -> str:
    """Bytes of one file are changed, cut off, or put in."""
    path = rng.choice([entry for entry in sorted(model.iterdir()) if entry.is_file()])
    data = bytearray(path.read_bytes())
    for _ in range(rng.randint(1, 20)):
        place = rng.randrange(min(len(data), 4000))
        data[place] = rng.randrange(256)
    if rng.random() < 0.3:
        del data[rng.randrange(len(data)) :]
    path.write_bytes(bytes(data))
    return f"damaged {path.name}"


def _deep(rng: random.Random, model: Path) -> str:
    name = rng.choice(["config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"])
    (model / name).write_text(rng.choice(["[" * 100_000, '{"a":' * 50_000 + "1" + "}" * 50_000, "9" * 10_000, ""]))
    return f"deep or empty {name}"


def _special(rng: random.Random, model: Path) -> str:
    """A file that is no regular one."""
    name = rng.choice(["config.json", "tokenizer.json", "model.safetensors", "tokenizer_config.json"])
    (model / name).unlink(missing_ok=True)
    kind = rng.choice(["fifo", "device", "directory", "dangling"])
    if kind == "fifo":
        os.mkfifo(model / name)
    elif kind == "directory":
        (model / name).mkdir()
    else:
        (model / name).symlink_to("/dev/zero" if kind == "device" else "/nowhere")
    return f"{name} is a {kind}"


def _header(rng: random.Random, model: Path) -> str:
    """The header of the weights is changed: lengths, offsets, shapes, types, names."""
    path = model / "model.safetensors"
    data = path.read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + size])
    name = rng.choice([key for key in header if key != "__metadata__"])
    entry = header[name]
    change = rng.choice(["shape", "offsets", "dtype", "length", "missing", "extra"])
    if change == "shape":
        entry["shape"] = rng.choice([[10**12], [-1], [], ["x"], None, [1.5]])
    elif change == "offsets":
        entry["data_offsets"] = rng.choice([[0, 10**15], [8, 0], [0, 8], None, [-8, 8], ["0", "8"]])
    elif change == "dtype":
        entry["dtype"] = rng.choice(["F128", None, "I64", 5, "BOOL"])
    elif change == "missing":
        del header[name]
    elif change == "extra":
        header["another.weight"] = entry
    text = json.dumps(header).encode()
    length = rng.choice([0, 2**63, len(text) * 2]) if change == "length" else len(text)
    path.write_bytes(struct.pack("<Q", length) + text + data[8 + size :])
    return f"header: {change} of {name}"


CHANGES: tuple[Callable[[random.Random, Path], str], ...] = (_config, _config, _damage, _deep, _special, _header)


def _copy(directory: Path) -> Path:
    model = directory / "model"
    model.mkdir()
    for entry in DEMO.iterdir():
        if entry.is_file() and entry.suffix != ".py":
            shutil.copyfile(entry, model / entry.name)
    return model


def _boot(rng: random.Random, report: Report) -> None:
    with tempfile.TemporaryDirectory() as directory:
        model = _copy(Path(directory))
        what = rng.choice(CHANGES)(rng, model)
        job = json.dumps({"input": {"prompt": "Hello", "sampling_params": {"max_tokens": 2}}})
        env = {"MODEL_NAME": str(model), "HF_TOKEN": SECRETS[1]}
        with Process("handler.py", "--test_input", job, env=env) as worker:
            try:
                code = worker.wait(BOOT_SECONDS)
            except Exception as error:
                report.wrong.append(f"{what}: {error}")
                return
            log = worker.log()
        report.count("served" if code == 0 else "refused")
        if code not in (0, 1, 2) or "Traceback" in log or "panicked" in log or any(secret in log for secret in SECRETS):
            report.wrong.append(f"{what}: exit status {code}: {log[-1500:]}")


async def files(server: Server, rng: random.Random, seconds: float) -> Report:
    """Boots with one hostile model directory after another; the server beside them is left alone."""
    report = Report()
    began = time.monotonic()
    while time_left(began, seconds) or not report.attempts:
        await asyncio.to_thread(_boot, rng, report)
    return report
