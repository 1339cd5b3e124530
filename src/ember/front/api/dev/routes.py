"""The records of these routes. Their module is imported at the first request, so that no boot waits for it."""

from __future__ import annotations

from ember.front.api.route import Description, Route, loaded_later


def _route(path: str, method: str, handler: str, summary: str, answer: str | None = None, body: str = "") -> Route:
    return Route(
        path=path,
        methods=(method,),
        answer=loaded_later("ember.front.api.dev.operate", handler),
        enabled_by="server_dev_mode",
        is_admin=True,
        about=Description(
            summary=summary,
            answer=(answer,) if answer else None,
            body=(body,) if body else (),
            errors=(403, 404),
        ),
    )


DEV_ROUTES = (
    _route("/sleep", "POST", "sleep", "Free the device's memory"),
    _route("/wake_up", "POST", "wake_up", "End a sleep"),
    _route("/is_sleeping", "GET", "is_sleeping", "Whether the engine is asleep", "Sleeping"),
    _route("/pause", "POST", "pause", "Let no request start", "PauseStatus"),
    _route("/resume", "POST", "resume", "End a pause", "PauseStatus"),
    _route("/is_paused", "GET", "is_paused", "Whether requests wait", "Paused"),
    _route("/abort_requests", "POST", "abort_requests", "End requests", "Aborted", "AbortRequest"),
    _route("/reset_prefix_cache", "POST", "reset_prefix_cache", "Empty the prefix cache"),
    _route("/reset_mm_cache", "POST", "reset_other_cache", "Nothing: there is no such cache"),
    _route("/reset_encoder_cache", "POST", "reset_other_cache", "Nothing: there is no such cache"),
    _route("/server_info", "GET", "server_info", "The settings and the engine", "ServerInfo"),
    _route("/get_world_size", "GET", "get_world_size", "The number of devices", "WorldSize"),
)
