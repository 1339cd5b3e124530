"""The commands that do not serve."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from ember.cli.flag_settings import environment_of, fail, key_of, load, read, require_model, take_positional_model

if TYPE_CHECKING:
    import argparse


def _chat(flags: argparse.Namespace) -> int:
    if not take_positional_model(flags):
        return 2
    settings, _ = read(flags)
    from ember.cli.chat.terminal import ChatError, run
    from ember.cli.own_server import OwnServerError, own_server

    try:
        if flags.url is not None:
            return run(flags.url, settings.model_name, key_of(settings), flags.system, flags.body)
        require_model(settings)
        with own_server(environment_of(flags)) as server:
            return run(server.url, None, server.key, flags.system, flags.body, server.end)
    except (ChatError, OwnServerError) as error:
        return fail(str(error))
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left in its buffer has no place
        return fail(f"the conversation cannot be written: {error.strerror}")


def _bench(flags: argparse.Namespace) -> int:
    if not take_positional_model(flags):
        return 2
    settings, _ = read(flags)
    if flags.url is None and (flags.startup is None or "" in flags.startup):
        require_model(settings)
    from ember.cli.bench.command import BenchError, run

    try:
        return run(flags, settings.model_name, environment_of(flags), key_of(settings))
    except BenchError as error:
        return fail(str(error))


def _batch(flags: argparse.Namespace) -> int:
    from pathlib import Path

    from ember.cli.batch import BatchError, run

    settings = load(flags)
    if flags.url is None:
        require_model(settings)
    errors = None if flags.errors is None else Path(flags.errors)
    try:
        return run(
            Path(flags.source), Path(flags.output), errors, settings, flags.url, key_of(settings), flags.concurrency
        )
    except BatchError as error:
        return fail(str(error))


def _inspect(flags: argparse.Namespace) -> int:
    if not take_positional_model(flags):
        return 2
    settings, unused = read(flags)
    require_model(settings)
    from ember.cli.inspect import InspectError, failure, report

    try:
        print(report(settings, unused, as_json=flags.json))
    except InspectError as error:
        if flags.json:
            print(failure(str(error)))
        return fail(str(error))
    return 0


def _quantize(flags: argparse.Namespace) -> int:
    from pathlib import Path

    from ember.cli.quantize import quantize
    from ember.engine.errors import ModelError

    if flags.group_size is not None and flags.group_size < 8:
        return fail(f"--group-size must be a multiple of 8, not {flags.group_size}", 2)
    if not flags.target.strip():
        return fail("TARGET is empty: name a new directory", 2)
    try:
        say = lambda line: print(line, file=sys.stderr)  # noqa: E731
        print(quantize(flags.source, Path(flags.target).expanduser(), flags.format, flags.group_size, say))
    except ModelError as error:
        return fail(str(error))
    except OSError as error:
        return fail(f"{error.filename}: {error.strerror}")
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
        return fail(str(error))
    except OSError as error:
        return fail(f"{error.filename}: {error.strerror}")
    except (ValueError, KeyError, TypeError, AttributeError):
        return fail(f"{flags.file} is not a boot report; EMBER_BOOT_REPORT=FILE makes the worker write one")
    print(text)
    return 0


def _models(_: argparse.Namespace) -> int:
    from ember.cli.models import page

    print(page())
    return 0


def _settings(flags: argparse.Namespace) -> int:
    if flags.hub:
        from ember.listing import hub_json

        print(hub_json().rstrip("\n"))
    else:
        from ember.cli.settings_table import settings_table

        print(settings_table())
    return 0


COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "chat": _chat,
    "bench": _bench,
    "batch": _batch,
    "inspect": _inspect,
    "models": _models,
    "quantize": _quantize,
    "settings": _settings,
    "boot-report": _boot_report,
}
"""They return the exit status, by their names."""
