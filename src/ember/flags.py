"""The flags of the `ember` command: one for each setting, and those of each command.

This module is separate from `ember.cli`, which starts the engine process before it imports the settings.
"""

from __future__ import annotations

import argparse
from typing import Any, NoReturn

from ember import __version__
from ember.settings import Settings, variable_names

_FOREIGN_PREFIXES = ("VLLM_", "EMBER_", "OMP_", "HUGGING_FACE_", "OPENAI_")
_COMMANDS = ("serve", "worker", "platform", "batch", "inspect", "models", "quantize", "settings", "boot-report")


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
    batch = commands.add_parser("batch", help="run a file of requests", allow_abbrev=False)
    batch.add_argument("source", metavar="IN", help="the requests, JSON lines in OpenAI's form")
    batch.add_argument("output", metavar="OUT", help="the results; what it has already is not run again")
    batch.add_argument("--errors", metavar="FILE", help="the results of requests that failed, instead of OUT")
    batch.add_argument("--url", metavar="URL", help="a server of the OpenAI API that answers, instead of a model here")
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


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"it must be at least 1, not {value}")
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
