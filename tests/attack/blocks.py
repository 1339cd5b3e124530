"""All classes of attacks by name, in the order in which they run, and the server that each is for."""

from __future__ import annotations

from tests.attack import connections, files, jobs, processes, requests
from tests.attack.report import Block

SERVE: dict[str, Block] = {
    "bodies": requests.bodies,
    "keys": requests.keys,
    "smuggling": requests.smuggling,
    "templates": requests.templates,
    "grammars": requests.grammars,
    "vanishing clients": connections.vanishing,
    "slow readers": connections.slow_readers,
    "slow heads": connections.slow_heads,
    "descriptors": connections.descriptors,
    "killed engine": processes.killed_engine,
    "stopped processes": processes.stopped,
    "model files": files.files,
}
PLATFORM: dict[str, Block] = {
    "jobs": jobs.jobs,
    "lying workers": jobs.lying_workers,
}
RESTARTING = ("killed engine",)  # after these the server's processes are other ones
