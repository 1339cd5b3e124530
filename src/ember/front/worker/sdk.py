"""The worker on a queue with the runpod SDK: jobs are taken when the engine is ready, and run by the handler.

What comes in is an engine that is already being started. What leaves is an exit code: 0 after a SIGTERM and its
drain, 1 after a failure. The SDK is imported while the engine boots; that takes 0.35 s, since its description of the
CPU is replaced by a stub.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import multiprocessing
import os
import signal
import stat
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from ember.front.loop import EngineLoop
from ember.front.worker.health import boot_failure, report_unhealthy
from ember.front.worker.signals import leave_on_signals
from ember.settings import Settings

if TYPE_CHECKING:
    from ember.front.api.services import Services
    from ember.front.start import Worker
    from ember.front.worker.handler import Handling

log = logging.getLogger(__name__)

# The SDK's GPU check would import torch here and open a second CUDA context. Its other checks end the worker when a
# disk is 90 % full, or when one public address cannot be reached. The boot of the engine is the test that counts.
_SDK_DEFAULTS = {
    "RUNPOD_SKIP_GPU_CHECK": "true",
    "RUNPOD_SKIP_AUTO_SYSTEM_CHECKS": "true",
    "RUNPOD_LOG_LEVEL": "INFO",  # at its own default, DEBUG, every prompt and every token goes to the log
}
_REPORT_SECONDS = 5.0  # for running jobs to report their errors when the engine has failed
_CLOSE_SECONDS = 10.0
LEAVE_SECONDS = 3.0  # to close the engine, when a signal ends the boot
_PR_SET_PDEATHSIG = 1


def run(settings: Settings, worker: Worker, sdk_flags: list[str] | None = None) -> int:
    """Serve the queue until SIGTERM or a failure. Returns the exit code. `sdk_flags` are passed to the SDK."""
    loop = EngineLoop()
    loop.start()
    leave_on_signals(0, before=lambda: end_engine(loop, worker, LEAVE_SECONDS))  # until the SDK sets its own handlers
    started = loop.submit(boot(worker))
    import_sdk()
    from ember.front.worker.answer import answer_with, concurrency, gate, handling_for

    try:
        services = started.result()
    except Exception as error:
        report_unhealthy(boot_failure(error))
        close(loop, worker)
        return 1
    places = concurrency(settings, services.engine.info.max_num_seqs)
    handling = handling_for(settings, loop, answer_with(worker))
    passed = gate(worker)
    _watch(loop, worker)
    _start(handling, lambda: loop.submit(passed()), places, settings.drain_timeout, sdk_flags or [])
    close(loop, worker)
    return 0


async def boot(worker: Worker) -> Services:
    """Start the worker and wait until it is ready. This runs on the engine's loop. Raises EngineError when it fails."""
    await worker.start()
    return await worker.ready()


def import_sdk() -> None:
    """Import runpod, with our defaults in the environment and without its description of the CPU, which takes 1.2 s."""
    for name, value in _SDK_DEFAULTS.items():
        if name == "RUNPOD_LOG_LEVEL" and os.environ.get("RUNPOD_DEBUG_LEVEL"):
            continue
        os.environ.setdefault(name, value)
    with _stub_cpuinfo():
        import runpod  # noqa: F401


@contextlib.contextmanager
def _stub_cpuinfo() -> Iterator[None]:
    """Replace py-cpuinfo, which the SDK asks for the CPU's name at import. It needs the name for a debug label
    alone."""
    if "cpuinfo" in sys.modules:
        yield
        return
    stub = types.ModuleType("cpuinfo")
    stub.get_cpu_info = dict  # type: ignore[attr-defined]
    sys.modules["cpuinfo"] = stub
    try:
        yield
    finally:
        if sys.modules.get("cpuinfo") is stub:
            del sys.modules["cpuinfo"]


def _start(
    handling: Handling,
    ready: Callable[[], Future[Any]],
    concurrency: int,
    drain_timeout: float,
    sdk_flags: list[str],
) -> None:
    """Run the SDK's loop in this thread until it has drained. `ready` ends when the engine can serve."""
    import runpod
    from runpod.serverless.modules import rp_ping

    from ember.front.worker import scaler
    from ember.front.worker.handler import make_handler

    if multiprocessing.get_start_method() == "fork":
        rp_ping.Heartbeat.process_loop = staticmethod(_guarded_ping(rp_ping.Heartbeat.process_loop))
    scaler.install(handling, ready, drain_timeout)
    sys.argv = [sys.argv[0], *sdk_flags]
    runpod.serverless.start(
        {
            "handler": make_handler(handling),
            "concurrency_modifier": lambda _: concurrency,
            "return_aggregate_stream": True,
        }
    )


def _guarded_ping(ping_loop: Any) -> Any:
    """The SDK's ping loop, in its forked process, so that it ends with the worker.

    Without this it would go on pinging for a worker that was killed. It would also hold that worker's sockets open, and
    the engine would never see the connection end.
    """
    parent = os.getpid()

    def guarded(*args: Any, **kwargs: Any) -> None:
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            return
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the worker, which drains
        _close_sockets()
        ping_loop(*args, **kwargs)

    return guarded


def _close_sockets() -> None:
    for name in os.listdir("/proc/self/fd") if os.path.isdir("/proc/self/fd") else []:
        with contextlib.suppress(OSError, ValueError):
            if int(name) > 2 and stat.S_ISSOCK(os.fstat(int(name)).st_mode):
                os.close(int(name))


def _watch(loop: EngineLoop, worker: Worker) -> None:
    """End the process with a non-zero status when the engine has failed for good and running jobs have reported it."""
    dead = loop.submit(worker.wait_dead())

    def leave(future: Any) -> None:
        if not future.cancelled() and future.exception() is None:
            threading.Thread(target=_leave_after_reports, name="leave", daemon=True).start()

    dead.add_done_callback(leave)


def _leave_after_reports() -> None:
    from runpod.serverless.modules.worker_state import JobsProgress

    log.error("the engine has failed for good; the worker exits")
    deadline = time.monotonic() + _REPORT_SECONDS
    while JobsProgress().get_job_count() and time.monotonic() < deadline:
        time.sleep(0.02)
    report_unhealthy("the engine has failed for good")
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(1)  # the SDK's loop would stay in its long poll for up to 90 s


def close(loop: EngineLoop, worker: Worker) -> None:
    """End the engine, then the loop that its client runs on."""
    end_engine(loop, worker, _CLOSE_SECONDS)
    loop.stop()


def end_engine(loop: EngineLoop, worker: Worker, timeout: float) -> None:
    """End the engine. Requests that still run fail. An engine whose front is gone ends by itself."""
    with contextlib.suppress(Exception):
        loop.submit(worker.close()).result(timeout)
