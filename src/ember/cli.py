"""The `ember` command: arguments come in, an exit code goes out. Flags are the settings, under their own names.

`ember serve [MODEL]`   the HTTP server
`ember worker`          the queue worker; the same as `python handler.py`
`ember settings`        the table of all settings, as Markdown
`ember boot-report`     the boot timeline that EMBER_BOOT_REPORT wrote, drawn as text or SVG

The engine's process is started before anything else is imported, so that both sides of the boot run side by side.
"""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any, NoReturn

from ember.front.spawn import prepare

if TYPE_CHECKING:
    from ember.settings import Settings

_FOREIGN_PREFIXES = ("VLLM_", "EMBER_", "OMP_", "HUGGING_FACE_", "OPENAI_")
_HELP_FLAGS = ("-h", "--help")
_COMMANDS = ("serve", "worker", "settings", "boot-report")


class _Parser(argparse.ArgumentParser):
    """Reports a bad flag in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\n")


def main(argv: list[str] | None = None) -> int:
    """Run a command. `argv` are the arguments after the program's name."""
    arguments = _with_dashes(sys.argv[1:] if argv is None else argv)
    engine_needed = arguments[:1] in (["serve"], ["worker"]) and not set(arguments) & {*_HELP_FLAGS, "--rp-serve-api"}
    if engine_needed:
        prepare()
    from ember.settings import SettingsError

    flags = _parser().parse_args(arguments)
    try:
        if flags.command == "serve":
            return _serve(flags)
        if flags.command == "worker":
            return _worker(flags)
        if flags.command == "boot-report":
            return _boot_report(flags)
        print(settings_table())
        return 0
    except SettingsError as error:
        return _fail(str(error))
    except KeyboardInterrupt:
        return 130


def _serve(flags: argparse.Namespace) -> int:
    settings = _load(flags)
    _require_model(settings)
    from ember.front.start import launch

    worker = launch(settings)
    from ember.front.http.server import serve

    return serve(settings, worker)


def _worker(flags: argparse.Namespace) -> int:
    if flags.rp_serve_api:
        return _fail("--rp_serve_api is the SDK's test server; use `ember serve` for an HTTP API", status=2)
    from ember.front.worker.sdk import on_queue

    if flags.test_input is None and on_queue():
        return _queue_worker(flags)
    return _local_job(flags)


def _queue_worker(flags: argparse.Namespace) -> int:
    from ember.front.worker import sdk
    from ember.settings import SettingsError

    try:
        settings = _load(flags)
        _require_model(settings)
    except SettingsError as error:
        sdk.report_unhealthy(str(error))
        raise
    from ember.front.start import launch

    level = ["--rp_log_level", flags.rp_log_level] if flags.rp_log_level else []
    return sdk.run(settings, launch(settings), level)


def _local_job(flags: argparse.Namespace) -> int:
    from ember.front.worker import local
    from ember.settings import SettingsError

    try:
        job = local.read_job(flags.test_input)
    except local.LocalJobError as error:
        raise SettingsError(str(error)) from None
    settings = _load(flags, default_model="demo")
    from ember.front.start import launch

    return local.run(settings, launch(settings), job)


def _boot_report(flags: argparse.Namespace) -> int:
    import json
    from pathlib import Path

    from ember.boot_report import as_svg, as_text

    try:
        report = json.loads(Path(flags.file).read_text())
        text, picture = as_text(report), as_svg(report)
        if flags.svg:
            Path(flags.svg).write_text(picture)
    except OSError as error:
        return _fail(f"{error.filename}: {error.strerror}")
    except (ValueError, KeyError, TypeError, AttributeError):
        return _fail(f"{flags.file} is not a boot report; EMBER_BOOT_REPORT=FILE makes the worker write one")
    print(text)
    return 0


def _load(flags: argparse.Namespace, default_model: str | None = None) -> Settings:
    """The settings, with the flags on top; logging is set up by them and useless variables are reported."""
    import logging

    from ember.settings import Settings, load_settings, warn_unused

    given = {name: value for name, value in vars(flags).items() if name in Settings.model_fields}
    overrides = {name: ",".join(value) if isinstance(value, list) else value for name, value in given.items()}
    settings = load_settings(overrides)
    if settings.model_name is None and default_model is not None:
        settings = load_settings({**overrides, "model_name": default_model})
    logging.basicConfig(
        level=settings.log_level.upper(),
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        stream=sys.stderr,
    )
    unused = warn_unused()
    if getattr(flags, "rp_debugger", False):
        unused.append("--rp_debugger has no effect: the SDK's debugger cannot describe streamed jobs")
    for line in unused:
        logging.getLogger(__name__).warning(line)
    return settings


def _require_model(settings: Settings) -> None:
    from ember.settings import SettingsError

    if settings.model_name is None:
        raise SettingsError("MODEL_NAME is not set: name the model to serve, or `demo` for the one in the package")


def _fail(message: str, status: int = 1) -> int:
    print(f"ember: error: {' '.join(message.split())}", file=sys.stderr)
    return status


def _parser() -> argparse.ArgumentParser:
    from ember import __version__

    parser = _Parser(prog="ember", description="A serverless worker for large language models.", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="{" + ",".join(_COMMANDS) + "}")
    serve = commands.add_parser("serve", help="serve the OpenAI API over HTTP", allow_abbrev=False)
    serve.add_argument("model_name", nargs="?", default=argparse.SUPPRESS, metavar="MODEL", help="same as --model-name")
    _add_settings(serve)
    worker = commands.add_parser("worker", help="take jobs from a queue, or run one", allow_abbrev=False)
    worker.add_argument("--test-input", "--test_input", metavar="JSON", help="run this job and print its result")
    levels = ("ERROR", "WARN", "INFO", "DEBUG", "TRACE", "NOTSET")
    worker.add_argument("--rp-log-level", type=str.upper, choices=levels, help="the SDK's log level")
    for name, count in (("serve-api", 0), ("debugger", 0), ("api-port", 1), ("api-host", 1), ("api-concurrency", 1)):
        kind: dict[str, Any] = {"metavar": "X"} if count else {"action": "store_true"}
        worker.add_argument(f"--rp-{name}", help=argparse.SUPPRESS, **kind)
    _add_settings(worker)
    report = commands.add_parser("boot-report", help="draw a boot timeline", allow_abbrev=False)
    report.add_argument("file", metavar="FILE", help="what EMBER_BOOT_REPORT wrote, or the answer of GET /boot")
    report.add_argument("--svg", metavar="OUT", help="write it as a picture too")
    commands.add_parser("settings", help="print the table of settings", allow_abbrev=False)
    return parser


def _add_settings(parser: argparse.ArgumentParser) -> None:
    """One flag for each setting and for each of its other names; values are checked by Settings."""
    from ember.settings import Settings

    group = parser.add_argument_group("settings", "each is an environment variable too; `ember settings` has the table")
    for name, field in Settings.model_fields.items():
        kind: dict[str, Any] = {"metavar": "VALUE"}
        if field.annotation is bool:
            kind = {"action": argparse.BooleanOptionalAction}
        elif field.default_factory is list:
            kind = {"metavar": "VALUE", "action": "extend", "nargs": "+"}
        help_text = (field.description or "").replace("%", "%%")
        group.add_argument(*flag_names(name), dest=name, default=argparse.SUPPRESS, help=help_text, **kind)


def flag_names(field: str) -> list[str]:
    """`--max-model-len` and the like: the field's name, and those of its variables that are no other program's."""
    from ember.settings import variable_names

    names = [field, *(name for name in variable_names(field) if not name.startswith(_FOREIGN_PREFIXES))]
    return list(dict.fromkeys("--" + name.lower().replace("_", "-") for name in names))


def _with_dashes(arguments: list[str]) -> list[str]:
    """`--max_model_len=5` is `--max-model-len=5`, as it is elsewhere."""
    result = []
    for argument in arguments:
        flag, equals, value = argument.partition("=")
        result.append(flag.replace("_", "-") + equals + value if flag.startswith("--") else argument)
    return result


def settings_table() -> str:
    """All settings as a Markdown table, in the order of settings.py."""
    from ember.settings import Settings, variable_names

    lines = ["| Variable | Also read | Flag | Default | Meaning |", "|---|---|---|---|---|"]
    for field, info in Settings.model_fields.items():
        name, *rest = variable_names(field)
        others = ", ".join(f"`{other}`" for other in rest)
        default = info.get_default(call_default_factory=True)
        shown = (
            "" if default in (None, [], {}) else f"`{str(default).lower() if default in (True, False) else default}`"
        )
        meaning = (info.description or "").replace("|", "\\|")
        lines.append(f"| `{name}` | {others} | `{flag_names(field)[0]}` | {shown} | {meaning} |")
    return "\n".join(lines)
