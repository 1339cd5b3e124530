"""What the operator's routes do: sleep, pause, abort, empty caches, and show the configuration."""

from __future__ import annotations

import platform

from pydantic import SecretStr

from ember import __version__
from ember.front.api.body import parse_body
from ember.front.api.dev.schemas import AbortRequest
from ember.front.api.exchange import Request, Response
from ember.front.api.query import check_query, flag, whole_number
from ember.front.api.services import Services
from ember.front.errors import ApiError, bad_request
from ember.front.link.control import LEVELS, MODES, TAGS, Mode
from ember.front.link.engine import EngineError
from ember.settings import variables

_FLAGS = dict.fromkeys(("true", "1", "yes", "on"), True) | dict.fromkeys(("false", "0", "no", "off"), False)
_PLACE = "query."  # of a parameter that an error is about, as vLLM says it for its routes
_SECRET_PARTS = ("KEY", "TOKEN", "SECRET", "PASSWORD")  # of the names of variables that are not shown


async def sleep(services: Services, raw_request: Request) -> Response:
    """Put the engine to sleep, which frees the device's memory from level 1 on. Raises ApiError."""
    check_query(raw_request, "level", "mode")
    _check_sleep_mode(services)
    given = raw_request.query.get("level", "1")
    level = whole_number(given, LEVELS[0], LEVELS[-1])
    if level is None:
        raise bad_request(
            f"`level` must be one of {', '.join(map(str, LEVELS))}, got {given[:64]!r}.", _PLACE + "level"
        )
    mode = _mode(raw_request)
    await services.ready_to_control()
    await services.engine.control.sleep(level, mode)
    return Response(200)


async def wake_up(services: Services, raw_request: Request) -> Response:
    """End a sleep, or wake up only the parts that `tags` names. Raises ApiError."""
    check_query(raw_request, "tags")
    _check_sleep_mode(services)
    given = raw_request.query.get("tags", "")
    tags = [tag for tag in given.split(",") if tag]
    for tag in tags:
        if tag not in TAGS:
            raise bad_request(f"`tags` must be of {', '.join(map(repr, TAGS))}, got {tag[:64]!r}.", _PLACE + "tags")
    try:
        await services.engine.control.wake_up(tags)
    except EngineError as error:
        raise ApiError(500, str(error), headers={"x-should-retry": "false"}) from None
    return Response(200)


async def is_sleeping(services: Services, raw_request: Request) -> Response:
    check_query(raw_request)
    return Response(200, {"is_sleeping": services.engine.control.is_sleeping})


async def pause(services: Services, raw_request: Request) -> Response:
    """Let no request start until `resume`. Raises ApiError."""
    check_query(raw_request, "mode", "wait_for_inflight_requests", "clear_cache")
    mode = _mode(raw_request)
    if flag(raw_request.query, "wait_for_inflight_requests", _FLAGS, False, _PLACE):  # the older name of the mode
        mode = "wait"
    clears_cache = flag(raw_request.query, "clear_cache", _FLAGS, True, _PLACE)
    await services.ready_to_control()
    await services.engine.control.pause(mode, clears_cache=clears_cache)
    return Response(200, {"status": "paused"})


async def resume(services: Services, raw_request: Request) -> Response:
    check_query(raw_request)
    control = services.engine.control
    await control.resume()
    return Response(200, {"status": "resumed", **({"is_sleeping": True} if control.is_sleeping else {})})


async def is_paused(services: Services, raw_request: Request) -> Response:
    check_query(raw_request)
    return Response(200, {"is_paused": services.engine.control.is_paused})


async def abort_requests(services: Services, raw_request: Request) -> Response:
    """End the named requests, or all. A request has the id of its answer, and that of `X-Request-Id`. Raises
    ApiError."""
    check_query(raw_request)
    request = await parse_body(AbortRequest, {} if raw_request.body is None else raw_request.body)
    names = set(request.request_ids or ())
    found = [runs for runs in services.running if not names or not names.isdisjoint(runs.names)]
    for runs in found:
        runs.abort()
    return Response(200, {"status": "aborted", "aborted": len(found)})


async def reset_prefix_cache(services: Services, raw_request: Request) -> Response:
    """Requests that run keep their pages, whatever `reset_running_requests` says. Raises ApiError."""
    check_query(raw_request, "reset_running_requests", "reset_external")
    for name in ("reset_running_requests", "reset_external"):
        flag(raw_request.query, name, _FLAGS, False, _PLACE)
    await services.engine.reset_prefix_cache()
    return Response(200)


async def reset_other_cache(services: Services, raw_request: Request) -> Response:
    """Prompts are text, and there is no other cache."""
    check_query(raw_request)
    return Response(200)


async def server_info(services: Services, raw_request: Request) -> Response:
    """The settings and the engine's description, without secrets. Raises ApiError."""
    check_query(raw_request, "config_format")
    form = raw_request.query.get("config_format", "text")
    if form not in ("text", "json"):
        raise bad_request(f"`config_format` must be 'text' or 'json', got {form[:64]!r}.", _PLACE + "config_format")
    settings = services.settings
    shown = settings.model_dump(mode="json", exclude_none=True)
    shown = {name: value for name, value in shown.items() if not _holds_secret(getattr(settings, name))}
    info = services.engine.info
    system = {
        "ember": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": info.device,
        "dtype": info.dtype,
        "architecture": info.architecture,
        "operators": info.operators,
        "num_blocks": info.num_blocks,
        "block_size": info.block_size,
        "max_model_len": info.max_model_len,
        "max_num_seqs": info.max_num_seqs,
        "max_num_batched_tokens": info.max_num_batched_tokens,
    }
    body = {
        "vllm_config": shown if form == "json" else ", ".join(f"{name}={value!r}" for name, value in shown.items()),
        "vllm_env": {
            name: value
            for name, value in variables("VLLM_").items()
            if not any(part in name for part in (*_SECRET_PARTS, "EXTRA_ARGS"))
        },
        "system_env": system,
    }
    return Response(200, body)


async def get_world_size(services: Services, raw_request: Request) -> Response:
    """The number of devices that the model is on, which is one. Raises ApiError."""
    check_query(raw_request, "include_dp")
    flag(raw_request.query, "include_dp", _FLAGS, True, _PLACE)
    return Response(200, {"world_size": 1})


def _check_sleep_mode(services: Services) -> None:
    if not services.settings.enable_sleep_mode:
        raise bad_request("Sleep mode is not enabled: set ENABLE_SLEEP_MODE to true.")


def _mode(raw_request: Request) -> Mode:
    """The query's `mode`: what happens to requests that run. Raises ApiError 400."""
    given = raw_request.query.get("mode", "abort")
    for mode in MODES:
        if given == mode:
            return mode
    raise bad_request(f"`mode` must be one of {', '.join(map(repr, MODES))}, got {given[:64]!r}.", _PLACE + "mode")


def _holds_secret(value: object) -> bool:
    return isinstance(value, SecretStr) or (isinstance(value, list) and any(map(_holds_secret, value)))
