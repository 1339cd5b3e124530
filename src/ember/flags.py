"""The flags of the `ember` command: one for each setting, and those of each command.

This module is separate from `ember.cli`, which starts the engine process before it imports the settings.
"""

from __future__ import annotations

import argparse
import json
import math
from typing import Any, NoReturn
from urllib.parse import urlsplit

from ember import __version__
from ember.settings import Settings, variable_names

_FOREIGN_PREFIXES = ("VLLM_", "EMBER_", "OMP_", "HUGGING_FACE_", "OPENAI_")
_COMMANDS = (
    *("serve", "worker", "platform", "chat", "bench", "batch", "inspect", "models", "quantize", "settings"),
    "boot-report",
)


QUANTIZE_FORMATS = (  # of `ember quantize`
    *("gptq", "gptq-8bit", "awq", "w4a16", "w8a16", "w8a8"),
    *("fp8", "fp8-block", "nvfp4", "mxfp4", "nf4"),
    *("gguf-f32", "gguf-f16", "gguf-bf16", "gguf-q8_0", "gguf-q5_1", "gguf-q5_0", "gguf-q4_1", "gguf-q4_0"),
)


class _Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\n")


def make_parser() -> argparse.ArgumentParser:
    """The parser of all commands. It imports the settings, so it must be called after the engine process started."""
    parser = _Parser(prog="ember", description="A serverless worker for large language models.", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="{" + ",".join(_COMMANDS) + "}")
    serve = commands.add_parser("serve", help="serve the OpenAI API over HTTP", allow_abbrev=False)
    serve.add_argument("positional_model", nargs="?", default=None, metavar="MODEL", help="same as --model-name")
    _add_settings(serve)
    worker = commands.add_parser("worker", help="take jobs from a queue, or run one", allow_abbrev=False)
    worker.add_argument("--test-input", "--test_input", metavar="JSON", help="run this job and print its result")
    levels = ("ERROR", "WARN", "INFO", "DEBUG", "TRACE", "NOTSET")
    worker.add_argument("--rp-log-level", type=str.upper, choices=levels, help="the SDK's log level")
    for name, count in (("serve-api", 0), ("debugger", 0), ("api-port", 1), ("api-host", 1), ("api-concurrency", 1)):
        kind: dict[str, Any] = {"metavar": "X"} if count else {"action": "store_true"}
        if name in ("api-port", "api-concurrency"):
            kind["type"] = int
        worker.add_argument(f"--rp-{name}", help=argparse.SUPPRESS, **kind)
    _add_settings(worker)
    worker.add_argument("--platform", metavar="URL", help="take jobs from the `ember platform` that listens there")
    platform = commands.add_parser("platform", help="play the serverless platform on this machine", allow_abbrev=False)
    platform.add_argument("positional_model", nargs="?", metavar="MODEL", help="run a worker with it in this process")
    platform.add_argument("--env", metavar="URL", help="print the variables of a worker for the platform at URL")
    _add_settings(platform)
    _add_chat(commands.add_parser("chat", help="talk to a model in the terminal", allow_abbrev=False))
    _add_bench(commands.add_parser("bench", help="measure a server of the OpenAI API", allow_abbrev=False))
    batch = commands.add_parser("batch", help="run a file of requests", allow_abbrev=False)
    batch.add_argument("source", metavar="IN", help="the requests, JSON lines in OpenAI's form")
    batch.add_argument("output", metavar="OUT", help="the results; what it has already is not run again")
    batch.add_argument("--errors", metavar="FILE", help="the results of requests that failed, instead of OUT")
    batch.add_argument(
        "--url", type=_url, metavar="URL", help="a server of the OpenAI API that answers, instead of a model here"
    )
    batch.add_argument("--concurrency", type=_count, metavar="N", help="requests under way at a time")
    _add_settings(batch)
    inspect = commands.add_parser(
        "inspect", help="say what a boot of a model would choose and need", allow_abbrev=False
    )
    inspect.add_argument("positional_model", nargs="?", default=None, metavar="MODEL", help="same as --model-name")
    inspect.add_argument("--json", action="store_true", help="print JSON")
    _add_settings(inspect)
    commands.add_parser("models", help="print the page of the models that are served", allow_abbrev=False)
    quantize = commands.add_parser("quantize", help="round a model's weights to a quantized format", allow_abbrev=False)
    quantize.add_argument("source", metavar="SOURCE", help="a directory, a Hugging Face id, or `demo`")
    quantize.add_argument("target", metavar="TARGET", help="a directory, which is made")
    quantize.add_argument("--format", required=True, choices=QUANTIZE_FORMATS, help="what to write")
    quantize.add_argument("--group-size", type=int, default=None, help="inputs that share a scale; 128")
    report = commands.add_parser("boot-report", help="draw a boot timeline", allow_abbrev=False)
    report.add_argument("file", metavar="FILE", help="what EMBER_BOOT_REPORT wrote, or a server's URL")
    report.add_argument("--svg", metavar="OUT", help="write it as a picture too")
    settings = commands.add_parser("settings", help="print the table of settings", allow_abbrev=False)
    settings.add_argument("--hub", action="store_true", help="print them as the RunPod Hub's hub.json instead")
    return parser


def _add_chat(chat: argparse.ArgumentParser) -> None:
    chat.add_argument("positional_model", nargs="?", metavar="MODEL", help="same as --model-name")
    chat.add_argument("--url", type=_url, metavar="URL", help="a server of the OpenAI API, instead of a model here")
    chat.add_argument("--system", metavar="TEXT", help="the system prompt")
    chat.add_argument("--body", type=_object, default={}, metavar="JSON", help="fields of each request")
    _add_settings(chat)


def _add_bench(bench: argparse.ArgumentParser) -> None:
    bench.add_argument("positional_model", nargs="?", metavar="MODEL", help="same as --model-name")
    bench.add_argument("--url", type=_url, metavar="URL", help="a server of the OpenAI API, instead of a model here")
    bench.add_argument("--endpoint", choices=("chat", "completions"), default="chat", help="which route to ask")
    bench.add_argument("--num-prompts", type=_count, default=200, metavar="N", help="requests of the test")
    bench.add_argument("--rate", type=_positive, metavar="R", help="requests a second; without it all come at once")
    bench.add_argument(
        "--burstiness", type=_positive, default=1.0, metavar="B", help="of the times between requests: 1 is Poisson's"
    )
    bench.add_argument("--concurrency", type=_count, metavar="N", help="requests under way at a time, at most")
    bench.add_argument("--input-tokens", type=_count, default=128, metavar="N", help="tokens of a prompt, on average")
    bench.add_argument("--output-tokens", type=_count, default=128, metavar="N", help="tokens of an answer, on average")
    bench.add_argument("--spread", type=_share, default=0.0, metavar="S", help="of random lengths: 0.5 is 50 to 150 %%")
    bench.add_argument("--lengths", choices=("random", "sharegpt"), default="random", help="how lengths are spread")
    bench.add_argument("--dataset", metavar="FILE", help="prompts: ShareGPT's JSON, or JSON lines with messages")
    bench.add_argument(
        "--ignore-eos",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="ask for answers of exactly the wanted length, which OpenAI's own servers do not know",
    )
    bench.add_argument("--warm-up", type=_count_or_none, default=4, metavar="N", help="requests before the test")
    bench.add_argument("--goodput", type=_goals, default={}, metavar="GOALS", help="such as ttft:300,tpot:50 (ms)")
    bench.add_argument("--percentiles", type=_percentiles, default="50,90,95,99", metavar="LIST", help="to print")
    bench.add_argument("--extra-body", type=_object, default={}, metavar="JSON", help="fields of each request")
    bench.add_argument("--json", dest="json_file", metavar="FILE", help="write all figures and each request")
    bench.add_argument("--svg", metavar="FILE", help="write a picture of the latencies")
    bench.add_argument(
        "--startup",
        action="append",
        nargs="?",
        const="",
        metavar="COMMAND",
        help="time starts instead, of MODEL or of a command with {port} in it; several take turns",
    )
    bench.add_argument("--runs", type=_count, default=5, metavar="N", help="starts of each command")
    bench.add_argument("--timeout", type=_positive, default=600.0, metavar="SECONDS", help="the longest start")
    _add_settings(bench)


def _object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"it is no JSON: {error}") from None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError("it must be a JSON object")
    return value


def _positive(text: str) -> float:
    value = _number(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"it must be above 0, not {text}")
    return value


def _share(text: str) -> float:
    value = _number(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"it must be between 0 and 1, not {text}")
    return value


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no number") from None


def _goals(text: str) -> dict[str, float]:
    goals = {}
    for part in text.split(","):
        name, _, value = part.strip().partition(":")
        if name not in ("ttft", "tpot", "e2e"):
            raise argparse.ArgumentTypeError(f"{part.strip()!r} is no goal: write ttft:MS, tpot:MS or e2e:MS")
        goals[name] = _positive(value)
    return goals


def _percentiles(text: str) -> list[float]:
    values = [_number(part) for part in text.split(",")]
    if not all(0 <= value <= 100 for value in values):
        raise argparse.ArgumentTypeError(f"percentiles are between 0 and 100, not {text}")
    return values


def _url(text: str) -> str:
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise argparse.ArgumentTypeError(f"it must begin with http:// or https:// and a host, not {text!r}")
    return text


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"it must be a whole number, not {text!r}") from None


def _count(text: str) -> int:
    value = _whole(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"it must be at least 1, not {value}")
    return value


def _count_or_none(text: str) -> int:
    value = _whole(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"it must be at least 0, not {value}")
    return value


def _add_settings(parser: argparse.ArgumentParser) -> None:
    """Add one flag for each setting and for each of its aliases. `Settings` validates their values."""
    group = parser.add_argument_group("settings", "each is an environment variable too; `ember settings` has the table")
    for name, field in Settings.model_fields.items():
        kind: dict[str, Any] = {"metavar": "VALUE"}
        if field.annotation is bool:
            kind = {"action": argparse.BooleanOptionalAction}
        elif field.default_factory is list:
            kind = {"metavar": "VALUE", "action": "append"}  # with nargs="+" a flag would consume MODEL too
        help_text = (field.description or "").replace("%", "%%")
        group.add_argument(*flag_names(name), dest=name, default=argparse.SUPPRESS, help=help_text, **kind)


def flag_names(field: str) -> list[str]:
    """The flags of a setting, such as `--max-model-len`: from its field and its unprefixed variables."""
    names = [field, *(name for name in variable_names(field) if not name.startswith(_FOREIGN_PREFIXES))]
    return list(dict.fromkeys("--" + name.lower().replace("_", "-") for name in names))


def with_dashes(arguments: list[str]) -> list[str]:
    """Replace underscores in flags by dashes: `--max_model_len=5` is `--max-model-len=5`."""
    result = []
    for argument in arguments:
        flag, equals, value = argument.partition("=")
        result.append(flag.replace("_", "-") + equals + value if flag.startswith("--") else argument)
    return result
