"""The environment variables with which the platform starts a worker. They are part of its contract, and no settings of
Ember."""

from __future__ import annotations

import os
from collections.abc import Mapping


def on_queue(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether the platform started this process to take jobs from its queue."""
    return bool(environ.get("RUNPOD_WEBHOOK_GET_JOB"))


def behind_load_balancer(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether the platform started this process to listen on a port. It has no queue then."""
    return bool(environ.get("PORT") and environ.get("RUNPOD_ENDPOINT_ID"))


def worker_id(environ: Mapping[str, str] = os.environ) -> str:
    """The worker's own id; empty without one."""
    return environ.get("RUNPOD_POD_ID", "")


def platform_key(environ: Mapping[str, str] = os.environ) -> str:
    """The key for the platform's queue; empty without one."""
    return environ.get("RUNPOD_AI_API_KEY", "")


def webhook(name: str, worker: str, environ: Mapping[str, str] = os.environ) -> str:
    """The address `RUNPOD_WEBHOOK_<name>`, with the worker's id in its place; empty without one."""
    return environ.get(f"RUNPOD_WEBHOOK_{name}", "").replace("$RUNPOD_POD_ID", worker)
