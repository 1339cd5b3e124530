"""`ember serve`: it listens at once, serves when the engine is ready, and drains on SIGTERM.

The engine has been started before. The exit status is 0 after a signal and 1 after a failure.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import resource
from typing import TYPE_CHECKING, Any

from aiohttp import web

from ember.front.api.router import Router
from ember.front.api.routes import ROUTER
from ember.front.errors import ApiError
from ember.front.http.app import make_app, make_health_app
from ember.front.http.connection import Server, watch
from ember.front.link.engine import EngineError
from ember.front.signals import on_signals

if TYPE_CHECKING:
    from ember.front.api.services import Services
    from ember.front.start import Worker
    from ember.settings import Settings

log = logging.getLogger(__name__)

_CLOSE_SECONDS = 5.0
_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_MAX_DESCRIPTORS = 65_536
_QUIET_SECONDS = 60.0  # between two equal log lines


def serve(settings: Settings, worker: Worker, router: Router = ROUTER) -> int:
    """Serve until a signal or a failure. Returns the exit status."""
    return asyncio.run(_serve(settings, worker, router))


async def _serve(settings: Settings, worker: Worker, router: Router) -> int:
    stopping, hurrying = on_signals()
    _raise_descriptor_limit()
    await worker.start()
    server = make_app(settings, worker, router, stopping)
    asyncio.get_running_loop().set_exception_handler(_Unhandled(server))
    health_server = make_health_app(settings, worker, router, stopping)
    runner, health = _runner(server), _runner(health_server)
    watching = asyncio.create_task(watch(server, health_server))
    try:
        await runner.setup()
        await health.setup()
        site = web.TCPSite(runner, settings.host, settings.port)
        if not await _listen(site, settings.host, settings.port):
            return 1
        log.info("listening on http://%s:%d", settings.host, runner.addresses[0][1])
        if settings.port_health not in (None, settings.port):
            health_site = web.TCPSite(health, settings.host, settings.port_health)
            if not await _listen(health_site, settings.host, settings.port_health):
                return 1
            log.info("health checks on http://%s:%d", settings.host, health.addresses[0][1])
        status = await _until_over(worker, stopping, settings.drain_timeout)
        stopping.set()
        await site.stop()
        await worker.turn_away()
        await _drain(server.in_flight | worker.tasks, hurrying, settings.drain_timeout)
        return status
    finally:
        with contextlib.suppress(Exception):  # requests still in flight get an error
            async with asyncio.timeout(_CLOSE_SECONDS):
                await worker.close()
        watching.cancel()
        await health.cleanup()
        await runner.cleanup()


def _raise_descriptor_limit() -> None:
    """Raise the limit of file descriptors to the allowed maximum, since each connection needs one."""
    with contextlib.suppress(OSError, ValueError):
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        most = _MAX_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _MAX_DESCRIPTORS)
        if soft != resource.RLIM_INFINITY and soft < most:
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


class _Unhandled:
    """The event loop's exception handler. If connections cannot be accepted for lack of file descriptors, which the
    loop retries each second, it closes idle connections and writes at most one log line a minute."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._said_at = -_QUIET_SECONDS

    def __call__(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if not (isinstance(error, OSError) and error.errno in _EXHAUSTED):
            loop.default_exception_handler(context)
            return
        num_closed = self._server.shed()
        if loop.time() - self._said_at >= _QUIET_SECONDS:
            self._said_at = loop.time()
            count = len(self._server.connections)
            reason = error.strerror or error
            log.warning("a connection waits: %s (%d are open, %d idle ones were closed)", reason, count, num_closed)


def _runner(server: Server) -> web.ServerRunner:
    return web.ServerRunner(server, shutdown_timeout=_CLOSE_SECONDS)


async def _listen(site: web.TCPSite, host: str, port: int) -> bool:
    try:
        await site.start()
    except OSError as error:
        log.error("cannot listen on %s:%d: %s", host, port, error.strerror or error)
        return False
    return True


async def _drain(in_flight: set[asyncio.Task[Any]], hurrying: asyncio.Event, seconds: float) -> None:
    """Let requests finish, until the time is over or a second signal arrives."""
    if not in_flight:
        return
    hurry = asyncio.create_task(hurrying.wait())
    done = asyncio.gather(*in_flight, return_exceptions=True)
    await asyncio.wait((hurry, done), timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    hurry.cancel()


async def _resume_batches(services: Services) -> bool:
    """Continue the batches of BATCH_DIR. Other workers than a server's leave them alone. Returns whether the directory
    can be used."""
    if services.settings.batch_dir is None:
        return True
    from ember.front.api.batches.manager import batches_of

    try:
        await batches_of(services).resume()
    except ApiError as error:
        log.error("%s", error.message)
        return False
    return True


async def _until_over(worker: Worker, stopping: asyncio.Event, drain: float) -> int:
    """Wait for a signal, a failed boot, or an engine that has failed for good. Returns the exit status."""
    stop = asyncio.create_task(stopping.wait())
    ready = asyncio.create_task(worker.ready())
    dead = asyncio.create_task(worker.wait_dead())
    try:
        await asyncio.wait((stop, ready), return_when=asyncio.FIRST_COMPLETED)
        if ready.done() and (error := ready.exception()) is not None:
            message = " ".join(str(error).split()) or type(error).__name__
            log.error("%s", message, exc_info=None if isinstance(error, EngineError) else error)
            return 1
        if ready.done() and not await _resume_batches(ready.result()):
            return 1
        await asyncio.wait((stop, dead), return_when=asyncio.FIRST_COMPLETED)
        if stop.done():
            log.info("stopping: requests in flight have %g s to finish; a second signal ends them now", drain)
            return 0
        log.error("the engine has failed for good: %s; the server exits", dead.result())
        return 1
    finally:
        for task in (stop, ready, dead):
            task.cancel()
