"""`ember serve`: listens at once, serves when the engine is ready, and leaves in order on SIGTERM.

In: an engine that is already being started. Out: an exit code, 0 after a signal, 1 after a failure.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from typing import TYPE_CHECKING

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from ember.front.api.router import dispatch
from ember.front.client import EngineError
from ember.front.http.app import HEARD, IN_FLIGHT, Dispatch, make_app, make_health_app
from ember.front.signals import on_signals

if TYPE_CHECKING:
    from ember.front.start import Worker
    from ember.settings import Settings

log = logging.getLogger(__name__)

HEAD_SECONDS = 30.0  # for the first request's line and headers to arrive
_CLOSE_SECONDS = 5.0


def serve(settings: Settings, worker: Worker, dispatch: Dispatch = dispatch) -> int:
    """Run until a signal or a failure. Returns the exit code."""
    return asyncio.run(_serve(settings, worker, dispatch))


async def _serve(settings: Settings, worker: Worker, dispatch: Dispatch) -> int:
    stopping, hurrying = on_signals()
    logging.getLogger("aiohttp.server").setLevel(logging.CRITICAL)  # a traceback for each malformed request line
    await worker.start()
    app = make_app(settings, worker, dispatch)
    runner = _runner(app)
    health = _runner(make_health_app(settings, worker))
    silent = asyncio.create_task(_close_silent(runner, app[HEARD]))
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
        await site.stop()
        await _drain(app[IN_FLIGHT], hurrying, settings.drain_timeout)
        return status
    finally:
        with contextlib.suppress(Exception):  # what is still in flight is answered with an error by this
            await asyncio.wait_for(worker.close(), _CLOSE_SECONDS)
        silent.cancel()
        await health.cleanup()
        await runner.cleanup()


def _runner(app: web.Application) -> web.AppRunner:
    return web.AppRunner(
        app,
        access_log=None,
        handler_cancellation=True,  # a client that goes away must not keep its request running
        shutdown_timeout=_CLOSE_SECONDS,
    )


async def _listen(site: web.TCPSite, host: str, port: int) -> bool:
    try:
        await site.start()
    except OSError as error:
        log.error("cannot listen on %s:%d: %s", host, port, error.strerror or error)
        return False
    return True


async def _close_silent(runner: web.AppRunner, heard: set[RequestHandler]) -> None:
    """Close connections on which no whole request head has come for HEAD_SECONDS: they would add up for ever."""
    since: dict[RequestHandler, float] = {}
    while True:
        await asyncio.sleep(HEAD_SECONDS / 4)
        now = time.monotonic()
        connections = runner.server.connections if runner.server is not None else []
        heard.intersection_update(connections)
        since = {each: since.get(each, now) for each in connections if each not in heard}
        for connection, seen in since.items():
            if now - seen > HEAD_SECONDS:
                connection.force_close()


async def _drain(in_flight: set[asyncio.Task[object]], hurrying: asyncio.Event, seconds: float) -> None:
    """Let requests finish, until the time is up or a second signal comes."""
    if not in_flight:
        return
    hurry = asyncio.create_task(hurrying.wait())
    done = asyncio.gather(*in_flight, return_exceptions=True)
    await asyncio.wait((hurry, done), timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    hurry.cancel()


async def _until_over(worker: Worker, stopping: asyncio.Event, drain: float) -> int:
    """Wait for a signal, a boot that fails or an engine that is gone for good."""
    stop = asyncio.create_task(stopping.wait())
    ready = asyncio.create_task(worker.ready())
    dead = asyncio.create_task(worker.wait_dead())
    try:
        await asyncio.wait((stop, ready), return_when=asyncio.FIRST_COMPLETED)
        if ready.done() and (error := ready.exception()) is not None:
            message = " ".join(str(error).split()) or type(error).__name__
            log.error("%s", message, exc_info=None if isinstance(error, EngineError) else error)
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
