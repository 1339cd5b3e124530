"""`ember serve`, `ember worker` and `ember platform`: the commands that serve."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from ember.cli.flag_settings import fail, load, require_model, take_positional_model
from ember.front.link.spawn import prepare
from ember.front.worker.contract import behind_load_balancer, on_queue, platform_key
from ember.front.worker.signals import leave_on_signals

if TYPE_CHECKING:
    import argparse

    from ember.settings import Settings


def _serve(flags: argparse.Namespace) -> int:
    if not take_positional_model(flags):
        return 2
    settings = load(flags)
    require_model(settings)
    from ember.front.start import launch

    worker = launch(settings)
    from ember.front.http.server import serve

    return serve(settings, worker)


def _worker(flags: argparse.Namespace) -> int:
    if flags.rp_serve_api:
        return _platform_and_worker(
            flags, flags.rp_api_host or "127.0.0.1", 8000 if flags.rp_api_port is None else flags.rp_api_port
        )
    if flags.platform is not None:
        from ember.platform.server import new_worker_id, worker_environment

        os.environ.update(worker_environment(flags.platform, new_worker_id(), platform_key() or None))
    if flags.test_input is None and on_queue():
        return _queue_worker(flags)
    if flags.test_input is None and behind_load_balancer():
        flags.positional_model = None  # a load balancer's worker: no queue, but a port to listen on
        return _serve(flags)
    return _local_job(flags)


def _queue_worker(flags: argparse.Namespace) -> int:
    from ember.front.worker.health import report_unhealthy
    from ember.settings import SettingsError

    try:
        settings = load(flags)
        require_model(settings)
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
        settings = load(flags, default_model="demo")
    except SettingsError as error:
        local.write_document(local.failed(job, " ".join(str(error).split())))
        raise
    from ember.front.start import launch

    return local.run(settings, launch(settings), job)


def _platform(flags: argparse.Namespace) -> int:
    if not take_positional_model(flags):
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
    settings = load(flags)
    from ember.platform.server import serve
    from ember.platform.store import StoreError, open_store

    host = settings.host if "host" in settings.model_fields_set else "127.0.0.1"
    try:
        store = open_store(settings.platform_store)
    except StoreError as error:
        return fail(str(error))
    keys = [key.get_secret_value() for key in settings.api_key]
    return serve(store, host, settings.port, keys, page=settings.page)


def _platform_and_worker(flags: argparse.Namespace, host: str | None = None, port: int | None = None) -> int:
    """Run the platform in a thread and a worker that takes its jobs in the main thread. Returns the exit status."""
    import logging

    from ember.platform.server import PlatformThread, new_worker_id, worker_environment
    from ember.platform.store import StoreError, open_store

    settings = load(flags, default_model="demo")
    if host is None:
        host = settings.host if "host" in settings.model_fields_set else "127.0.0.1"
    port = settings.port if port is None else port
    keys = [key.get_secret_value() for key in settings.api_key]
    try:
        platform = PlatformThread(open_store(settings.platform_store), host, port, keys, page=settings.page)
        platform.start()
    except StoreError as error:
        return fail(str(error))
    except OSError as error:
        return fail(f"cannot listen on {host}:{port}: {error.strerror or error}")
    logging.getLogger(__name__).info("the platform is listening on %s", platform.url)
    os.environ.update(worker_environment(platform.url, new_worker_id(), keys[0] if keys else None))
    try:
        return _run_queue_worker(flags, settings)
    finally:
        platform.stop()


COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "serve": _serve,
    "worker": _worker,
    "platform": _platform,
}
"""They return the exit status, by their names."""
