"""The `ember` command. Every setting is a flag under its own name.

`ember serve [MODEL]`   the HTTP server
`ember worker`          the queue worker; the same as `python handler.py`
`ember platform [MODEL]` the serverless platform on this machine, with a worker of its own if a model is named
`ember chat [MODEL]`    a conversation in the terminal, with a model here or of a server
`ember bench [MODEL]`   a load test of a model here or of a server, or the time that servers take to start
`ember batch IN OUT`    a file of requests, with a model in this process or against a server
`ember inspect MODEL`   what a boot of the model would choose, need and ignore, here and on common GPUs
`ember models`          the models that are served, as Markdown
`ember quantize SOURCE TARGET --format FORMAT`   a checkpoint with rounded weights
`ember settings`        the table of all settings, as Markdown, or with --hub as the RunPod Hub's listing
`ember boot-report`     a boot timeline (from a file of EMBER_BOOT_REPORT, or a server's URL), drawn as text or SVG

`serve` and `worker` start the engine process before they import anything else, so that both processes boot in parallel.
"""

from __future__ import annotations

import gc
import os
import sys
from typing import TYPE_CHECKING

from ember.front.link.spawn import prepare
from ember.front.worker.signals import leave_on_signals

if TYPE_CHECKING:
    import argparse

    from ember.settings import Settings

_NO_ENGINE = frozenset({"-h", "--help"})


def main(argv: list[str] | None = None) -> int:
    """Run a command and return its exit status. `argv`: the arguments after the program's name."""
    arguments = sys.argv[1:] if argv is None else argv
    if arguments[:1] in (["serve"], ["worker"]) and _NO_ENGINE.isdisjoint(arguments):
        prepare()
        gc.disable()  # imports allocate many objects and free few; front/start.py enables it again
        leave_on_signals(0 if os.environ.get("RUNPOD_WEBHOOK_GET_JOB") else None)  # the engine ends with the front
    if arguments[:1] == ["batch"]:
        # until the requests run
        leave_on_signals(130, lambda: print("interrupted: run the same command again", file=sys.stderr))
    # pydantic reads the metadata of every installed package, 10 ms, in search of plugins for itself.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "true")
    from ember.flags import make_parser, with_dashes
    from ember.settings import SettingsError

    flags = make_parser().parse_args(with_dashes(arguments))
    commands = {
        "serve": _serve,
        "worker": _worker,
        "platform": _platform,
        "chat": _chat,
        "bench": _bench,
        "batch": _batch,
        "inspect": _inspect,
        "models": _models,
        "quantize": _quantize,
        "settings": _settings,
        "boot-report": _boot_report,
    }
    try:
        return commands[flags.command](flags)
    except SettingsError as error:
        return _fail(str(error))
    except BrokenPipeError:  # who reads the output has seen enough, such as `head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return 130


def _serve(flags: argparse.Namespace) -> int:
    if not _take_positional_model(flags):
        return 2
    settings = _load(flags)
    _require_model(settings)
    from ember.front.start import launch

    worker = launch(settings)
    from ember.front.http.server import serve

    return serve(settings, worker)


def _worker(flags: argparse.Namespace) -> int:
    if flags.rp_serve_api:
        return _platform_and_worker(
            flags, flags.rp_api_host or "127.0.0.1", 8000 if flags.rp_api_port is None else flags.rp_api_port
        )
    from ember.front.worker.sdk import on_queue

    if flags.platform is not None:
        from ember.platform.server import new_worker_id, worker_environment

        os.environ.update(worker_environment(flags.platform, new_worker_id(), os.environ.get("RUNPOD_AI_API_KEY")))
    if flags.test_input is None and on_queue():
        return _queue_worker(flags)
    if flags.test_input is None and os.environ.get("PORT") and os.environ.get("RUNPOD_ENDPOINT_ID"):
        flags.positional_model = None  # a load balancer's worker: no queue, but a port to listen on
        return _serve(flags)
    return _local_job(flags)


def _platform(flags: argparse.Namespace) -> int:
    if not _take_positional_model(flags):
        return 2
    if flags.env is not None:
        from ember.platform.server import new_worker_id, worker_environment

        for name, value in worker_environment(flags.env, new_worker_id()).items():
            print(f"export {name}='{value}'")
        return 0
    if flags.positional_model is not None:
        prepare()
        gc.disable()  # imports allocate many objects and free few; front/start.py enables it again
        leave_on_signals(None)
        return _platform_and_worker(flags)
    settings = _load(flags)
    from ember.platform.server import serve
    from ember.platform.store import StoreError, open_store

    host = settings.host if "host" in settings.model_fields_set else "127.0.0.1"
    try:
        store = open_store(settings.platform_store)
    except StoreError as error:
        return _fail(str(error))
    keys = [key.get_secret_value() for key in settings.api_key]
    return serve(store, host, settings.port, keys, page=settings.page)


def _platform_and_worker(flags: argparse.Namespace, host: str | None = None, port: int | None = None) -> int:
    """Run the platform in a thread and a worker that takes its jobs in the main thread. Returns the exit status."""
    import logging

    from ember.platform.server import PlatformThread, new_worker_id, worker_environment
    from ember.platform.store import StoreError, open_store

    settings = _load(flags, default_model="demo")
    if host is None:
        host = settings.host if "host" in settings.model_fields_set else "127.0.0.1"
    port = settings.port if port is None else port
    keys = [key.get_secret_value() for key in settings.api_key]
    try:
        platform = PlatformThread(open_store(settings.platform_store), host, port, keys, page=settings.page)
        platform.start()
    except StoreError as error:
        return _fail(str(error))
    except OSError as error:
        return _fail(f"cannot listen on {host}:{port}: {error.strerror or error}")
    logging.getLogger(__name__).info("the platform is listening on %s", platform.url)
    os.environ.update(worker_environment(platform.url, new_worker_id(), keys[0] if keys else None))
    try:
        return _run_queue_worker(flags, settings)
    finally:
        platform.stop()


def _take_positional_model(flags: argparse.Namespace) -> bool:
    """Treat MODEL as --model-name. Returns False, after an error message, if both are given and differ."""
    if flags.positional_model is not None:
        if vars(flags).get("model_name", flags.positional_model) != flags.positional_model:
            _fail(f"two models are named: {flags.positional_model} and --model-name {flags.model_name}")
            return False
        flags.model_name = flags.positional_model
    return True


def _queue_worker(flags: argparse.Namespace) -> int:
    from ember.front.worker.health import report_unhealthy
    from ember.settings import SettingsError

    try:
        settings = _load(flags)
        _require_model(settings)
    except SettingsError as error:
        report_unhealthy(str(error))
        raise
    return _run_queue_worker(flags, settings)


def _run_queue_worker(flags: argparse.Namespace, settings: Settings) -> int:
    from ember.front.start import launch

    if settings.queue_client == "direct":
        from ember.front.worker import direct

        return direct.run(settings, launch(settings))
    from ember.front.worker import sdk

    rp_log_level = getattr(flags, "rp_log_level", None)
    level = ["--rp_log_level", rp_log_level] if rp_log_level else []
    return sdk.run(settings, launch(settings), level)


def _local_job(flags: argparse.Namespace) -> int:
    from ember.front.worker import local
    from ember.settings import SettingsError

    try:
        job = local.read_job(flags.test_input)
    except local.LocalJobError as error:
        raise SettingsError(str(error)) from None
    try:
        settings = _load(flags, default_model="demo")
    except SettingsError as error:
        local.write_document(local.failed(job, " ".join(str(error).split())))
        raise
    from ember.front.start import launch

    return local.run(settings, launch(settings), job)


def _chat(flags: argparse.Namespace) -> int:
    if not _take_positional_model(flags):
        return 2
    settings, _ = _read(flags)
    from ember.cli.chat.terminal import ChatError, run
    from ember.cli.own_server import OwnServerError, own_server

    try:
        if flags.url is not None:
            return run(flags.url, settings.model_name, _key_of(settings), flags.system, flags.body)
        _require_model(settings)
        with own_server(_environment_of(flags)) as server:
            return run(server.url, None, server.key, flags.system, flags.body, server.end)
    except (ChatError, OwnServerError) as error:
        return _fail(str(error))
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left in its buffer has no place
        return _fail(f"the conversation cannot be written: {error.strerror}")


def _bench(flags: argparse.Namespace) -> int:
    if not _take_positional_model(flags):
        return 2
    settings, _ = _read(flags)
    if flags.url is None and (flags.startup is None or "" in flags.startup):
        _require_model(settings)
    from ember.cli.bench.command import BenchError, run

    try:
        return run(flags, settings.model_name, _environment_of(flags), _key_of(settings))
    except BenchError as error:
        return _fail(str(error))


def _key_of(settings: Settings) -> str | None:
    """The key for a server: ours, or that of OpenAI's clients."""
    return settings.api_key[0].get_secret_value() if settings.api_key else os.environ.get("OPENAI_API_KEY")


def _environment_of(flags: argparse.Namespace) -> dict[str, str]:
    """The settings among the flags, as variables for a server: a command line would show keys to others."""
    from ember.settings import Settings, variable_names

    found = {}
    for name in Settings.model_fields:
        if (value := vars(flags).get(name)) is not None:
            found[variable_names(name)[0]] = ",".join(value) if isinstance(value, list) else str(value)
    return found


def _batch(flags: argparse.Namespace) -> int:
    from pathlib import Path

    from ember.cli.batch import BatchError, run

    settings = _load(flags)
    if flags.url is None:
        _require_model(settings)
    errors = None if flags.errors is None else Path(flags.errors)
    try:
        return run(
            Path(flags.source), Path(flags.output), errors, settings, flags.url, _key_of(settings), flags.concurrency
        )
    except BatchError as error:
        return _fail(str(error))


def _inspect(flags: argparse.Namespace) -> int:
    if not _take_positional_model(flags):
        return 2
    settings, unused = _read(flags)
    _require_model(settings)
    from ember.cli.inspect import InspectError, failure, report

    try:
        print(report(settings, unused, as_json=flags.json))
    except InspectError as error:
        if flags.json:
            print(failure(str(error)))
        return _fail(str(error))
    return 0


def _quantize(flags: argparse.Namespace) -> int:
    from pathlib import Path

    from ember.cli.quantize import quantize
    from ember.engine.errors import ModelError

    if flags.group_size is not None and flags.group_size < 8:
        return _fail(f"--group-size must be a multiple of 8, not {flags.group_size}", 2)
    if not flags.target.strip():
        return _fail("TARGET is empty: name a new directory", 2)
    try:
        say = lambda line: print(line, file=sys.stderr)  # noqa: E731
        print(quantize(flags.source, Path(flags.target).expanduser(), flags.format, flags.group_size, say))
    except ModelError as error:
        return _fail(str(error))
    except OSError as error:
        return _fail(f"{error.filename}: {error.strerror}")
    return 0


def _boot_report(flags: argparse.Namespace) -> int:
    from pathlib import Path

    from ember.boot_report import ReportError, as_svg, as_text, read
    from ember.untrusted_json import loads

    try:
        report = loads(read(flags.file))
        text, picture = as_text(report), as_svg(report)
        if flags.svg:
            Path(flags.svg).write_text(picture)
    except ReportError as error:
        return _fail(str(error))
    except OSError as error:
        return _fail(f"{error.filename}: {error.strerror}")
    except (ValueError, KeyError, TypeError, AttributeError):
        return _fail(f"{flags.file} is not a boot report; EMBER_BOOT_REPORT=FILE makes the worker write one")
    print(text)
    return 0


def _load(flags: argparse.Namespace, default_model: str | None = None) -> Settings:
    """Read the settings, with flags over the environment; set up logging and warn of variables without effect."""
    import logging

    from ember.logs import set_up

    settings, unused = _read(flags, default_model)
    set_up(settings)
    for line in unused:
        logging.getLogger(__name__).warning(line)
    return settings


def _read(flags: argparse.Namespace, default_model: str | None = None) -> tuple[Settings, list[str]]:
    """Read the settings, with flags over the environment. Returns them, and a line for each variable without effect."""
    from ember.settings import Settings, load_settings, warn_unused

    given = {name: value for name, value in vars(flags).items() if name in Settings.model_fields}
    overrides = {name: ",".join(value) if isinstance(value, list) else value for name, value in given.items()}
    settings = load_settings(overrides)
    if settings.model_name is None and default_model is not None:
        settings = load_settings({**overrides, "model_name": default_model})
    unused = warn_unused()
    if getattr(flags, "rp_debugger", False):
        unused.append("--rp_debugger has no effect: the SDK's debugger cannot describe streamed jobs")
    if (getattr(flags, "rp_api_concurrency", None) or 1) > 1:
        unused.append("--rp_api_concurrency has no effect: one process answers everything at once")
    return settings, unused


def _require_model(settings: Settings) -> None:
    from ember.settings import SettingsError

    if settings.model_name is None:
        raise SettingsError("MODEL_NAME is not set: name the model to serve, or `demo` for the one in the package")


def _fail(message: str, status: int = 1) -> int:
    from ember.logs import printable

    print(f"ember: error: {printable(' '.join(message.split()))}", file=sys.stderr)
    return status


def _models(_: argparse.Namespace) -> int:
    from ember.cli.models import page

    print(page())
    return 0


def _settings(flags: argparse.Namespace) -> int:
    if flags.hub:
        from ember.listing import hub_json

        print(hub_json().rstrip("\n"))
    else:
        print(settings_table())
    return 0


def settings_table() -> str:
    """All settings as a Markdown table, in the order of settings/fields.py."""
    from ember.flags import flag_names
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
